"""Run every stage of bench.gpu on the CPU, stages that do not fit or fail, and its own engines."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import gpu
from bench.engines.nanogpt_like import NanogptLike, NanogptLikeEngine
from bench.engines.train_charformer import CharformerEngine
from bench.engines.variant import Variant
from bench.gpu_stages import block_sizes as block_sizes_stage
from bench.gpu_stages import steps, worker
from bench.gpu_stages.visit import Visit
from bench.harness.interleave import Worker, WorkerError
from bench.harness.results import read_result
from charformer.config import ModelConfig
from charformer.data import corpus as corpora
from kernels import backend
from kernels.checks.cases import Case

SMALL = ModelConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, dropout=0.0, attention_dropout=0.0, vocab_size=300)
CPU = torch.device("cpu")


def visit(out: Path, data: Path, *flags: str) -> tuple[int, str, dict[str, dict[str, Any]]]:
    """Run bench.gpu; return the exit code, the printed text, and the result of each stage."""
    command = [sys.executable, "-m", "bench.gpu", "--out", str(out), "--data", str(data), "--device", "cpu", *flags]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=580)
    rows = read_result(out / "summary.json")["rows"] if (out / "summary.json").is_file() else []
    return done.returncode, done.stdout + done.stderr, {row["stage"]: row for row in rows}


def stage(out: Path, name: str) -> dict[str, Any]:
    content = read_result(out / f"{name}.json")
    assert content["bench"] == f"gpu-{name}"
    return content


@pytest.mark.skipif(not backend.TRITON, reason="most stages are about Triton's kernels")
def test_every_stage_rehearses_on_a_cpu(text_file: Path, tmp_path: Path) -> None:
    code, printed, found = visit(tmp_path, text_file, "--budget", "560")
    assert code == 0, printed
    assert list(found) == list(gpu.STAGES)
    assert {row["status"] for row in found.values()} == {"done"}, printed
    assert all(any(line.startswith(name) for line in printed.splitlines()) for name in gpu.STAGES)
    contents = {name: stage(tmp_path, name) for name in gpu.STAGES}
    assert all(content["status"] == "done" and content["rows"] for content in contents.values())
    timed = [row for row in contents["steps"]["rows"] if "step_seconds" in row]
    assert {(row["preset"], row["engine"]) for row in timed} == {
        (preset, name) for preset in ("baseline", "fast") for name in steps.SUBJECTS
    }
    assert all(row["mfu"] > 0 and row["host_seconds"]["p50"] > 0 for row in timed)
    assert [row["name"] for row in contents["training"]["rows"]] == ["cold", "killed and resumed"]
    assert contents["training"]["rows"][1]["equal_to_the_whole_run"]
    assert contents["training"]["rows"][1]["killed"]
    assert contents["training"]["rows"][1]["killed_after_step"] >= 4
    assert {row["batch"] for row in contents["sampling"]["rows"]} == {1, 64}
    assert contents["compiling"]["rows"][0]["misses"] == 2
    assert all(row["violations"] == [] for row in contents["block_sizes"]["rows"] if row.get("fastest"))
    assert all("error" not in row for name in ("op_times", "compiled") for row in contents[name]["rows"])


def test_what_does_not_fit_is_named_and_what_fails_ends_itself_alone(text_file: Path, tmp_path: Path) -> None:
    (tmp_path / "op_times.json").mkdir()  # no file can replace a folder
    code, printed, found = visit(tmp_path, text_file, "--stages", "op_times", "facts", "memcheck", "--budget", "38")
    assert code == 1, printed
    assert found["op_times"]["status"] == "failed"
    assert "op_times.json" in found["op_times"]["line"]
    assert found["facts"]["status"] == stage(tmp_path, "facts")["status"] == "done"
    assert found["memcheck"]["status"] == "left out"
    assert "does not fit into the" in printed


def test_a_stage_that_fails_keeps_its_rows_and_says_where(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("abc" * 5, "utf-8")
    with pytest.raises(ValueError, match="high"):  # the text is shorter than a window
        worker.handler("cpu", str(tmp_path), str(text))("steps", "60")
    content = stage(tmp_path, "steps")
    assert (content["status"], content["rows"]) == ("failed", [])
    assert any("gpu_stages/steps.py" in line for line in content["traceback"])


def test_a_worker_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os, time\ndef handler(): os.system('echo no answer'); return lambda: time.sleep(60)\n"
    (tmp_path / "slow.py").write_text(code, "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    began = time.monotonic()
    with Worker("slow", {}) as slow, pytest.raises(WorkerError, match="took longer than 1 s"):
        slow.ask("", seconds=1)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--data", "nowhere.txt"], "there is no file nowhere.txt"),
        (["--data", __file__, "--stages", "facts", "nothing"], "'nothing'"),
    ],
)
def test_mistakes_are_one_line(
    flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = gpu.main(["--out", str(tmp_path / "out"), *flags])
    except SystemExit as exit:
        code = exit.code
    errors = capsys.readouterr().err
    assert (code, errors.count("\n")) == (2, 1)
    assert words in errors


def test_the_nanogpt_like_model_looks_back_alone_and_learns(text_file: Path) -> None:
    torch.manual_seed(0)
    model = NanogptLike(SMALL).eval()
    ids = torch.randint(SMALL.vocab_size, (1, 16))
    changed = ids.clone()
    changed[0, 9] += 1
    with torch.no_grad():
        same, other = model(ids), model(changed)
    torch.testing.assert_close(same[:, :9], other[:, :9])
    assert (same[:, 9:] != other[:, 9:]).any()


@pytest.mark.parametrize("engine_class", [CharformerEngine, NanogptLikeEngine])
def test_engines_learn_and_have_another_batch_for_each_step(
    engine_class: type[CharformerEngine] | type[NanogptLikeEngine], text_file: Path
) -> None:
    engine = engine_class(Variant("x", "fast", SMALL, 4), corpora.load(str(text_file)), CPU)
    (windows,) = engine.batch()
    assert windows.shape == (4, 17)
    losses = [float(engine.step(windows)) for _ in range(20)]
    assert losses[-1] < losses[0] - 0.5
    found = {tuple(windows.flatten().tolist()) for (windows,) in (engine.batch() for _ in range(3))}
    for _ in range(3):
        assert engine.batch((windows,))[0] is windows
        found.add(tuple(windows.flatten().tolist()))
    assert len(found) == 6


def test_a_stage_reads_what_an_earlier_one_found(tmp_path: Path) -> None:
    here = Visit(CPU, tmp_path, "text.txt", 10.0)
    assert here.found("facts", "ceilings") == {}
    (tmp_path / "facts.json").write_text(
        json.dumps({"rows": [{"part": "card"}, {"part": "ceilings", "x": 1}]}), "utf-8"
    )
    assert here.found("facts", "ceilings")["x"] == 1
    assert 9 < here.left <= 10


@pytest.mark.skipif(not backend.TRITON, reason="imports the kernels")
def test_other_block_sizes_are_tried_and_put_back() -> None:
    from kernels.gpu import block_sizes

    case = Case("attention", torch.bfloat16, 64, 64, 0.2, "packed")
    own = dict(block_sizes.ATTENTION), dict(block_sizes.ATTENTION_BY_CARD)
    with block_sizes_stage.sizes({"dkv": (64, 64, 8, 2)}, case):
        for card in ("sm_86", "sm_90"):
            assert block_sizes.attention("dkv", 64, 2, card) == block_sizes.Tile(64, 64, 8, 2)
        assert block_sizes.attention("dq", 64, 2, "sm_86") == own[0]["dq", 64, 2]
    assert own == (block_sizes.ATTENTION, block_sizes.ATTENTION_BY_CARD)


def test_a_text_is_loaded_where_platformdirs_is_missing(text_file: Path, tmp_path: Path) -> None:
    script = "import sys; sys.modules['platformdirs'] = None\n"
    script += "from charformer.data import corpus; print(len(corpus.load(sys.argv[1]).ids), corpus.cache_folder())"
    done = subprocess.run([sys.executable, "-c", script, str(text_file)], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("charformer")
