"""What kernels say about training, and training itself."""
