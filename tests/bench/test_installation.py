"""bench.installation: the size that it reports."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bench import installation


@pytest.mark.skipif(os.name == "nt" or shutil.which("du") is None, reason="no du")
def test_bytes_on_disk_are_those_of_du(tmp_path: Path) -> None:
    package = tmp_path / "lib" / "site-packages" / "big" / "below"
    package.mkdir(parents=True)
    (package / "file").write_bytes(b"x" * 3_000_000)
    (tmp_path / "small").write_bytes(b"x")
    shown = subprocess.run(["du", "-sk", tmp_path], capture_output=True, text=True, check=True)
    found = installation._sizes(tmp_path)
    folders = 4 * 4096  # which du counts too
    assert found["disk_bytes"] == pytest.approx(1024 * int(shown.stdout.split()[0]), abs=2 * folders)
    assert found["largest_mb"] == {"big": 3}
