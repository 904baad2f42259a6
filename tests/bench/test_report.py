"""Make reports from result files, and refuse other files."""

import re
from pathlib import Path
from typing import Any

import pytest

from bench import report
from bench.harness import results


def result(path: Path, *speeds: tuple[str, str, float], **more: Any) -> Path:
    rows = [
        results.row(
            engine=engine,
            preset="nano",
            precision=precision,
            part="interleaved",
            chars_per_second={"p20": speed - 1, "p50": speed, "p80": speed + 1},
            samples=1,
            turns=[speed, 2 * speed],
            **more,
        )
        for engine, precision, speed in speeds
    ]
    results.write_result(path, results.result("test", {}, rows))
    return path


def test_one_file_has_ratios_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = result(tmp_path / "one.json", ("baseline", "float32", 1000.0), ("charformer", "bfloat16", 2500.0), mfu=0.125)
    assert report.main([str(path)]) == 0
    shown = re.sub(" +", " ", capsys.readouterr().out)
    assert shown.startswith("- one: test on ")
    assert "### nano, engines in turn" in shown
    assert "| charformer bf16 | 2,500 (2,499 - 2,501) | 2.50 | 12% | |" in shown


def test_several_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = result(tmp_path / "a.json", ("baseline", "float32", 1000.0), ("charformer", "float32", 2000.0))
    second = result(tmp_path / "b.json", ("charformer", "float32", 3000.0), ("x|y", "fp32", 5.0))
    assert report.main([str(first), str(second), "--chart", str(tmp_path / "r.png")]) == 0
    text = re.sub(" +", " ", capsys.readouterr().out)
    assert "| variant | a, characters/s | b, characters/s |" in text
    assert "| charformer fp32 | 2,000 (1,999 - 2,001) | 3,000 (2,999 - 3,001) |" in text
    assert "| baseline fp32 | 1,000 (999 - 1,001) | |" in text
    assert "| x|y fp32 | | 5 (4 - 6) |" in text
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_convergences_are_drawn_as_curves(tmp_path: Path) -> None:
    points = [{"characters": 0, "val_loss": 4.0}, {"characters": 1_000_000, "val_loss": 1.5}]
    speed = {"p20": 1.0, "p50": 2.0, "p80": 3.0}
    row = results.row(
        engine="charformer", preset="nano", precision="float32", chars_per_second=speed, curve=points, seed=1
    )
    config = {"presets": {"nano": {"model": {"ngram_order": 7}}}}
    rows = [row, row | {"seed": 2}, row | {"engine": "nanogpt", "preset": "its recipe"}, row | {"preset": "best"}]
    results.write_result(tmp_path / "c.json", results.result("convergence", config, rows))
    labels = ["nano, with an n-gram prior"] * 2 + ["nanogpt, its recipe", "best"]
    assert report.curves(results.read_result(tmp_path / "c.json")) == [(label, points) for label in labels]
    assert report.main([str(tmp_path / "c.json"), "--chart", str(tmp_path / "c.png")]) == 0
    points = [(point["characters"], point["val_loss"]) for point in report.baseline_curve()[1]]
    assert points == [(2_176_000, 2.11), (21_760_000, 1.52)]
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_parts_of_steps_are_drawn_as_stacks(tmp_path: Path) -> None:
    files = [result(tmp_path / f"{name}.json", ("charformer", "bf16", 5.0), seconds={"matmuls": 2.0, "rest": 1.0},
                    matmul_seconds=1.5) for name in ("before", "now")]  # fmt: skip
    rows = {path.stem: results.read_result(path)["rows"] for path in files}
    parts = {"matmuls": 2.0, "rest": 1.0}
    alone = ("matrix products alone", {"matmuls": 1.5, "attention": 0.0})
    assert report._stacks(rows, "nano") == [("before", parts), ("now", parts), alone]
    for path in files:
        path.write_text(path.read_text("utf-8").replace('"bench": "test"', '"bench": "step"'), "utf-8")
    assert report.main([*map(str, files), "--chart", str(tmp_path / "s.png")]) == 0
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "x.json: No such file"),
        ("{", "not the result of a bench"),
        ("[]", "not the result of a bench"),
        ('{"schema": 2, "rows": []}', "not the result of a bench"),
        ('{"schema": 1, "rows": [{"engine": "x"}]}', "not the result of a bench"),
        ('{"schema": 1, "rows": []}', "no rows with characters a second"),
    ],
)
def test_anything_else_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, words: str
) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    assert report.main([str(path)]) == 2
    errors = capsys.readouterr().err
    assert words in errors
    assert errors.count("\n") == 1
