package cuda

// Options say which GPU.
type Options struct {
	Library string // file to open; empty: libcuda.so.1
	UUID    string // of the GPU, as "GPU-..." or its hexadecimal digits; empty: Ordinal counts
	Ordinal int    // as the driver numbers what CUDA_VISIBLE_DEVICES leaves visible, from 0
}
