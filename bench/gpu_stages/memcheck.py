"""Call our kernels under compute-sanitizer's memcheck, where that is installed.

python -m bench.gpu_stages.memcheck calls them, forward and backward: some 25 calls on a GPU, two in the interpreter.
"""

import shutil
import sys

import torch

from bench.gpu_stages.visit import Stage, Visit
from kernels import backend
from kernels.checks.cases import SEED, Case, make_inputs, op
from kernels.checks.cases import run as run_case

TOOL = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9"]


def run(visit: Visit) -> Stage:
    """Yield the tool's output. Raise RuntimeError if it finds an error."""
    if visit.on_gpu and shutil.which(TOOL[0]) is None:
        yield {"part": "memcheck", "note": "compute-sanitizer is not installed"}
        return "compute-sanitizer is not installed"
    command = [*(TOOL if visit.on_gpu else ()), sys.executable, "-m", "bench.gpu_stages.memcheck"]
    return (yield from visit.report("memcheck", command, PYTORCH_NO_CUDA_MEMORY_CACHING="1"))


def main() -> None:
    """Run the calls and print how many there were."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wanted = chosen() if device.type == "cuda" else chosen()[-2:]
    for case in wanted:
        with backend.force("triton"):
            run_case(op(case, torch.tensor([SEED], device=device)), case, make_inputs(case, device))
    if device.type == "cuda":
        torch.cuda.synchronize()
    print(f"{len(wanted)} calls")


def chosen() -> list[Case]:
    """Return cases with ragged edges, unaligned rows and each kind of width, the smallest last."""
    bf16, fp32 = torch.bfloat16, torch.float32
    found = [Case("attention", bf16, 100, width, 0.2, "plain") for width in (16, 32, 64, 96, 128)]
    found += [Case("attention", bf16, 33, width, 0.0, "packed") for width in (64, 128)]
    found += [Case("attention", bf16, 37, width, 0.2, "odd") for width in (20, 64)]
    found += [Case("attention", fp32, 33, width, 0.2, "packed") for width in (48, 64)]
    found += [Case("cross_entropy", bf16, time, width, batch=1) for time, width in ((33, 65), (5, 5000), (16, 96))]
    for width in (384, 383, 2048, 35):
        found += [Case("add_dropout_layer_norm", bf16, 7, width, p) for p in (0.0, 0.2)]
        found.append(Case("layer_norm", bf16, 7, width, variant="narrow"))
    return found


if __name__ == "__main__":
    main()
