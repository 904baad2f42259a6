"""Triton: the dropout mask of a seed. ``reference.keep_mask`` is the same arithmetic in PyTorch.

``tl.rand`` (Philox) costs some 50 integer instructions per element, which makes attention integer-bound. Here a key is
mixed thoroughly once per row, and an element costs two multiplications: key and column are combined, multiplied,
shifted, multiplied, and the high bits compared. Nothing is stored: the backward pass computes the same mask again.
"""

import triton
import triton.language as tl


@triton.jit
def row_keys(seed_ptr, rows):
    """Return the 32-bit keys of ``rows``, a block of row numbers below 2**32; seed_ptr: (1,) int64."""
    seed = tl.load(seed_ptr)
    low = _mix(seed.to(tl.uint32))
    high = _mix((seed >> 32).to(tl.uint32) ^ low ^ 0x9E3779B9)
    return _mix(_mix(rows.to(tl.uint32) ^ low) ^ high)


@triton.jit
def keep(keys, columns, threshold):
    """Return whether each element stays, in the shape to which ``keys`` and ``columns`` broadcast.

    threshold: signed 32-bit, from ``reference.dropout_threshold``.
    """
    bits = keys ^ (columns.to(tl.uint32) * 0x9E3779B1)
    bits = bits * 0x85EBCA6B
    bits = (bits ^ (bits >> 15)) * 0xC2B2AE35
    return bits.to(tl.int32, bitcast=True) >= threshold


@triton.jit
def _mix(bits):
    bits = (bits ^ (bits >> 16)) * 0x85EBCA6B
    bits = (bits ^ (bits >> 13)) * 0xC2B2AE35
    return bits ^ (bits >> 16)
