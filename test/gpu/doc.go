// Package gpu has the checks for a machine with a GPU. "make gpu-check" builds
// them into bin/gpu-check, a folder to copy to a machine that has NVIDIA's
// driver, and PyTorch for the trainer's side; run.sh there runs all and writes
// report.txt.
//
//	gpu_test.go      the device against the element functions, and against the
//	                 host's bits; figures beside a copy of the same run
//	trainer_test.go  two esperds for trainer.py, which it has killed and started
//	trainer.py       torch and the Python client: initial bits, steps in place,
//	                 alpha and growth inside a CUDA graph's lifetime, planted
//	                 bits, an esperd killed in mid-run
//	build.sh run.sh
//	script_test.go   the two of them, on the stub of libcuda
//
// Without a GPU the device's tests are skipped, unless ESPERD_REQUIRE contains
// "cuda"; trainer.py is run on the stub, where there are torch and gcc.
package gpu
