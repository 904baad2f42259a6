"""Record the card, its driver, and its measured peaks in copies and in bf16 matrix products."""

import shutil
import subprocess

import torch

from bench.gpu_stages.visit import Stage, Visit
from bench.harness.results import percentiles
from bench.harness.timing import cold_seconds

MATMUL_SIZE = 8192
COPY_BYTES = 2**30
QUERY = "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit,ecc.mode.current,mig.mode.current"


def run(visit: Visit) -> Stage:
    """Yield the facts about the card, and its peaks on random data."""
    yield {"part": "card", **card(visit.device)}
    size, copied = (MATMUL_SIZE, COPY_BYTES) if visit.on_gpu else (256, 2**20)
    matrix = torch.randn(size, size, device=visit.device).bfloat16()
    source = torch.randint(256, (copied,), dtype=torch.uint8, device=visit.device)
    target = torch.empty_like(source)
    rounds = 20
    copies = cold_seconds(lambda: target.copy_(source), rounds, visit.device)
    matmuls = cold_seconds(lambda: matrix @ matrix, rounds, visit.device)
    bandwidth = percentiles([2 * copied / seconds for seconds in copies])
    flops = percentiles([2 * size**3 / seconds for seconds in matmuls])
    yield {"part": "ceilings", "copy_bytes_per_second": bandwidth, "matmul_flops_per_second": flops, "samples": rounds}
    return f"{bandwidth['p50'] / 1e9:,.0f} GB/s of copies, {flops['p50'] / 1e12:,.1f} TFLOP/s of bf16 matrix products"


def card(device: torch.device) -> dict[str, object]:
    """Return what the driver and PyTorch report about the card."""
    if device.type != "cuda":
        return {"card": None, "note": "a rehearsal on a CPU"}
    properties = torch.cuda.get_device_properties(device)
    found: dict[str, object] = {
        "card": properties.name,
        "capability": f"sm_{properties.major}{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=20)
        found["nvidia_smi"] = dict(zip(QUERY.split(","), done.stdout.strip().split(", "), strict=False))
    return found
