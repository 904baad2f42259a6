import json
from pathlib import Path

import pytest

from bench.harness import results
from charformer.errors import UserError


def test_a_result_survives_its_file(tmp_path: Path) -> None:
    rows = [{"engine": "charformer", "chars_per_second": results.percentiles([3.0, 1.0, 2.0]), "mfu": None}]
    content = results.result("test", {"steps": 3}, rows)
    path = tmp_path / "folder" / "result.json"
    results.write_result(path, content)
    assert json.loads(path.read_text("utf-8")) == content
    assert list(content) == ["schema", "bench", "machine", "versions", "commit", "config", "rows"]
    assert set(content["machine"]) == {"cpu", "cores", "memory_bytes", "gpu", "os", "limits"}
    assert content["versions"]["torch"]


def test_percentiles_interpolate() -> None:
    assert results.percentiles([10.0, 20.0, 30.0]) == {"p20": 14.0, "p50": 20.0, "p80": 26.0}


def test_a_process_gives_its_last_line_and_shows_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "variant.py").write_text("print('hello'); print('{\"a\": 1}')", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert results.run_process(["variant"]) == {"a": 1}
    assert capfd.readouterr().err == "hello\n"


def test_a_process_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "variant.py").write_text("print('{}'); raise SystemExit(3)", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(UserError, match="variant ended with exit code 3"):
        results.run_process(["variant"])
