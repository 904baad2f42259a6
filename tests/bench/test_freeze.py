"""Run bench.freeze as a user does, on a short text."""

import json
import os
import subprocess
import sys
from pathlib import Path

from charformer.runs.folder import RunDir
from tests.commands import call

COMMAND = ["--preset", "nano", "--steps", "2"]


def bench(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.freeze", *COMMAND, "--runs", str(folder / "runs")]
    return subprocess.run(
        [*command, *flags], capture_output=True, encoding="utf-8", env=os.environ | {"COLUMNS": "120"}
    )


def test_every_variant_has_its_row_and_other_settings_are_refused(english: str, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(english[:16_000], encoding="utf-8")
    result = tmp_path / "result.json"
    flags = ["--finetune-steps", "3", "--eval-interval", "1"]
    flags += ["--pretrain-data", str(text), "--finetune-data", str(text)]
    shown = bench(tmp_path, *flags, "--json", str(result))
    assert shown.returncode == 0, shown.stderr
    content = json.loads(result.read_text("utf-8"))
    rows = content["rows"]
    assert (content["schema"], content["bench"]) == (1, "freeze")
    assert [(row["stage"], row["freeze"]) for row in rows] == [
        ("pretrain", "none"), ("finetune", "none"), ("finetune", "attention"), ("finetune", "trunk"),
        ("finetune", "all"),
    ]  # fmt: skip
    assert [point["step"] for point in rows[-1]["curve"]] == [0]
    assert (rows[-1]["summary"]["steps"], rows[-1]["summary"]["trainable"]) == (0, 0)
    for row in rows[:-1]:
        assert [point["step"] for point in row["curve"]] == list(range(3 if row["stage"] == "pretrain" else 4))
        assert row["samples"] == len(row["curve"]) - 2, "without the first, in which steps warm up"
        assert row["chars_per_second"]["p20"] <= row["chars_per_second"]["p80"]
        assert row["peak_memory_bytes"] > 50e6
        assert row["summary"]["steps"] == row["curve"][-1]["step"]
    trainable = [row["summary"]["trainable"] for row in rows]
    assert trainable[1] > trainable[2] > trainable[3]
    assert RunDir(tmp_path / "runs" / "trunk").read_section("training")["seed"] == 1337
    for change in (
        ["--eval-interval", "2"],
        ["--seed", "2"],
        ["--preset", "baseline"],
        ["--pretrain-data", "python-docs"],
    ):
        other = call("bench.freeze", *COMMAND, "--runs", tmp_path / "runs", *flags, *change, cwd=tmp_path)
        assert other.returncode == 2
        assert "was trained with other settings" in other.stderr
