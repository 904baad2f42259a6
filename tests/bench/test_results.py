import json
from pathlib import Path

from bench.harness import results
from charformer.model.freeze import FREEZES


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


def test_every_freeze_has_a_label() -> None:
    row = results.row(engine="charformer", precision="bfloat16")
    labels = [results.label(row | {"freeze": freeze}) for freeze in (None, *FREEZES)]
    assert labels == ["charformer bf16"] * 2 + [f"charformer bf16 --freeze {freeze}" for freeze in FREEZES[1:]]
