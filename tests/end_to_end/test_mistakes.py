"""Make users' mistakes: each gets one line that says what to do and exit code 2, and nothing is lost."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from charformer.commands import sample, train
from charformer.runs.folder import RunDir
from charformer.runs.lock import locked
from tests.conftest import TINY

without_apple_gpu = pytest.mark.skipif(torch.backends.mps.is_available(), reason="needs a machine without one")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(main, flags: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must refuse; return its one line of error."""
    try:
        code = main(flags)
    except SystemExit as leaving:  # argparse's own way
        code = leaving.code
    shown = capsys.readouterr()
    assert code == 2, shown
    assert "Traceback" not in shown.err
    lines = [line for line in shown.err.splitlines() if line.startswith("charformer-")]
    assert len(lines) == 1, shown.err
    assert shown.err.splitlines()[-1] == lines[0]
    return lines[0]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--freeze"], "add --stage finetune"),
        (["--init-from", "x"], "there is no run in x to fine-tune"),
        (["--stage", "finetune"], "`charformer-train` makes runs/pretrain"),
        (["--stage", "other"], "invalid choice"),
        (["--steps", "many"], "invalid int value"),
        (["--out", "", "--overwrite"], "argument --out: an empty name"),
        (["--init-from", ""], "argument --init-from: an empty name"),
        (["--data", "text.txt", ""], "argument --data: an empty name"),
        ([""], "argument TEXT: an empty name"),
        (["--validation="], "argument --validation: an empty name"),
        (["--ste", "5"], "unrecognized arguments: --ste; did you mean --steps?"),
        (["--resume"], "there is no run in runs/pretrain"),
        pytest.param(["--device", "mps"], "no Apple GPU here; pass --device cpu", marks=without_apple_gpu),
        (["--data", "nowhere.txt"], "no file nowhere.txt"),
        (["--data", "short.txt"], "choose a --block-size of at most 9"),
        (["--data", "empty.txt"], "is empty"),
        (["--data", "latin.txt"], "offset 3"),
        (["--data", "text.txt", "--steps", "0"], "--steps is 0"),
        (["--data", "text.txt", "--n-head", "5"], "not a multiple of --n-head 5"),
        (["--data", "text.txt", "--out", "text.txt"], "not a folder"),
        (["--data", "text.txt", "--out", "text.txt/run"], "cannot create the folder"),
        (["--data", "text.txt", "--out", "."], "files that are not a run's"),
        (["--data", "text.txt", "--out", ".", "--overwrite"], "files that are not a run's"),
        (["--data", "text.txt", "--prompt", "é"], "U+00E9"),
        (["--data", "gone.txt", "--steps", "0"], "--steps is 0"),  # before a text is loaded
        (["--data", "gone.txt", "--block-size", "0"], "--block-size is 0"),
        (["--data", "text.txt", "--encoding", "none-such"], "not an encoding that Python knows"),
        (["--encoding", "none-such"], "not an encoding that Python knows"),
        (["--encoding", "cp1252"], "--encoding is for files"),
        (["--data", "text.txt", "--validation-share", "1"], "must lie between 0 and 1"),
        (["--data", "text.txt", "--validation", "text.txt", "--validation-split", "tail"], "a text of its own"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_training(flags: list[str], named: str, folder: Path, english: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("text.txt").write_text(english, encoding="utf-8")
    Path("short.txt").write_text("0123456789" * 10, encoding="utf-8")
    Path("empty.txt").write_bytes(b"")
    Path("latin.txt").write_bytes(b"caf\xe9 au lait")
    before = sorted(path.name for path in folder.iterdir())
    assert named in refused(train.main, flags, capsys)
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--n-layer", "3"], "--n-layer is the checkpoint's in a fine-tune"),
        (["--out", "runs/pretrain"], "are the same folder"),
        (["--freeze", "head"], "invalid choice"),
        (["--init-from", "runs/other"], "no run in runs/other to fine-tune"),
        (["--data", "short.txt"], "pretrain with a smaller --block-size"),
    ],
)
def test_fine_tuning(
    flags: list[str], named: str, trained_run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained_run, "runs/pretrain")
    Path("short.txt").write_text("0123456789" * 10, encoding="utf-8")
    flags = ["--stage", "finetune", *flags] + ([] if "--data" in flags else ["--data", "python-docs"])
    assert named in refused(train.main, flags, capsys)
    assert not Path("runs/finetune").exists()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--n-layer", "3"], "--n-layer is fixed once a run has begun"),
        (["--batch-size", "3"], "--batch-size is fixed"),
        (["--ngram-folds", "4"], "--ngram-folds is fixed"),
        (["--muon-learning-rate", "0"], "--muon-learning-rate is 0.02 in this run: whether Muon trains is fixed"),
        (["--sample-interval", "-1"], "--sample-interval is -1"),
        (["--overwrite"], "choose one"),
        (["--data", "changed.txt"], "is not the text that the run began with"),
        (["--data", "gone.txt"], "no file gone.txt"),
        (["--validation-share", "0.2"], "--validation-share is fixed"),
        (["--encoding", "none-such"], "not an encoding that Python knows"),
    ],
)
def test_resuming(
    flags: list[str], named: str, trained_run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained_run, "run")
    Path("changed.txt").write_text("another text, long enough for its block size" * 20, encoding="utf-8")
    before = {path.name: path.read_bytes() for path in Path("run").iterdir()}
    assert named in refused(train.main, ["--resume", "--out", "run", *flags], capsys)
    assert {path.name: path.read_bytes() for path in Path("run").iterdir()} == before


def spoil_config(run: Path) -> None:
    values = json.loads((run / "config.json").read_text("utf-8"))
    values["model"]["n_embd"] = 64
    (run / "config.json").write_text(json.dumps(values), encoding="utf-8")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--run", "nowhere"], "there is no run in nowhere"),
        (["--temperature", "-1"], "--temperature is -1.0"),
        (["--max-new-tokens", "-1"], "--max-new-tokens is -1"),
        (["--top-k", "-1"], "--top-k is -1"),
        (["--top-p", "0"], "--top-p is 0.0"),
        (["--stop", ""], "--stop is an empty text"),
        (["--tempreature", "1"], "did you mean --temperature?"),
        (["--interactive", "--json"], "leave out --json"),
        (["--score", "nowhere"], "cannot read the text from nowhere"),
        (["--prompt", "one\\ntwo\\"], "a newline is written $'...\\n'"),
        (["--num-samples", "0"], "--num-samples is 0"),
        (["--threads", "0"], "--threads is 0"),
        (["--prompt", "a\U0001f4a5\udc80"], "U+1F4A5"),
        (["--prompt", "a", "--prompt-file", "-"], "not allowed with"),
        (["--prompt-file", "nowhere"], "cannot read the prompt"),
        (["--score", "text.txt", "--stop", "x"], "--stop is for sampling, and --score samples nothing"),
        (["--score", "text.txt", "--seed", "4"], "--seed is for sampling"),
        (["--score", "text.txt", "--no-speculative"], "--no-speculative is for sampling"),
        (["--score", "text.txt", "--num-samples", "3"], "--num-samples is for sampling"),
        (["--score", "text.txt", "--temperature", "0.1"], "--temperature is for sampling"),
        *[([flag, ""], f"{flag}: an empty name") for flag in ("--run", "--prompt-file", "--prompts", "--score")],
    ],
)
def test_sampling(flags: list[str], named: str, trained_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert named in refused(sample.main, [*([] if "--run" in flags else ["--run", str(trained_run)]), *flags], capsys)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (spoil_config, "do not fit"),
        (lambda run: (run / "config.json").write_text("{}", encoding="utf-8"), "is not a run's, or"),
        (lambda run: (run / "vocab.json").unlink(), "cannot read"),
        (lambda run: (run / "model.safetensors").unlink(), "`charformer-train --resume` with more steps writes one"),
        (
            lambda run: [path.unlink() for path in run.glob("*.safetensors")],
            "`charformer-train --overwrite` starts it again",
        ),
        (lambda run: (run / "model.safetensors").write_bytes(b"\x80\x04pickle"), "cannot read"),
    ],
    ids=["shape", "format", "vocabulary", "no best weights", "no weights", "no safetensors"],
)
def test_sampling_from_a_damaged_run(
    spoil, named: str, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    spoil(run)
    assert named in refused(sample.main, ["--run", str(run)], capsys)


def test_with_no_run_at_all_sampling_says_which_command_makes_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "`charformer-train` makes one" in refused(sample.main, [], capsys)


def test_one_distinct_character_is_allowed_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, out = tmp_path / "a.txt", str(tmp_path / "run")
    text.write_text("a" * 1000, encoding="utf-8")
    flags = ["--data", str(text), "--out", out, "--steps", "2", "--n-layer", "1", "--n-embd", "8", "--block-size", "8"]
    assert train.main(flags) == 0
    assert "one distinct character" in capsys.readouterr().err
    assert sample.main(["--run", out, "--max-new-tokens", "5"]) == 0
    assert capsys.readouterr().out == "aaaaaa"
    text.write_text("a\nba\n\naa\n", encoding="utf-8")  # the vocabulary has no newline
    flags = ["--run", out, "--prompts", str(text), "--max-new-tokens", "5"]
    assert sample.main([*flags, "--on-unknown", "skip"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == ["a", "a", "a", "aa"]


def test_strange_names_are_only_names(english: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, out = tmp_path / "a$_$b [bold]x[b].txt", tmp_path / "my run [i]"
    text.write_text(english, encoding="utf-8")
    flags = [
        "--data",
        str(text),
        "--out",
        str(out),
        "--steps",
        "2",
        "--n-layer",
        "1",
        "--n-embd",
        "8",
        "--block-size",
        "8",
    ]
    assert train.main(flags) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert f"pretrain on {text.name} (" in shown.out
    assert f"charformer-sample --run '{out}'" in shown.out
    assert (out / "loss.png").stat().st_size > 1000


def test_a_damaged_source_costs_the_picture_alone(
    trained_run: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "source", tmp_path / "fine"
    shutil.copytree(trained_run, source)
    (source / "metrics.jsonl").write_text("[]\n", encoding="utf-8")
    flags = ["--stage", "finetune", "--init-from", str(source), "--data", str(text_file), "--steps", "2", "--json"]
    assert train.main([*flags, "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert shown.err.startswith(f"warning: no {out / 'loss.png'}: ")
    assert json.loads(shown.out.splitlines()[-1])["steps"] == 2


def test_out_of_memory_says_what_to_try(
    english: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(english, encoding="utf-8")
    line = refused(train.main, ["--data", "text.txt", "--n-embd", "1000000", "--block-size", "8"], capsys)
    assert "take a smaller batch" in line


def test_a_fine_tune_samples_from_the_prompt_of_the_run_that_it_comes_from(
    english: str, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = ["--data", str(text_file), "--steps", "2"]
    model = ["--n-layer", "1", "--n-embd", "8", "--block-size", "8"]
    assert train.main([*tiny, *model, "--prompt", "The yield"]) == 0
    assert train.main([*tiny, "--stage", "finetune"]) == 0
    for stage in ("pretrain", "finetune"):
        assert Path(f"runs/{stage}/sample.txt").read_text("utf-8").startswith("The yield")


def test_a_preset_is_the_fine_tune_s_too_and_a_run_can_be_overwritten(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def config(stage: str) -> dict[str, dict[str, float]]:
        return json.loads(Path(f"runs/{stage}/config.json").read_text("utf-8"))

    monkeypatch.chdir(tmp_path)
    short = ["--data", str(text_file), "--steps", "2", "--batch-size", "4"]
    model = ["--n-layer", "1", "--n-head", "1", "--n-embd", "8", "--block-size", "8"]
    for preset, rates in (("baseline-as-coded", (3e-4, 3e-4)), ("nano", (6e-3, 3e-3))):
        assert train.main([*short, *model, "--preset", preset, "--overwrite"]) == 0
        assert train.main([*short, "--stage", "finetune", "--overwrite"]) == 0
        for stage, rate in zip(("pretrain", "finetune"), rates, strict=True):
            assert config(stage)["preset"] == preset
            assert config(stage)["training"]["learning_rate"] == rate
            assert config(stage)["training"]["max_steps"] == 2


def test_debug_shows_where(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="no run in"):
        sample.main(["--run", str(tmp_path), "--debug"])


@pytest.mark.parametrize("main", [train.main, sample.main])
def test_help_has_examples(main, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["--help"])
    assert leaving.value.code == 0
    shown = capsys.readouterr().out
    assert "examples:" in shown
    assert "(default:" in shown


def test_a_second_training_in_the_same_folder(
    trained_run: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained_run, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with locked(RunDir(tmp_path / "run")):
        for flags in (["--resume", "--steps", "50"], ["--overwrite", "--steps", "1", *TINY]):
            line = refused(train.main, ["--out", str(tmp_path / "run"), "--data", str(text_file), *flags], capsys)
            assert f"another training, process {os.getpid()}" in line
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
