"""A checkpoint to ONNX, with NumPy and onnx alone."""
