"""The public ops: every model and trainer calls these, never a backend by name.

Today each op is plain PyTorch on every device. A kernel takes an op over here, behind the same signature, so
that no caller changes.
"""

from kernels.reference import add_dropout_layer_norm, attention, cross_entropy, layer_norm

__all__ = ["add_dropout_layer_norm", "attention", "cross_entropy", "layer_norm"]
