import json
import os
import subprocess
import sys
from pathlib import Path


def test_each_setting_trains_alone_and_beside_a_busy_process(english: str, tmp_path: Path) -> None:
    text, result = tmp_path / "text.txt", tmp_path / "busy.json"
    text.write_text(english[:16_000], encoding="utf-8")
    command = [sys.executable, "-m", "bench.busy", "--steps", "4", "--rounds", "1", "--spins", "0", "--data", str(text)]
    done = subprocess.run(
        [*command, "--json", str(result)],
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(result.read_text("utf-8"))["rows"]
    assert [(row["spins"], row["busy"]) for row in rows] == [("0", False), ("0", True)]
    assert all(row["chars_per_second"]["p50"] > 0 for row in rows)
