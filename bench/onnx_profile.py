"""Show where the time of a run of the ONNX graph goes, operator by operator, with ONNX Runtime's own profiler.

    python -m bench.onnx_profile model.onnx --json bench/results/onnx-profile.json

The profiler itself costs about two microseconds a node, so read the shares rather than the times.
"""

import argparse
import json
import os
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort

from bench.harness import results
from bench.harness.program import BenchParser, execute, keep, print_table
from charformer.errors import UserError
from charformer.sampling.onnx_engine import SharedCache
from charformer.sampling.onnx_format import Description, read_metadata, unsealed
from charformer.sampling.speculation import PROPOSALS

ROUNDS = 4
CHARACTERS = 256  # of each text
SHAPES = (1, PROPOSALS + 1)  # characters a run: plain sampling, and speculation


def main(argv: list[str] | None = None) -> int:
    parser = BenchParser("onnx_profile", __doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="a file of charformer-export without --portable")
    return execute(parser, argv, _run)


def _run(args: argparse.Namespace) -> int:
    try:
        content = unsealed(args.file.read_bytes())
        description = Description.from_metadata(read_metadata(content))
    except (ValueError, UserError) as error:
        raise UserError(f"cannot use {args.file}: {error}") from error
    rows = [row for time in SHAPES for row in _profile(content, description, time)]
    columns = {"characters a run": "{characters_a_run:}", "operator": "{operator}", "nodes": "{nodes:}"}
    print_table(None, rows, columns | {"us a run": "{microseconds:.1f}", "share": "{share:.0%}"})
    config = {"precision": description.precision, "model": description.config.to_dict()}
    keep(args, config | {"characters": CHARACTERS, "threads": 1}, rows)
    return 0


def _profile(content: bytes, description: Description, time: int) -> list[dict[str, Any]]:
    """Return the microseconds of each operator in a run of ``time`` characters, averaged over a text's positions."""
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        cache = SharedCache(session, 1, description.config, "cpu")
        last = min(CHARACTERS, description.config.block_size) - time
        for _ in range(ROUNDS):
            for place in range(0, last + 1, time):
                cache.run(np.zeros((1, time), np.int64), place)
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    runs = ROUNDS * len(range(0, last + 1, time))
    spent: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]].append(event["dur"])
    total = sum(map(sum, spent.values()))
    rows = [
        results.row(
            engine="charformer-onnx",
            precision=description.precision,
            threads=1,
            characters_a_run=time,
            operator=operator,
            nodes=round(len(durations) / runs),
            microseconds=sum(durations) / runs,
            share=sum(durations) / total,
        )
        for operator, durations in spent.items()
    ]
    return sorted(rows, key=lambda row: -row["share"])


if __name__ == "__main__":
    raise SystemExit(main())
