"""What the GPU runs, one op a file, and the same ops in plain PyTorch. The public ops are in ``kernels.ops``."""
