"""Run the stages of bench.gpu in a process that the first error ends; bench.harness.worker runs this module."""

import importlib
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.gpu_stages.visit import Row, Visit
from bench.harness import results
from charformer.device import synchronize
from kernels import backend

ABOUT_TRITON = ("accuracy", "compiling", "memcheck", "block_sizes")  # the stages that need it


def handler(device: str, out: str, data: str) -> Callable[..., dict[str, Any]]:
    """Return a function that runs a stage on "STAGE SECONDS", writes its result file, and answers {line, rows}."""

    def answer(stage: str, seconds: str) -> dict[str, Any]:
        if device == "cpu":
            os.environ["TRITON_INTERPRET"] = "1"  # of the processes that stages start
        visit = Visit(torch.device(device), Path(out), data, float(seconds))
        rows: list[Row] = []
        facts: dict[str, Any] = {"status": "unfinished"}

        def write() -> None:
            content = results.result(f"gpu-{stage}", {"device": device, "seconds": visit.seconds}, rows)
            took = time.monotonic() - visit.began
            results.write_result(visit.out / f"{stage}.json", content | facts | {"took_seconds": took})

        def collect() -> str:
            """Run the stage, write its rows once a second, and return its line."""
            if stage in ABOUT_TRITON and not backend.TRITON:
                rows.append(results.row(part=stage, note="Triton is not installed"))
                return "Triton is not installed"
            running = importlib.import_module(f"bench.gpu_stages.{stage}").run(visit)
            written = 0.0
            while True:
                try:
                    rows.append(results.row(**next(running)))
                except StopIteration as end:
                    return str(end.value)
                if time.monotonic() - written > 1:
                    write()
                    written = time.monotonic()

        write()
        try:
            line = collect()
            synchronize(visit.device)  # so that a GPU fault counts against this stage, not the next
            facts = {"status": "done", "line": line}
        except Exception as error:
            facts = {"status": "failed", "line": str(error), "traceback": traceback.format_exc().splitlines()}
            raise
        finally:
            write()
        errors = sum(isinstance(row.get("error"), str) for row in rows)
        return {"line": line + (f"; {errors} rows are errors" if errors else ""), "rows": len(rows)}

    return answer
