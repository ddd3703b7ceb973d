"""The compiled kernels: how they are built, loaded and called."""
