"""Train with two processes that are forked from one that has already imported PyTorch, as torchrun starts them.

Reads charformer-train's flags and variables of the environment, as JSON, from each line of its input; answers with a
JSON list of the exit code, the output and the errors of each process.
"""

import json
import os
import socket
import sys
import tempfile
from pathlib import Path

import torch
import torch._dynamo  # which every optimizer imports

from charformer.commands import train, train_run  # noqa: F401 - train_run is imported before the forks, once

SIZE = 2


def main() -> None:
    torch.set_num_threads(1)  # threads do not survive a fork
    for line in sys.stdin:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(_trained(*json.loads(line), Path(folder))), flush=True)


def _trained(flags: list[str], variables: dict[str, str], folder: Path) -> list[tuple[int, str, str]]:
    """Train with ``flags`` in two processes, whose streams are files in ``folder``, and return what main prints."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(SIZE),
        "LOCAL_WORLD_SIZE": str(SIZE),
    }
    shared |= {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_RESTART_COUNT": "0"}
    shared |= variables
    forked = []
    for rank in range(SIZE):
        files = folder / f"{rank}.out", folder / f"{rank}.err"
        if not (pid := os.fork()):
            os.environ.update(shared, RANK=str(rank), LOCAL_RANK=str(rank))
            _end_with(flags, files)
        forked.append((pid, files))
    return [
        (os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), out.read_text("utf-8"), errors.read_text("utf-8"))
        for pid, (out, errors) in forked
    ]


def _end_with(flags: list[str], files: tuple[Path, Path]) -> None:
    """Train in this process with its streams in ``files``, and end it."""
    code = 70
    try:
        for number, path in enumerate(files, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
        code = train.main(flags)
        sys.stdout.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
