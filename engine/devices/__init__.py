"""Where and how an engine computes: devices and dtypes, CUDA graphs, full float32, threads, forked processes."""
