"""The GPUs that the checks know: limits by architecture, and data sheets by product."""

from typing import NamedTuple

KIB = 1024


class Architecture(NamedTuple):
    """An architecture's limits (CUDA C++ Programming Guide, "Compute Capabilities")."""

    shared_per_block: int  # bytes of shared memory
    shared_per_sm: int
    warps_per_sm: int
    blocks_per_sm: int


ARCHITECTURES = {
    "sm_80": Architecture(163 * KIB, 164 * KIB, 64, 32),
    "sm_86": Architecture(99 * KIB, 100 * KIB, 48, 16),
    "sm_89": Architecture(99 * KIB, 100 * KIB, 48, 24),
    "sm_90": Architecture(227 * KIB, 228 * KIB, 64, 32),
    "sm_120": Architecture(99 * KIB, 100 * KIB, 48, 24),
}

FP32_FLOPS_PER_SM_CYCLE = 256  # 128 lanes, a multiplication and an addition each, on every card below


class Card(NamedTuple):
    """A GPU's data sheet; FLOPs are dense, of 16-bit numbers accumulated in float32."""

    name: str
    sms: int
    clock_ghz: float  # boost
    bandwidth_gb_s: float  # of memory, 1e9 bytes
    tensor_flops_per_sm_cycle: int

    def peak(self, dtype: str) -> float:
        """Return the FLOP/s of matrix products in ``dtype``, "bf16", "fp16" or "fp32" (without tensor cores)."""
        flops = FP32_FLOPS_PER_SM_CYCLE if dtype == "fp32" else self.tensor_flops_per_sm_cycle
        return self.sms * self.clock_ghz * 1e9 * flops


CARDS = {
    card.name: card
    for card in (
        Card("rtx-3050", 20, 1.777, 224, 512),  # desktop, 8 GB, GA106
        Card("rtx-3050-laptop", 16, 1.5, 192, 512),  # the clock depends on the laptop's power limit
        Card("h100", 132, 1.83, 3350, 4096),  # SXM
    )
}
