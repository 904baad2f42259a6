"""Damage a run's files at random and open them as the commands do, which must give a result or one clear line.

    python -m tests.reliability.fuzz RUN COUNT SEED

RUN is a run with its model.onnx; where a case resumes it, it trains one more step. The program prints a JSON object
with the number of times that each kind of damage was accepted or refused. It exits with 1 at the first other outcome:
another exception, another exit code, more than 10 seconds or 1 GiB of memory.
"""

import contextlib
import io
import json
import os
import random
import re
import resource
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch

from charformer.commands import export, sample, train
from charformer.runs.folder import RunDir
from charformer.runs.tensors import read_metadata, write_tensors
from charformer.sampling.onnx_format import sealed, unsealed

SECONDS = 10
MEMORY = 2**30  # address space beyond that of an undamaged run
COMMANDS = {  # the commands that read a file, the fastest most often
    "config.json": ("sample", "sample", "sample", "train --resume", "train --init-from", "export"),
    "vocab.json": ("sample", "sample", "sample", "train --resume", "train --init-from", "export"),
    "model.safetensors": ("sample", "sample", "sample", "train --resume", "train --init-from", "export"),
    "ngram.safetensors": ("sample", "sample", "export"),
    "last.safetensors": ("train --resume",),
    "metrics.jsonl": ("train --resume",),
    "model.onnx": ("sample --onnx",),
}
FINETUNE = ["--steps", "1", "--batch-size", "2", "--eval-batches", "1"]
BEYOND_MEANING = (b"0", b"-1", b"1e308", b"99999999999999999999", b"null", b"true", b'"x"', b"[]", b"{}", b"NaN")

Damage = Callable[[bytes, random.Random], bytes]


def truncated(content: bytes, r: random.Random) -> bytes:
    return content[: r.randrange(len(content))]


def bits_flipped(content: bytes, r: random.Random) -> bytes:
    damaged = bytearray(content)
    region = r.choice((64, 4096, len(content)))  # headers are where files begin
    for _ in range(r.choice((1, 1, 8))):
        damaged[r.randrange(min(region, len(content)))] ^= 1 << r.randrange(8)
    return bytes(damaged)


def spliced(content: bytes, r: random.Random) -> bytes:
    a, b, c = sorted(r.randrange(len(content)) for _ in range(3))
    return content[:a] + content[b:c] + content[a:b] + content[c:]


def overwritten(content: bytes, r: random.Random) -> bytes:
    start = r.randrange(len(content))
    return content[:start] + r.randbytes(r.randrange(1, 32)) + content[start + r.randrange(32) :]


def grown(content: bytes, r: random.Random) -> bytes:
    return content + r.randbytes(r.choice((1, 100, 10_000)))


def numbers_replaced(content: bytes, r: random.Random) -> bytes:
    """Replace a number in the text, such as a size, with another."""
    places = [place for place in range(min(len(content), 20_000)) if content[place : place + 1].isdigit()]
    if not places:
        return b""
    start = end = r.choice(places)
    while content[end : end + 1].isdigit():
        end += 1
    return content[:start] + r.choice(BEYOND_MEANING) + content[end:]


def tensors_replaced(content: bytes, r: random.Random) -> bytes:
    """Change tensors under a hash that fits; empty any other kind of file."""
    try:
        tensors = safetensors.numpy.load(content)
    except safetensors.SafetensorError:
        return b""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(content)
        metadata = read_metadata(path)
        for _ in range(r.choice((1, 3))):
            name = r.choice(sorted(tensors))
            array = tensors.pop(name)
            fill = r.choice((0, 1e30, float("nan"), float("inf")))
            others = [
                np.atleast_1d(array)[:0],
                array.astype(r.choice(("float64", "float16", "uint8", "bool", "int64"))),
                np.concatenate([array.ravel()] * 3),
                np.full_like(array, fill) if array.dtype.kind == "f" else np.zeros_like(array),
                np.array(1.0, np.float32),
            ]
            tensors[r.choice((name, name, name, name + "x", "optimizer.99.exp_avg"))] = r.choice(others)
        write_tensors(path, tensors, {key: value for key, value in metadata.items() if r.random() < 0.9})
        return path.read_bytes()


def resealed(content: bytes, r: random.Random) -> bytes:
    """Damage an ONNX graph under a hash that fits."""
    try:
        body = unsealed(content)
    except ValueError:
        return b""
    return sealed(r.choice((truncated, bits_flipped, overwritten, numbers_replaced))(body, r))


def deep(content: bytes, r: random.Random) -> bytes:
    """Write endless brackets, which may exceed a parser's recursion limit."""
    place = r.randrange(len(content))
    return content[:place] + r.choice((b"[", b'{"a":')) * 100_000 + content[place:]


def counters_replaced(content: bytes, r: random.Random) -> bytes:
    """Replace a counter of the training in the file's header, which no hash covers."""
    values = (b"0", b"-1", b"2.5", b"1e308", b"null", b"true", b'"x"', b"[]", b"NaN", b"12345678901234567890")
    name = r.choice((b"step", b"characters", b"train_seconds", b"best_val_loss", b"best_step"))
    found = re.search(rb'\\"' + name + rb'\\": ([^,}]*)', content[:100_000])
    if found is None:
        return b""
    length = int.from_bytes(content[:8], "little")
    header = content[8 : found.start(1)] + r.choice(values).replace(b'"', b'\\"') + content[found.end(1) : 8 + length]
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


OF_EACH: tuple[Damage, ...] = (truncated, bits_flipped, spliced, overwritten, grown, numbers_replaced)
DAMAGES: dict[str, tuple[Damage, ...]] = {
    ".json": (*OF_EACH, deep),
    ".jsonl": (*OF_EACH, deep),
    ".safetensors": (*OF_EACH, tensors_replaced, tensors_replaced, tensors_replaced, counters_replaced),
    ".onnx": (*OF_EACH, resealed, resealed, resealed),
}


def main() -> int:
    run, count, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    r = random.Random(seed)
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        copy = RunDir(Path(folder) / "run")
        shutil.copytree(run, copy.path)
        shutil.copyfile(
            json.loads((run / "config.json").read_text("utf-8"))["corpus"]["source"], copy.path.with_name("text.txt")
        )
        _restore(run, copy)
        for name, commands in COMMANDS.items():  # without damage everything must work
            for command in commands:
                if code := _run(command, copy):
                    print(f"undamaged, {command} of {name} gives {code}", file=sys.stderr)
                    return 1
                _restore(run, copy)
        size = int(Path("/proc/self/statm").read_text("utf-8").split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        for number in range(count):
            name = r.choice(sorted(COMMANDS))
            command = r.choice(COMMANDS[name])
            damage = r.choice(DAMAGES[Path(name).suffix])
            whole = (run / name).read_bytes()
            (copy.path / name).write_bytes(damage(whole, r))
            watch = threading.Timer(SECONDS, _hangs, (number, command, name, damage.__name__))
            watch.start()
            try:
                code = _run(command, copy)
            except BaseException:
                traceback.print_exc()
                code = -1
            watch.cancel()
            if code not in (0, 2):
                print(f"number {number}, {command}, {name} {damage.__name__}: {code}", file=sys.stderr)
                return 1
            found[f"{name}, {damage.__name__.replace('_', ' ')}, {'refused' if code else 'accepted'}"] += 1
            _restore(run, copy)
    print(json.dumps(found))
    return 0


def _restore(run: Path, copy: RunDir) -> None:
    for path in copy.path.iterdir():
        if path.name in COMMANDS:
            shutil.copyfile(run / path.name, path)
        else:
            path.unlink()


def _run(command: str, run: RunDir) -> int:
    """Run a command; return its exit code, or let an exception through, which is a failure."""
    here, other = str(run.path), str(run.path.with_name("other"))
    arguments = {
        "sample": ["--run", here, "--max-new-tokens", "3", "--seed", "1"],
        "sample --onnx": ["--onnx", str(run.onnx), "--max-new-tokens", "3", "--seed", "1"],
        "export": ["--run", here],
        "train --resume": ["--resume", "--out", here, "--steps", "7"],
        "train --init-from": ["--stage", "finetune", "--init-from", here, "--out", other, "--overwrite", *FINETUNE],
    }[command]
    arguments += ["--data", str(run.path.with_name("text.txt"))] if command == "train --init-from" else []
    main = {"sample": sample.main, "export": export.main, "train": train.main}[command.partition(" ")[0]]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        code = main(arguments)
    if code == 2 and ("Traceback" in errors.getvalue() or not errors.getvalue().strip()):
        raise AssertionError(f"no clear line: {errors.getvalue()}")
    if code not in (0, 2):
        print(errors.getvalue(), file=sys.stderr)
    return code


def _hangs(number: int, command: str, name: str, damage: str) -> None:
    assert sys.__stderr__ is not None  # sys.stderr belongs to the command at this point
    print(f"number {number}, {command}, {name} {damage}: no end after {SECONDS} s", file=sys.__stderr__)
    sys.__stderr__.flush()
    time.sleep(0.1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
