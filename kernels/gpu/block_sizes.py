"""The block sizes, warps and stages by kernel, width, dtype and card: data that ``kernels.checks.compile`` checks."""

from typing import NamedTuple


class Tile(NamedTuple):
    """The block that one program works on, and options of the compiler.

    Attributes:
        rows: queries (forward, dq), keys (dkv), or rows of a matrix.
        columns: keys (forward, dq), queries (dkv), or the columns that are read at a time.
        max_registers: per thread; None leaves it to the compiler, which may spill a few to fit one more block.
    """

    rows: int
    columns: int
    num_warps: int
    num_stages: int
    max_registers: int | None = None

    def options(self) -> dict[str, int | bool | None]:
        """Return the compiler's options."""
        return {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "maxnreg": self.max_registers,
            "enable_fp_fusion": True,  # explicit, since Triton is about to change its default
        }


# Keyed by kernel, head width rounded up to a power of two, and bytes of an element.
ATTENTION = {
    ("forward", 16, 2): Tile(64, 64, 4, 1),
    ("forward", 32, 2): Tile(64, 64, 4, 1),
    ("forward", 64, 2): Tile(64, 32, 4, 2),
    ("forward", 128, 2): Tile(32, 64, 8, 1),
    ("forward", 16, 4): Tile(32, 32, 4, 1),
    ("forward", 32, 4): Tile(32, 32, 4, 1, 255),
    ("forward", 64, 4): Tile(32, 32, 4, 1),
    ("forward", 128, 4): Tile(16, 32, 8, 1, 255),
    ("dq", 16, 2): Tile(64, 32, 4, 2, 128),
    ("dq", 32, 2): Tile(64, 32, 4, 2),
    ("dq", 64, 2): Tile(64, 32, 4, 2),
    ("dq", 128, 2): Tile(32, 64, 8, 1),
    ("dq", 16, 4): Tile(32, 32, 4, 1),
    ("dq", 32, 4): Tile(32, 16, 4, 1),
    ("dq", 64, 4): Tile(16, 32, 8, 1),
    ("dq", 128, 4): Tile(16, 16, 8, 1),
    ("dkv", 16, 2): Tile(64, 32, 4, 2),
    ("dkv", 32, 2): Tile(64, 32, 4, 2),
    ("dkv", 64, 2): Tile(32, 64, 4, 2),
    ("dkv", 128, 2): Tile(64, 32, 8, 1),
    ("dkv", 16, 4): Tile(32, 32, 4, 1, 168),
    ("dkv", 32, 4): Tile(32, 32, 4, 1, 168),
    ("dkv", 64, 4): Tile(32, 16, 4, 1),
    ("dkv", 128, 4): Tile(16, 16, 4, 1, 255),
}

# Exceptions by card. Hopper's matrix instructions take 64 rows at a time; without a bound it spills nothing.
ATTENTION_BY_CARD = {
    ("sm_90", "dkv", 32, 4): Tile(32, 32, 4, 1),
    ("sm_90", "dkv", 128, 4): Tile(16, 16, 4, 1),
    ("sm_90", "dkv", 64, 2): Tile(64, 32, 4, 2),
    ("sm_90", "dkv", 128, 2): Tile(64, 16, 8, 1),
}

# Rows of the partial sums of d_weight and d_bias, at least and per multiprocessor: enough to fill a card, and few
# enough that adding them up costs nothing.
LAYER_NORM_PROGRAMS = 256
LAYER_NORM_PROGRAMS_PER_SM = 8


def attention(kernel: str, block_d: int, element_size: int, card: str | None) -> Tile:
    """Return the tile for heads of up to ``block_d``, a power of two from 16 to 128."""
    everywhere = ATTENTION[kernel, block_d, element_size]
    return ATTENTION_BY_CARD.get((card or "", kernel, block_d, element_size), everywhere)


def layer_norm(block_c: int) -> Tile:
    """Return the tile for rows of up to ``block_c`` channels, a power of two."""
    return Tile(1, block_c, max(1, min(16, block_c // 256)), 1, 168 if block_c >= 2048 else None)


def rotary(block_half: int) -> Tile:
    """Return the tile for half heads of up to ``block_half``, a power of two: eight elements per thread of one warp."""
    return Tile(max(1, 256 // block_half), block_half, 1, 1)


def cross_entropy(block_v: int) -> Tile:
    """Return the tile for a vocabulary of up to ``block_v`` symbols, a power of two."""
    columns = min(block_v, 4096)
    return Tile(max(1, 1024 // columns), columns, 4, 1, 168)
