"""Run the commands as a user does: in a process of its own wherever a process makes a difference."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest
import safetensors.numpy

from tests.commands import BIN, call, run
from tests.conftest import TINY

FLAGS = [*TINY, "--eval-interval", "20"]


def test_pretrain_fine_tune_and_sample(text_file: Path, tmp_path: Path) -> None:
    first = run("charformer-train", "--data", text_file, "--steps", "40", *FLAGS, "--json", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    summary = json.loads(first.stdout.splitlines()[-1])
    assert summary["steps"] == 40
    assert summary["characters"] == 40 * 8 * 24
    assert summary["frozen"] == 0
    assert summary["out"] == str(Path("runs/pretrain"))
    assert summary["corpus"]["name"] == "docs.txt"
    assert 2 < summary["val_loss"] < 3.6
    assert {"best_step", "train_seconds", "eval_seconds", "trainable"} <= summary.keys()
    folder = tmp_path / "runs" / "pretrain"
    files = {"config.json", "vocab.json", "model.safetensors", "last.safetensors", "metrics.jsonl", "loss.png"}
    assert {path.name for path in folder.iterdir()} == files | {"sample.txt", "README.md"}
    assert len((folder / "sample.txt").read_text("utf-8")) == 501

    second_text = tmp_path / "second.txt"
    second_text.write_text("Élan, naïveté, façade! " * 200, encoding="utf-8")
    second = run(
        "charformer-train", "--stage", "finetune", "--freeze", "--data", second_text, "--steps", "20",
        "--eval-interval", "10", "--json", cwd=tmp_path,
    )  # fmt: skip
    assert second.returncode == 0, second.stderr
    assert "are frozen (attention)" in second.stdout
    assert "fine-tuning" in second.stdout
    tuned = json.loads(second.stdout.splitlines()[-1])
    assert tuned["frozen"] == 2 * (32 * 96 + 32 * 32 + 32)
    widths = [
        matplotlib.image.imread(tmp_path / "runs" / name / "loss.png").shape[1] for name in ("pretrain", "finetune")
    ]
    assert widths[1] == 2 * widths[0]  # a panel for each stage
    config = json.loads((tmp_path / "runs" / "finetune" / "config.json").read_text("utf-8"))
    assert (config["stage"], config["freeze"], config["preset"]) == ("finetune", "attention", "nano")
    assert config["corpus"]["sha256"] == tuned["corpus"]["sha256"]
    before = safetensors.numpy.load_file(folder / "model.safetensors")
    after = safetensors.numpy.load_file(tmp_path / "runs" / "finetune" / "model.safetensors")
    for name in before:
        if ".attn." in name:
            assert (before[name] == after[name]).all(), name
    assert len(after["head.bias"]) > len(before["head.bias"])

    sampled = run("charformer-sample", "--prompt", "Élan", "--max-new-tokens", "60", cwd=tmp_path)
    assert sampled.returncode == 0, sampled.stderr
    assert sampled.stdout.startswith("Élan")
    assert len(sampled.stdout) == 64
    assert sampled.stderr.startswith(f"{Path('runs/finetune')} (")
    assert ", the newest of 2 runs), float32, seed " in sampled.stderr
    seed = sampled.stderr.split()[-1]
    again = call("charformer-sample", "--prompt", "Élan", "--max-new-tokens", "60", "--seed", seed, cwd=tmp_path)
    assert again.stdout == sampled.stdout


def test_without_network_the_stand_ins_serve_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    first = call("charformer-train", "--steps", "2", *TINY, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "Using shakespeare-plays instead" in first.stderr
    second = call("charformer-train", "--stage", "finetune", "--steps", "2", cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    assert "Using python-docs instead" in second.stderr
    for stage, name in (("pretrain", "shakespeare-plays"), ("finetune", "python-docs")):
        recorded = json.loads((tmp_path / "runs" / stage / "config.json").read_text("utf-8"))["corpus"]
        assert recorded["name"] == name
        assert len(recorded["sha256"]) == 64
    asked = call("charformer-train", "--data", "tiny-shakespeare", "--out", "other", cwd=tmp_path)
    assert asked.returncode == 2
    assert "cannot download" in asked.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_saves_and_resume_continues(name: str, text_file: Path, tmp_path: Path) -> None:
    number = getattr(signal, name)
    steps = ["--steps", "100000", "--eval-interval", "50"]
    command = [BIN / "charformer-train", "--data", text_file, *TINY, *steps]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # the parent of pytest may ignore it
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if line.startswith("step 50/"):
                break
        process.send_signal(number)
        process.stdout.read()
        said = process.stderr.read()
    assert process.returncode == 128 + number
    assert "\nstopping after this step; once more leaves at once\n" in said
    assert said.count("\n") == 3, "and before them a warning that so many steps do not suit so short a text"
    assert "charformer-train --stage pretrain --resume --out" in said
    stopped_at = int(said.partition("after step ")[2].partition(";")[0].replace(",", ""))
    assert stopped_at >= 50
    card = (tmp_path / "runs" / "pretrain" / "README.md").read_text("utf-8")
    assert "| validation, estimated | " in card
    assert "## A sample" not in card  # the end of the training brings it
    total = stopped_at + 30
    resumed = call("charformer-train", "--resume", "--steps", str(total), "--json", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout.splitlines()[-1])["steps"] == total
    rows = (tmp_path / "runs" / "pretrain" / "metrics.jsonl").read_text("utf-8").splitlines()
    seen = [json.loads(row)["step"] for row in rows]
    assert seen == [*range(0, total, 50), total]


def test_an_existing_run_is_kept_unless_told_otherwise(trained_run: Path, text_file: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in trained_run.iterdir()}
    shown = call("charformer-train", "--data", text_file, "--out", trained_run, cwd=tmp_path)
    assert shown.returncode == 2
    assert "--resume continues it, --overwrite replaces it" in shown.stderr
    assert {path.name: path.read_bytes() for path in trained_run.iterdir()} == before


def sample(trained_run: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return call("charformer-sample", "--run", trained_run, "--seed", "5", *flags, cwd=trained_run)


def test_sampling_from_standard_input_past_the_context(trained_run: Path) -> None:
    prompt = "Assert statements are a convenient way\nto insert\n"
    flags = ["--run", trained_run, "--prompt-file", "-", "--max-new-tokens", "100"]
    shown = run("charformer-sample", *flags, cwd=trained_run, stdin=prompt)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith(prompt)
    assert len(shown.stdout) == len(prompt) + 100


def test_sampling_json_and_several_samples(trained_run: Path) -> None:
    shown = sample(trained_run, "--num-samples", "3", "--max-new-tokens", "40", "--json", "--prompt", "The ")
    document = json.loads(shown.stdout)
    assert shown.stdout.count("\n") == 1
    assert document["prompt"] == "The "
    assert document["seed"] == 5
    assert [len(text) for text in document["samples"]] == [40, 40, 40]
    assert len(set(document["samples"])) == 3
    plain = sample(trained_run, "--num-samples", "3", "--max-new-tokens", "40", "--prompt", "The ")
    assert plain.stdout.split("\n---\n") == ["The " + text for text in document["samples"]]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--max-new-tokens", "0", "--prompt", "The "], "The "),
        (["--max-new-tokens", "0"], "\n"),
        (["--max-new-tokens", "0", "--prompt", ""], "\n"),
    ],
)
def test_no_characters_print_the_prompt(flags: list[str], expected: str, trained_run: Path) -> None:
    shown = sample(trained_run, *flags)
    assert (shown.returncode, shown.stdout) == (0, expected)


def test_unknown_characters_can_be_skipped(trained_run: Path) -> None:
    shown = sample(trained_run, "--max-new-tokens", "0", "--prompt", "T💥he", "--on-unknown", "skip")
    assert (shown.returncode, shown.stdout) == (0, "The")
    assert "U+1F4A5" in shown.stderr


def test_a_closed_pipe_saves_the_training(text_file: Path, tmp_path: Path) -> None:
    command = [BIN / "charformer-train", "--data", text_file, *TINY, "--steps", "100000", "--eval-interval", "10"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while not process.stdout.readline().startswith(b"step 30/"):
            pass
        process.stdout.close()
        said = process.stderr.read().decode()
    assert process.returncode == 141
    assert "\nsaved after step " in said
    assert "Traceback" not in said
    resumed = call("charformer-train", "--resume", "--steps", "10", cwd=tmp_path)
    assert resumed.returncode == 2
    assert "already; --steps must be at least that" in resumed.stderr


def test_a_closed_pipe_ends_sampling_quietly(trained_run: Path) -> None:
    command = [BIN / "charformer-sample", "--run", trained_run, "--max-new-tokens", "100000", "--seed", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert len(process.stdout.read(10)) == 10
        process.stdout.close()
        assert process.stderr.read().count(b"\n") == 1  # the name of the run
    assert process.returncode == 141
