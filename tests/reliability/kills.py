"""Kill a training at random moments, and check that it continues as if nothing had happened.

    python -m tests.reliability.kills --count 200 --json bench/results/kills.json

Half of the kills come at a random time, half within 2 ms after a random file operation of a save. Every training is
`charformer-train` itself, in a process forked from this one, which has already imported it. POSIX only.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # which every optimizer imports, so that no fork has to
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.harness import results
from charformer.commands import train, train_run  # noqa: F401 - train_run is imported before the forks, once
from charformer.commands.common import Parser, execute
from charformer.data import sources
from charformer.errors import UserError
from charformer.runs.folder import RunDir
from charformer.runs.tensors import read_tensors
from kernels.checks.cli import positive, writable_file

FLAGS = "--n-layer 2 --n-head 2 --n-embd 32 --block-size 32 --batch-size 4 --dropout 0.1 --attention-dropout 0.1"
FLAGS += " --steps 24 --eval-interval 4 --save-interval 3 --eval-batches 1 --dtype float32 --preset nano"
OPERATIONS = ("open", "os.rename", "os.remove")
BEHIND = 0.002  # seconds within which a kill follows its file operation

Found = dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    """Run the program; return its exit code, which is 1 if a kill did harm."""
    parser = Parser("tests.reliability.kills", __doc__.partition("\n")[0], "")
    parser.add_argument("--count", type=positive, default=200, metavar="N", help="kills (default: 200)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the moments (default: 0)")
    parser.add_argument("--json", type=writable_file, metavar="FILE", help="write the result to this file")
    return execute(parser, argv, _run)


def _run(args: argparse.Namespace) -> int:
    if not hasattr(os, "fork"):
        raise UserError("this bench forks its trainings, which Windows cannot")
    torch.set_num_threads(1)  # threads do not survive a fork
    moments = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ["XDG_CACHE_HOME"] = str(home / "cache")
        data = home / "text.txt"
        data.write_text(sources.python_docs()[:20_000], encoding="utf-8", newline="")
        flags = [*FLAGS.split(), "--data", str(data)]
        _finish(flags, home / "warm")  # fills the cache of encoded texts
        began = time.monotonic()
        operations = _finish(flags, home / "whole")
        seconds = time.monotonic() - began
        wanted = _content(RunDir(home / "whole"))
        kinds: dict[str, Counter[str]] = {"at a time": Counter(), "in a save": Counter()}
        for number in track(range(args.count), "killing", console=Console(stderr=True)):
            kind = list(kinds)[number % 2]
            run = RunDir(home / str(number))
            if kind == "at a time":
                code = _kill_after(flags, run.path, moments.uniform(0, seconds))
            else:
                code = _kill_behind(flags, run.path, moments.randrange(operations), moments.uniform(0, BEHIND))
            kinds[kind][_aftermath(code, flags, run, wanted)] += 1
    rows = [
        results.row(engine="charformer", preset="nano", precision="float32", threads=1, kind=kind, **found)
        for kind, found in kinds.items()
    ]
    _print(kinds)
    if args.json:
        config = {"count": args.count, "seed": args.seed, "course": FLAGS, "file_operations": operations}
        results.write_result(args.json, results.result("kills", config, rows))
    fine = {"identical", "nothing saved", "ended before"}
    return int(any(set(found) - fine for found in kinds.values()))


def _aftermath(code: int, flags: list[str], run: RunDir, wanted: Found) -> str:
    """Return the verdict on a killed run, which must report that nothing was saved, or resume and end like ``whole``.

    ``code`` is the exit code of its process.
    """
    if code == 0:  # too late for this one
        return "ended before"
    if code != -signal.SIGKILL:
        return f"harm: ended by itself with {code}"
    try:
        return _compared(flags, run, wanted)
    except (UserError, OSError) as error:
        return f"harm: {error}"


def _compared(flags: list[str], run: RunDir, wanted: Found) -> str:
    began = run.exists and run.state.exists()
    code = _forked(lambda: train.main(["--resume", "--out", str(run.path)]))
    if not began:  # there is nothing to continue from, and it reports that
        again = _forked(lambda: train.main([*flags, "--out", str(run.path), "--overwrite"]))
        return "nothing saved" if (code, again) == (2, 0) and _content(run) == wanted else "harm: no fresh start"
    if code != 0:
        return f"harm: resuming ends with {code}"
    found = _content(run)
    if different := [name for name, value in wanted.items() if found[name] != value]:
        return f"harm: other {', '.join(different)}"
    return "identical"


def _content(run: RunDir) -> Found:
    """Return the content of a finished run without its times. Raise UserError for a damaged run."""
    state, notes = read_tensors(run.state)
    counters = {key: value for key, value in json.loads(notes["counters"]).items() if not key.endswith("_seconds")}
    curve = [
        {key: row[key] for key in ("step", "characters", "train_loss", "val_loss", "learning_rate")}
        for row in run.read_metrics()
    ]
    return {
        "files": sorted(path.name for path in run.path.iterdir()),
        "weights": run.weights_sha256(),
        "state": {name: array.tobytes() for name, array in state.items()},
        "counters": counters,
        "curve": curve,
        "sample": run.sample.read_text("utf-8"),
    }


def _finish(flags: list[str], folder: Path) -> int:
    """Train without a kill; return the number of file operations in ``folder``."""
    counted = folder.with_suffix(".count")

    def child() -> int:
        number = _on_operation(folder, lambda _: None)
        code = train.main([*flags, "--out", str(folder)])
        counted.write_text(str(number()), encoding="utf-8")
        return code

    if code := _forked(child):
        raise UserError(f"a training that nobody disturbed ended with {code}")
    return int(counted.read_text("utf-8"))


def _kill_after(flags: list[str], folder: Path, seconds: float) -> int:
    """Train in a process that the parent kills after some time; return its exit code."""
    pid = _fork(lambda: train.main([*flags, "--out", str(folder)]))
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)  # a process that has ended but was not awaited accepts it too
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _kill_behind(flags: list[str], folder: Path, operation: int, seconds: float) -> int:
    """Train in a process that kills itself soon after a file operation; return its exit code."""

    def child() -> int:
        def arm(number: int) -> None:
            if number == operation:
                threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()

        _on_operation(folder, arm)
        return train.main([*flags, "--out", str(folder)])

    return _forked(child)


def _on_operation(folder: Path, act: Callable[[int], None]) -> Callable[[], int]:
    """Call ``act`` with the number of each file operation in ``folder`` from now on; return their counter."""
    prefix, count = str(folder), 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event in OPERATIONS and str(arguments[0]).startswith(prefix):
            count += 1
            act(count - 1)

    sys.addaudithook(hook)
    return lambda: count


def _forked(child: Callable[[], int]) -> int:
    """Run ``child`` in a process of its own; return its result, or the negative number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(_fork(child), 0)[1])


def _fork(child: Callable[[], int]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        code = child()
    finally:
        os._exit(code)


def _print(kinds: dict[str, Counter[str]]) -> None:
    table = Table("killed", "what became of it", box=SIMPLE_HEAD)
    table.add_column("times", justify="right")
    for kind, found in kinds.items():
        for what, times in sorted(found.items()):
            table.add_row(kind, what, str(times))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
