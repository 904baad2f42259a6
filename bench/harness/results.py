"""The result file of a bench: the machine and the versions that it was measured with, its rows, and its JSON."""

import json
import os
import platform
import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch

from charformer.device import total_memory
from charformer.errors import UserError
from charformer.files import make_folder, write_text

SCHEMA = 1
LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")  # variables that limit the instructions of PyTorch and oneDNN
SHORT = {"float32": "fp32", "bfloat16": "bf16"}
# The keys of every row; a value is null where it does not apply.
ROW: tuple[str, ...] = ("engine", "preset", "precision", "batch", "context", "threads", "freeze")
ROW += ("chars_per_second", "samples", "peak_memory_bytes", "mfu", "parts")
PACKAGES = ("charformer", "torch", "numpy", "triton", "onnx", "onnxruntime-gpu", "onnxruntime")


def machine() -> dict[str, Any]:
    """Return the facts about this machine that figures depend on."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_bytes": total_memory(torch.device("cpu")),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "os": platform.platform(),
        "limits": {name: os.environ[name] for name in LIMITS if name in os.environ},
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that matter, where they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Return the commit of this checkout, with "+" if tracked files differ, or None outside a checkout."""
    if shutil.which("git") is None:
        return None
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    described = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, encoding="utf-8")
    return described.stdout.strip() or None


class Speed(TypedDict):
    """The percentiles of a speed's samples."""

    p20: float
    p50: float
    p80: float


def percentiles(samples: list[float]) -> Speed:
    """Return the 20th, 50th and 80th percentile of one sample or more."""
    p20, p50, p80 = np.percentile(samples, [20, 50, 80])
    return {"p20": float(p20), "p50": float(p50), "p80": float(p80)}


def label(row: dict[str, Any]) -> str:
    """Return the name of a row's variant in tables and charts."""
    words = ["matrix products alone" if row["engine"] == "matmuls" else row["engine"]]
    words += [SHORT.get(row["precision"], row["precision"])] if row["precision"] else []
    words += ["compiled"] if row.get("compiled") else []
    words += [f"--freeze {row['freeze']}"] if row["freeze"] not in (None, "none") else []
    words += ["speculative"] if row.get("speculative") else []
    details = [f"temperature {row['temperature']:g}"] if row.get("temperature", 1) != 1 else []
    details += [f"batch {row['batch']}, threads {row['threads']}"] if row.get("part") == "grid" else []
    details += [f"{row['batch']} x {row['context']}"] if row.get("part") == "memory" else []
    details += [f"{row['axis']} {row['value']}"] if "axis" in row else []
    details += [f"threads {row['threads']}, {'beside' if row['busy'] else 'alone'}"] if "busy" in row else []
    details += [
        f"{key} {row[key]}" for key in ("seed", "without", "variant", "processes", "text", "work") if key in row
    ]
    if "changes" in row:
        details += [f"{key} {value:g}" for key, value in row["changes"].items()]
    return ", ".join([" ".join(words), *details])


def ratio(row: dict[str, Any], other: dict[str, Any]) -> float | None:
    """Return the median ratio of two rows' speeds, turn by turn, which holds when the machine's speed drifts.

    Only the turns that both had count; return None if there are none.
    """
    pairs = list(zip(row.get("turns", ()), other.get("turns", ()), strict=False))
    return float(np.median([a / b for a, b in pairs])) if pairs else None


def result(bench: str, config: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the content of a result file."""
    return {
        "schema": SCHEMA,
        "bench": bench,
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
        "config": config,
        "rows": rows,
    }


def row(**given: Any) -> dict[str, Any]:
    """Return a row of a result file: the values ``given``, and null for the other keys of ``ROW``."""
    return dict.fromkeys(ROW) | given


def read_result(path: Path) -> dict[str, Any]:
    """Return the content of a file that ``write_result`` wrote. Raise UserError for another, OSError for none."""
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
        if content["schema"] == SCHEMA and all(set(ROW) <= set(row) for row in content["rows"]):
            return content
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{path} is not the result of a bench of schema {SCHEMA}; measure again")


def write_result(path: Path, content: dict[str, Any]) -> None:
    """Write a result file atomically, in the layout of ``to_text``."""
    make_folder(path.parent)
    write_text(path, to_text(content))


def to_text(content: dict[str, Any]) -> str:
    """Return JSON with one line for each entry of ``content``, and one for each row of a list of rows.

    Floats are rounded to seven significant digits, as many as float32 has.
    """
    rounded = json.loads(json.dumps(content), parse_float=lambda text: float(f"{float(text):.7g}"))
    entries = []
    for key, value in rounded.items():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            rows = ",\n".join(f"  {json.dumps(item)}" for item in value)
            entries.append(f" {json.dumps(key)}: [\n{rows}\n ]")
        else:
            entries.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(entries) + "\n}\n"


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.+)", cpuinfo.read_text("utf-8")) if cpuinfo.is_file() else None
    return named[1] if named else platform.processor() or platform.machine()
