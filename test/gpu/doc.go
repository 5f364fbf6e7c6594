// Package gpu has the checks for a machine with a GPU. "make gpu-check" builds
// them into bin/gpu-check, a folder to copy to a machine that has NVIDIA's
// driver, and PyTorch for the trainer's side; run.sh there runs all and writes
// report.txt.
//
//	gpu_test.go      the device against the element functions, and against the
//	                 host's bits; figures beside a copy of the same run
//	serve_test.go    an executor for trainer.py: stage changes on its command
//	trainer.py       attaches torch to the arena: steps in place, alpha inside a
//	                 CUDA graph's lifetime, the executor killed in mid-run
//	build.sh run.sh
//
// Without a GPU the device's tests are skipped, unless ESPERD_REQUIRE contains
// "cuda"; the trainer is run on the host's memory where there is torch.
package gpu
