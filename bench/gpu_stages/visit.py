"""The input and the output of a stage of bench.gpu.

A stage is a module with ``run(visit)``, a generator that yields rows and returns one line for the user. Rows are
written as they arrive, so that a stage that is cut off leaves those it has.
"""

import json
import os
import subprocess
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.engines.variant import Variant
from bench.harness.interleave import ROOT
from charformer.config import ModelConfig
from charformer.presets import PRESETS

Row = dict[str, Any]
Stage = Generator[Row, None, str]

TINY = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 32}  # the models of a rehearsal
PRESETS_TIMED = ("baseline", "fast")
VOCABULARY = 65  # the distinct characters of Tiny Shakespeare
LAST_LINES = 40  # of a command's output, which a row keeps


@dataclass(frozen=True)
class Visit:
    """The settings of one stage, on a GPU or in a rehearsal on a CPU with small shapes.

    Attributes:
        out: the folder for the results.
        data: the text to train on, a file or a name.
        seconds: the time that the stage may take before it is ended.
    """

    device: torch.device
    out: Path
    data: str
    seconds: float
    began: float = field(default_factory=time.monotonic)

    @property
    def on_gpu(self) -> bool:
        """Return whether the stage runs on a GPU; otherwise its shapes are small."""
        return self.device.type == "cuda"

    @property
    def left(self) -> float:
        """Return the seconds that the stage has left."""
        return self.began + self.seconds - time.monotonic()

    def variant(self, preset: str, engine: str, vocab_size: int) -> Variant:
        """Return the variant for an engine: the preset's model and batch in bf16 or, in a rehearsal, tiny ones."""
        chosen = PRESETS[preset]
        given = chosen.model.to_dict() | {"vocab_size": vocab_size, "ngram_order": 0} | ({} if self.on_gpu else TINY)
        batch = chosen.pretrain.batch_size if self.on_gpu else 2
        return Variant(engine, preset, ModelConfig.from_dict(given), batch, "bfloat16")

    def run(self, command: list[str], **environment: str) -> "subprocess.CompletedProcess[str]":
        """Run a command for at most the time that is left. Raise RuntimeError if it takes longer."""
        limits: dict[str, Any] = {"env": os.environ | environment, "timeout": max(1.0, self.left - 1)}
        try:
            return subprocess.run(command, capture_output=True, encoding="utf-8", cwd=ROOT, **limits)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"{' '.join(command[:4])} took longer than the stage's time") from error

    def report(self, part: str, command: list[str], **environment: str) -> Stage:
        """Run a command, yield its last lines, and return the last one. Raise RuntimeError if it fails."""
        done = self.run(command, **environment)
        said = done.stdout + done.stderr if done.returncode else done.stderr + done.stdout
        lines = said.strip().splitlines() or ["it printed nothing"]
        yield {"part": part, "exit_code": done.returncode, "said": lines[-LAST_LINES:]}
        if done.returncode:
            raise RuntimeError(f"exit code {done.returncode}: {lines[-1]}")
        return lines[-1]

    def found(self, stage: str, part: str) -> Row:
        """Return the first row of a part of an earlier stage, or an empty row if there is none."""
        path = self.out / f"{stage}.json"
        rows = json.loads(path.read_text("utf-8"))["rows"] if path.is_file() else []
        return next((row for row in rows if row.get("part") == part), {})
