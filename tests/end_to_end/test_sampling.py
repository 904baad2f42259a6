"""Test what users ask of a sampler: stop texts, a conversation, many prompts, a score."""

import io
import json
import math
import os
import shutil
import sys
from pathlib import Path

import pytest

import charformer
from charformer.commands import export, sample
from tests.charformer.test_api import spoilt_last
from tests.commands import run


def sampled(flags: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert sample.main(["--seed", "5", *flags]) == 0
    return capsys.readouterr().out


def test_stop_ends_each_text_at_its_own_place(trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--run", str(trained_run), "--num-samples", "3", "--prompt", "The ", "--max-new-tokens", "200", "--json"]
    whole = json.loads(sampled(flags, capsys))["samples"]
    ended = json.loads(sampled([*flags, "--stop", "\n", "--stop", "th"], capsys))["samples"]
    assert ended == [min(text.partition(stop)[0] for stop in ("\n", "th")) for text in whole]
    plain = sampled([*flags[:-1], "--stop", "\n", "--stop", "th"], capsys)
    assert plain.split("\n---\n") == ["The " + text for text in ended]


def test_top_k_0_and_top_p_1_are_off(trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--run", str(trained_run), "--max-new-tokens", "50"]
    assert sampled([*flags, "--top-k", "0", "--top-p", "1"], capsys) == sampled(flags, capsys)


def test_prompts_are_answered_a_line_each(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_bytes(b"The \r\n\r\nAn ")
    flags = ["--run", str(trained_run), "--max-new-tokens", "30", "--num-samples", "2"]
    lines = sampled([*flags, "--prompts", str(tmp_path / "prompts.txt")], capsys).splitlines()
    documents = [json.loads(line) for line in lines]
    assert [document["prompt"] for document in documents] == ["The ", "\n", "An "]
    for document in documents:
        alone = json.loads(sampled([*flags, "--prompt", document["prompt"], "--json"], capsys))
        assert document == alone
        assert document["run"] == str(trained_run)
    (tmp_path / "prompts.txt").write_bytes(b"")
    assert sampled([*flags, "--prompts", str(tmp_path / "prompts.txt")], capsys) == ""


def test_a_conversation(trained_run: Path) -> None:
    flags = ["--run", trained_run, "--interactive", "--max-new-tokens", "40", "--seed", "3"]
    shown = run("charformer-sample", *flags, cwd=trained_run, stdin="The \n\n\U0001f4a5\nAn ")
    assert shown.returncode == 0
    assert "U+1F4A5" in shown.stderr
    model = charformer.load(trained_run)
    first = "The " + model.generate("The ", max_new_tokens=40, seed=3)
    more = model.generate(first, max_new_tokens=40, seed=4)
    other = "An " + model.generate("An ", max_new_tokens=40, seed=5)
    assert shown.stdout == f"{first}\n{more}\n{other}\n"


def test_a_conversation_survives_bytes_that_are_no_text(
    trained_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--run", str(trained_run), "--interactive", "--max-new-tokens", "5", "--seed", "3"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\nThe \n"), encoding="ascii"))
    assert sample.main(flags) == 0
    shown = capsys.readouterr()
    assert "U+FFFD" in shown.err
    assert shown.out == "The " + charformer.load(trained_run).generate("The ", max_new_tokens=5, seed=3) + "\n"
    monkeypatch.setattr("sys.stdin", None)
    assert sample.main(flags) == 2
    assert "--interactive reads standard input, and there is none" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="a pseudo-terminal")
def test_a_conversation_on_a_terminal(trained_run: Path) -> None:
    import pty

    pid, terminal = pty.fork()
    if pid == 0:
        flags = ["--run", str(trained_run), "--interactive", "--max-new-tokens", "10", "--seed", "3"]
        os.execv(sys.executable, [sys.executable, "-m", "charformer.commands.sample", *flags])
    said = b""
    while not said.endswith(b"> "):
        said += os.read(terminal, 1000)
    os.write(terminal, b"The \n")
    said = b""
    while not said.endswith(b"> "):
        said += os.read(terminal, 1000)
    text = "The " + charformer.load(trained_run).generate("The ", max_new_tokens=10, seed=3)
    assert text.replace("\n", "\r\n") in said.decode()
    os.write(terminal, b"\x04")  # Ctrl-D
    os.close(terminal) if os.waitpid(pid, 0)[1] == 0 else pytest.fail("it did not end well")


def test_a_score(trained_run: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = text_file.read_text("utf-8")[-3000:]
    (tmp_path / "text.txt").write_text(text, encoding="utf-8", newline="\r\n")
    flags = ["--run", str(trained_run), "--score", str(tmp_path / "text.txt")]
    assert sample.main([*flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["characters"] == len(text) == len(found["per_character"])
    assert found["nats"] == pytest.approx(sum(found["per_character"]) / len(text))
    assert found["perplexity"] == pytest.approx(2 ** found["bits"])
    config = json.loads((trained_run / "config.json").read_text("utf-8"))
    assert 1.5 < found["nats"] < math.log(config["model"]["vocab_size"])
    assert sample.main(flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["nats", f"{found['nats']:.4f}"]
    assert lines[-1].split() == ["characters", "3,000"]


def test_the_last_weights_can_be_sampled_and_exported(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, file = tmp_path / "run", tmp_path / "last.onnx"
    shutil.copytree(trained_run, folder)
    spoilt_last(folder)
    flags = ["--run", str(folder), "--max-new-tokens", "100"]
    best, last = sampled(flags, capsys), sampled([*flags, "--weights", "last"], capsys)
    assert best != last
    assert export.main(["--run", str(folder), "--weights", "last", "--precision", "fp32", "--out", str(file)]) == 0
    capsys.readouterr()
    assert sampled(["--onnx", str(file), "--max-new-tokens", "100"], capsys) == last


def test_the_newest_run_is_taken_and_named(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    hour = 3600 * 10**9
    for number, name in enumerate(("finetune", "demo/pretrain", "unfinished")):
        weights = Path("runs") / name / "model.safetensors"
        shutil.copytree(trained_run, weights.parent)
        made = weights.stat().st_mtime_ns - (3 - 2 * number) * hour
        os.utime(weights, ns=(made, made)) if number < 2 else weights.unlink()
    assert sample.main(["--max-new-tokens", "5", "--seed", "1"]) == 0
    taken = Path("runs/demo/pretrain")
    assert capsys.readouterr().err == f"{taken} (1 hour old, the newest of 2 runs), float32, seed 1\n"
    assert export.main(["--out", "m.onnx", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["run"] == str(taken)
    assert sample.main(["--run", "runs/finetune", "--max-new-tokens", "5", "--seed", "1"]) == 0
    assert capsys.readouterr().err == "runs/finetune (3 hours old), float32, seed 1\n"


def test_newlines_of_a_prompt_are_read_as_a_texts_are(trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--run", str(trained_run), "--max-new-tokens", "20", "--prompt"]
    assert sampled([*flags, "The\r\nend"], capsys) == sampled([*flags, "The\nend"], capsys)
