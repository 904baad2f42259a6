"""Run the commands: as a user does, or in this process, which has already imported PyTorch."""

import contextlib
import importlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from charformer.commands import export, sample, train

BIN = Path(sys.executable).parent
MAINS = {"charformer-train": train.main, "charformer-sample": sample.main, "charformer-export": export.main}


def run(
    *command: str | Path, cwd: Path, stdin: str = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run an installed command in a process of its own."""
    program, *arguments = map(str, command)
    return subprocess.run(
        [BIN / program, *arguments],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"COLUMNS": "100"} | (env or {}),
        timeout=240,
    )


def call(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the main function of a command, or of a module such as bench.freeze, in this process."""
    program, *arguments = map(str, command)
    main = MAINS.get(program) or importlib.import_module(program).main
    out, errors = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("COLUMNS", "100")
        try:
            code = main(arguments)
        except SystemExit as leaving:  # argparse's own way
            code = int(leaving.code or 0)
    return subprocess.CompletedProcess([program, *arguments], code, out.getvalue(), errors.getvalue())
