"""Give texts to charformer-train in all the ways that users do, and run it without standard streams."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from charformer.commands import sample, train

TINY = ["--n-layer", "1", "--n-head", "1", "--n-embd", "8", "--block-size", "8", "--batch-size", "4"]
TINY += ["--ngram-order", "0"]
SHORT = [*TINY, "--steps", "3", "--eval-interval", "3", "--json"]


def corpus_of(shown: str) -> dict[str, object]:
    return json.loads(shown.splitlines()[-1])["corpus"]


def test_several_texts_validated_by_another(
    english: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, part in (("a", english[:3000]), ("b", english[3000:7000]), ("c", english[7000:9000] + "é")):
        Path(name).write_text(part, encoding="cp1252")
    assert train.main(["--data", "a", "--data", "b", "--validation", "c", "--encoding", "cp1252", *SHORT]) == 0
    summary = corpus_of(capsys.readouterr().out)
    assert summary["characters"] == len(english[:7000]) + (english[2999] != "\n")
    assert summary["source"] == [str(tmp_path / name) for name in ("a", "b")]
    assert summary["validation"]["characters"] == 2001  # type: ignore[index]
    for name in ("a", "b", "c"):
        Path(name).unlink()
    assert train.main(["--resume", "--steps", "4", "--json"]) == 0  # the cache has them
    assert corpus_of(capsys.readouterr().out) == summary


def test_a_text_that_is_gone_can_be_named_again(
    english: str,
    tmp_path: Path,
    cache_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a").write_text(english, encoding="utf-8")
    assert train.main(["--data", "a", "--validation-split", "blocks", *SHORT]) == 0
    summary = corpus_of(capsys.readouterr().out)
    Path("a").rename("moved")
    for path in cache_folder.iterdir():
        path.unlink()
    assert train.main(["--resume", "--steps", "4"]) == 2
    assert "--data can name its new place" in capsys.readouterr().err
    assert train.main(["--resume", "--steps", "4", "--json", "--data", "moved"]) == 0
    assert (
        corpus_of(capsys.readouterr().out)["validation"] == summary["validation"] == {"share": 0.1, "split": "blocks"}
    )


def test_a_tail_in_another_script_is_warned_of(
    english: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "mixed", tmp_path / "run"
    path.write_text(english[:20_000] + "".join(chr(0x4E00 + code % 900) for code in range(2300)), encoding="utf-8")
    flags = ["--data", str(path), "--out", str(out), "--overwrite", "--learning-rate", "5", "--muon-learning-rate", "5"]
    assert train.main([*flags, *SHORT]) == 0
    said = capsys.readouterr().err
    assert "is unlike the rest: 100% of its characters" in said
    assert "validation never got better than before the first step" in said
    calm = ["--data", str(path), "--out", str(out), "--overwrite", "--validation-split", "blocks", "--ngram-order", "0"]
    assert train.main([*calm, *SHORT]) == 0
    assert capsys.readouterr().err == ""


def test_training_in_a_thread(text_file: Path, tmp_path: Path) -> None:
    codes: list[int] = []
    flags = ["--data", str(text_file), "--out", str(tmp_path / "run"), *SHORT]
    thread = threading.Thread(target=lambda: codes.append(train.main(flags)))
    thread.start()
    thread.join()
    assert codes == [0]


@pytest.mark.skipif(sys.platform == "win32", reason="a shell closes the streams")
def test_without_standard_streams(text_file: Path, tmp_path: Path) -> None:
    command = f'"{sys.executable}" -m charformer.commands.train --data "{text_file}" {" ".join(SHORT)}'
    done = subprocess.run(["bash", "-c", f"exec {command} >&- 2>&- <&-"], cwd=tmp_path, timeout=240)
    assert done.returncode == 0
    assert (tmp_path / "runs" / "pretrain" / "sample.txt").is_file()
    asked = f'"{sys.executable}" -m charformer.commands.sample --prompt-file - <&-'
    done = subprocess.run(["bash", "-c", f"exec {asked}"], cwd=tmp_path, timeout=240, capture_output=True, text=True)
    assert done.returncode == 2
    assert "reads standard input, and there is none" in done.stderr
    piped = f'cat "{text_file}" | {command.replace(f"--data {chr(34)}{text_file}{chr(34)}", "--data -")} --overwrite'
    done = subprocess.run(["bash", "-c", piped], cwd=tmp_path, timeout=240, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert corpus_of(done.stdout)["name"] == "standard input"
    assert os.listdir(tmp_path) == ["runs"]  # noqa: PTH208
    assert sample.main(["--run", str(tmp_path / "runs" / "pretrain"), "--max-new-tokens", "3"]) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_signal_cuts_the_score_short(english: str, tmp_path: Path) -> None:
    (tmp_path / "long").write_text(english * 100, encoding="utf-8")
    command = [sys.executable, "-m", "charformer.commands.train", "--data", "long", *SHORT]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
        preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL),
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if line.startswith("scoring"):
                break
        process.send_signal(signal.SIGTERM)
        summary = json.loads(process.stdout.read().splitlines()[-1])
        said = process.stderr.read()
    assert process.returncode == 0
    assert said == "the training is complete and saved; it is left without a score\n"
    assert (summary["val_loss"], summary["scored_characters"], summary["steps"]) == (None, None, 3)
    assert (tmp_path / "runs" / "pretrain" / "sample.txt").is_file()
