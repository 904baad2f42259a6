import json
from pathlib import Path

import pytest

from bench import busy


def test_training_and_sampling_are_measured_alone_and_beside_a_busy_process(text_file: Path, tmp_path: Path) -> None:
    result = tmp_path / "busy.json"
    flags = ["--steps", "2", "--rounds", "1", "--threads", "1", "--data", str(text_file), "--json", str(result)]
    assert busy.main(flags) == 0
    rows = json.loads(result.read_text("utf-8"))["rows"]
    found = [(row["work"], row["threads"], row["busy"]) for row in rows]
    assert found == [(work, "1", is_busy) for work in ("training", "sampling, fp32") for is_busy in (False, True)]
    assert all(row["chars_per_second"]["p50"] > 0 for row in rows)
    assert rows[0]["precision"] in ("float32", "bfloat16"), "what auto has chosen"


def test_a_mistake_in_the_threads_is_found_before_any_training(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        busy.main(["--threads", "chosen", "abc"])
    assert "'abc' is not a positive whole number" in capsys.readouterr().err
