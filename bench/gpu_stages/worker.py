"""The stages of bench.gpu in a process that an error of one of them ends; what bench.harness.worker runs."""

import importlib
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.gpu_stages.visit import Row, Visit
from bench.harness import results


def handler(device: str, out: str, data: str) -> Callable[..., dict[str, Any]]:
    """Return what answers "STAGE SECONDS" with {line, rows}, behind the stage's result file."""

    def answer(stage: str, seconds: str) -> dict[str, Any]:
        visit = Visit(torch.device(device), Path(out), Path(data), float(seconds))
        rows: list[Row] = []
        facts: dict[str, Any] = {"status": "unfinished"}

        def write() -> None:
            content = results.result(f"gpu-{stage}", {"device": device, "seconds": visit.seconds}, rows)
            took = time.monotonic() - visit.began
            results.write_result(visit.out / f"{stage}.json", content | facts | {"took_seconds": took})

        write()
        running = importlib.import_module(f"bench.gpu_stages.{stage}").run(visit)
        written = 0.0
        try:
            while True:
                rows.append(results.row(**next(running)))
                if time.monotonic() - written > 1:
                    write()
                    written = time.monotonic()
        except StopIteration as end:
            facts = {"status": "done", "line": end.value}
        except Exception as error:
            facts = {"status": "failed", "line": str(error), "traceback": traceback.format_exc().splitlines()}
            raise
        finally:
            write()
        return {"line": facts["line"], "rows": len(rows)}

    return answer
