import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from charformer.config import ModelConfig, TrainConfig
from charformer.data.vocab import Vocab
from charformer.errors import UserError
from charformer.files import atomic_path, write_text
from charformer.runs.folder import RunDir
from charformer.runs.record import RunRecord
from charformer.runs.tensors import read_tensors, write_tensors


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with (
        pytest.raises(UnicodeEncodeError),
        atomic_path(path) as temporary,
        open(temporary, "w", encoding="ascii") as file,
    ):
        file.write("half\n" * 10_000 + "é")
    assert path.read_text("utf-8") == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_write_never_changes_the_old_file_in_place(tmp_path: Path) -> None:
    path, link = tmp_path / "file", tmp_path / "link"
    write_text(path, "old")
    link.hardlink_to(path)
    write_text(path, "new")
    assert (path.read_text("utf-8"), link.read_text("utf-8")) == ("new", "old")


def test_a_killed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    script = (
        "import os, sys; from pathlib import Path; from charformer.files import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as temporary: temporary.write_text('half'); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)]).returncode == 9
    assert path.read_text("utf-8") == "old"


def test_an_unwritable_folder_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        write_text(tmp_path / "missing" / "file", "text")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="cannot create the folder"):
        RunDir(tmp_path / "file" / "run").start()


def test_tensors_survive_and_damage_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(3, np.int64)}
    write_tensors(path, tensors, {"note": "é"})
    again, metadata = read_tensors(path)
    assert metadata["note"] == "é"
    assert len(metadata["sha256"]) == 64
    for name, array in tensors.items():
        np.testing.assert_array_equal(again[name], array)
        assert again[name].dtype == array.dtype
    content = bytearray(path.read_bytes())
    for place in (0, 20, len(content) - 1):
        damaged = content.copy()
        damaged[place] ^= 0x40
        path.write_bytes(damaged)
        with pytest.raises(UserError):
            read_tensors(path)
    path.write_bytes(content[:-4])
    with pytest.raises(UserError):
        read_tensors(path)
    with pytest.raises(UserError, match="there is no"):
        read_tensors(tmp_path / "nowhere")


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_weights_are_as_readable_as_any_file(tmp_path: Path) -> None:
    write_tensors(tmp_path / "weights", {"a": np.zeros(1, np.float32)}, {})
    write_text(tmp_path / "text", "")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("weights", "text")}
    assert len(modes) == 1


def test_a_folder_is_free_only_for_a_run(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.check_free(overwrite=False)
    run.start()
    run.check_free(overwrite=False)
    run.write_config({})
    with pytest.raises(UserError, match=r"`resume` .* `overwrite`"):
        run.check_free(overwrite=False)
    run.check_free(overwrite=True)
    strange = tmp_path / "home"
    strange.mkdir()
    (strange / "thesis.txt").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="files that are not a run's"):
        RunDir(strange).check_free(overwrite=True)
    with pytest.raises(UserError, match="not a folder"):
        RunDir(strange / "thesis.txt").check_free(overwrite=True)


def test_a_killed_start_does_not_block_the_next(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    (tmp_path / ".last.safetensors.123.tmp").write_bytes(b"half")
    run.check_free(overwrite=False)
    run.start()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["sample.txt", "model.safetensors", "vocab.json"])
def test_a_file_that_is_only_called_like_a_run_s_is_kept(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="files that are not a run's"):
        RunDir(tmp_path).check_free(overwrite=True)


def test_another_program_s_model_is_not_a_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    with pytest.raises(UserError, match="is not a run's, or"):
        RunDir(tmp_path).check_free(overwrite=True)


def test_overwriting_removes_a_run_s_files_and_no_others(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.write_config({})
    run.write_metrics([{"step": 1}])
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    run.start()
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


def test_configs_vocabularies_and_metrics_survive(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.write_config({"stage": "pretrain"})
    run.write_vocab(Vocab("a\né😀"))
    rows = [{"step": step, "characters": 9, "train_loss": 1.5, "val_loss": 2} for step in (0, 5)]
    run.write_metrics(rows)
    assert run.read_config() == {"format": 1, "stage": "pretrain"}
    assert run.read_vocab().characters == "a\né😀"
    assert run.read_metrics() == rows


@pytest.mark.parametrize("ngram_order", [0, 3])
def test_only_a_model_with_a_prior_has_a_field_that_earlier_versions_lack(ngram_order: int, tmp_path: Path) -> None:
    run, model = RunDir(tmp_path), ModelConfig(vocab_size=65, ngram_order=ngram_order)
    record = RunRecord("pretrain", "nano", "none", model, TrainConfig(), {"name": "a"})
    record.write(run)
    assert ("ngram_order" in run.read_section("model")) == (ngram_order > 0)
    assert RunRecord.read(run) == record


def test_broken_json_is_a_clear_error(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    with pytest.raises(UserError, match="no run in"):
        run.read_config()
    for content in (b"{", b"\xff", b"[]", json.dumps({"format": 99}).encode()):
        run.config.write_bytes(content)
        with pytest.raises(UserError):
            run.read_config()
    for content in ("{", "[]\n", '{"step": 1}\n', '{"step": 1, "characters": "x", "train_loss": 1, "val_loss": 1}\n'):
        run.metrics.write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match="damaged"):
            run.read_metrics()
