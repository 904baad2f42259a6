"""The processes that a bench starts."""

from pathlib import Path

import pytest

from bench.harness import runs
from charformer.errors import UserError


def test_a_process_gives_its_last_line_and_shows_what_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "variant.py").write_text("print('hello'); print('{\"a\": 1}')", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert runs.run_process(["variant"]) == {"a": 1}
    assert capfd.readouterr().err == 'hello\n{"a": 1}\n'


def test_a_process_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "variant.py").write_text("print('{}'); raise SystemExit(3)", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(UserError, match="variant ended with exit code 3"):
        runs.run_process(["variant"])
