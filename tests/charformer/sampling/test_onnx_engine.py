"""Compare the ONNX engine with PyTorch's, and open files that are wrong."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from charformer.errors import UserError
from charformer.runs.folder import RunDir
from charformer.sampling.onnx_engine import OnnxEngine, SharedCache
from charformer.sampling.onnx_format import read_metadata, sealed, unsealed
from export.exporter import export


@pytest.fixture(scope="module")
def files(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("onnx")
    layouts = {"fused": False, "portable": True}
    for name, portable in layouts.items():
        export(RunDir(trained_run), folder / f"{name}.onnx", "fp32", portable, corpus=None)
    return {name: folder / f"{name}.onnx" for name in layouts}


@pytest.mark.parametrize("layout", ["fused", "portable"])
def test_what_was_read_can_be_forgotten(layout: str, files: dict[str, Path]) -> None:
    engine, plain = OnnxEngine(files[layout]), OnnxEngine(files[layout])
    engine.start(np.array([[1, 2, 3]]))
    assert engine.room >= 5
    kept = engine.extend(np.array([[4, 9, 9]]))[:, :1].copy()
    engine.rewind(2)
    plain.start(np.array([[1, 2, 3, 4]]))
    np.testing.assert_allclose(engine.extend(np.array([[5]])), plain.extend(np.array([[5]])), atol=1e-5)
    np.testing.assert_allclose(kept[:, 0], plain.start(np.array([[1, 2, 3, 4]])), atol=1e-5)


def test_the_file_says_what_it_is(files: dict[str, Path], trained_run: Path) -> None:
    description = OnnxEngine(files["fused"]).description
    run = RunDir(trained_run)
    config, vocab = run.read_shape()
    assert description.config == config
    assert description.vocab.characters == vocab.characters
    assert (description.precision, description.portable, description.draft) == ("fp32", False, None)
    assert description.weights_sha256 == run.weights_sha256()


def test_any_byte_that_is_changed_or_missing_is_noticed(files: dict[str, Path], tmp_path: Path) -> None:
    content = files["fused"].read_bytes()
    path = tmp_path / "model.onnx"
    places = [*range(0, len(content), len(content) // 40), len(content) - 1, len(content) - 70, len(content) - 76]
    for place in places:
        for damaged in (content[:place], content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]):
            path.write_bytes(damaged)
            with pytest.raises(UserError, match="is damaged"):
                OnnxEngine(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(UserError, match="is damaged"):
        OnnxEngine(path)


def edited(files: dict[str, Path], **values: object) -> bytes:
    """Give the file another description, with a hash that fits."""
    model = onnx.load_from_string(unsealed(files["fused"].read_bytes()))
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    described = json.loads(metadata["charformer"])
    for name, value in values.items():
        if name in metadata:
            metadata[name] = str(value)
        elif isinstance(value, dict) and name == "model":
            described[name] |= value
        else:
            described[name] = value
    metadata["charformer"] = json.dumps(described)
    onnx.helper.set_model_props(model, metadata)
    return sealed(model.SerializeToString())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": 4}, "its format is 4 and this version reads 3; update"),
        ({"format": 3}, "damaged"),
        ({"format": 1}, "an earlier version wrote it; charformer-export"),
        ({"format": "2"}, "its format is 2 and"),
        ({"vocab": {"code_points": [65, 66]}}, "it has 2 characters"),
        ({"vocab": {"code_points": [65, 65]}}, "twice"),
        ({"model": {"n_layer": "many"}}, "n_layer"),
        ({"model": []}, "damaged"),
        ({"draft": "!!!"}, "table of proposals"),
        ({"precision": "fp7"}, "does not write"),
        ({"precision": "fp16"}, "not the one that it describes"),
        ({"portable": True}, "not the one that it describes"),
        ({"portable": "no"}, "does not write"),
        ({"weights_sha256": 3}, "does not write"),
        ({"model": {"block_size": 48}}, "not the one that it describes"),
        ({"model": {"n_layer": 2**30}}, "not the one that it describes"),
        ({"model": {"vocab_size": 0}, "vocab": {"code_points": []}}, "does not write"),
        ({"model": {"vocab_size": 2}, "vocab": {"code_points": [65, 66]}}, "not the one that it describes"),
    ],
    ids=str,
)
def test_descriptions_that_are_not_ours(
    values: dict[str, object], message: str, files: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(edited(files))
    OnnxEngine(path)  # only the values are wrong
    path.write_bytes(edited(files, **values))
    with pytest.raises(UserError, match=message):
        OnnxEngine(path)


def test_metadata_are_read_as_onnx_reads_them(files: dict[str, Path]) -> None:
    for path in files.values():
        content = unsealed(path.read_bytes())
        wanted = {entry.key: entry.value for entry in onnx.load_from_string(content).metadata_props}
        assert read_metadata(content) == wanted


def test_a_graph_that_could_run_forever_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    model = onnx.load_from_string(unsealed(files["fused"].read_bytes()))
    model.graph.node.append(onnx.helper.make_node("Loop", [], []))
    (tmp_path / "m.onnx").write_bytes(sealed(model.SerializeToString()))
    with pytest.raises(UserError, match="operators that are not ours: Loop"):
        OnnxEngine(tmp_path / "m.onnx")


def renamed(model: onnx.ModelProto, domain: str) -> onnx.ModelProto:
    for node in model.graph.node:
        if node.op_type == "Relu":
            node.domain = domain
    return model


def with_function(model: onnx.ModelProto, domain: str) -> onnx.ModelProto:
    """Give the model a function of its own for its Relu."""
    opsets = [onnx.helper.make_opsetid("", 21)]
    body = [onnx.helper.make_node("Identity", ["x"], ["y"])]
    model.functions.append(onnx.helper.make_function(domain, "Relu", ["x"], ["y"], body, opsets))
    if domain:
        model.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    return renamed(model, domain)


def with_training(model: onnx.ModelProto) -> onnx.ModelProto:
    model.training_info.add().algorithm.name = "train"
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: with_function(model, "own").SerializeToString(), "not ours: field 25|not ours: own Relu"),
        (lambda model: with_function(model, "").SerializeToString(), "not ours: field 25"),
        (lambda model: with_training(model).SerializeToString(), "not ours: field 20"),
        (lambda model: renamed(model, "com.microsoft").SerializeToString(), "not ours: com.microsoft Relu"),
        (lambda model: renamed(model, "ai.onnx").SerializeToString(), "not ours: ai.onnx Relu"),
        # an empty field 25, under a key that is 2**32 larger
        (lambda model: model.SerializeToString() + b"\xca\x81\x80\x80\x10\0", "not an ONNX model"),
    ],
    ids=["function", "function for a standard operator", "training", "unknown", "other name", "long key"],
)
def test_parts_that_are_not_ours_are_refused(
    change: Callable[[onnx.ModelProto], bytes], message: str, files: dict[str, Path], tmp_path: Path
) -> None:
    content = change(onnx.load_from_string(unsealed(files["fused"].read_bytes())))
    (tmp_path / "m.onnx").write_bytes(sealed(content))
    with pytest.raises(UserError, match=message):
        OnnxEngine(tmp_path / "m.onnx")


def test_weights_beside_the_file_are_not_read(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load_from_string(unsealed(files["fused"].read_bytes()))
    tensor = next(entry for entry in model.graph.initializer if entry.name == "tok_emb.weight")
    (tmp_path / "secret.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret.bin")
    (tmp_path / "m.onnx").write_bytes(sealed(model.SerializeToString()))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="cannot load its graph"):
        OnnxEngine(tmp_path / "m.onnx")


def test_onnxruntime_keeps_no_log_of_its_users(files: dict[str, Path], tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; from charformer.sampling.onnx_engine import OnnxEngine; "
    script += "OnnxEngine(Path(sys.argv[1]))"
    quiet = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment = quiet | {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", script, files["fused"]], env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert not list(tmp_path.iterdir())


def test_files_of_other_tools(tmp_path: Path, files: dict[str, Path]) -> None:
    path = tmp_path / "model.onnx"
    nodes = [onnx.helper.make_node("Relu", ["x"], ["y"])]
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:])
    opsets = [onnx.helper.make_opsetid("", 21)]
    other = onnx.helper.make_model(graph, ir_version=10, opset_imports=opsets).SerializeToString()
    for content, message in (
        (other, "was not written by charformer-export"),
        (sealed(other), "description is damaged"),
        (b"", "was not written by charformer-export"),
        (b"\n" * 100, "was not written by charformer-export"),
        (sealed(b"not a graph at all"), "it is not an ONNX model"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            OnnxEngine(path)
    with pytest.raises(UserError, match="cannot read"):
        OnnxEngine(tmp_path / "nowhere.onnx")
    with pytest.raises(UserError, match="cannot read"):
        OnnxEngine(tmp_path)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_rounding_depends_a_little_on_how_many_are_read_at_once(
    precision: str, trained_run: Path, tmp_path: Path
) -> None:
    """Speculation in 8 bits needs this: a character has the same logits beside others as alone, up to rounding."""
    export(RunDir(trained_run), tmp_path / "m.onnx", precision, portable=False, corpus=None)
    engine = OnnxEngine(tmp_path / "m.onnx")
    ids = np.random.default_rng(0).integers(30, size=(1, 5))
    engine.start(np.array([[3]]))
    together = engine.extend(ids).copy()
    engine.rewind(5)
    alone = np.concatenate([engine.extend(ids[:, [place]]).copy() for place in range(5)], axis=1)
    assert np.abs(together - alone).max() < 0.1


def test_inputs_are_bound_again_where_a_binding_copies_them(files: dict[str, Path]) -> None:
    """The CUDA provider copies inputs when they are bound, and the CPU's may do so too."""
    engine = OnnxEngine(files["fused"])
    wanted = [engine.start(np.array([[1]])).copy(), *(engine.extend(np.array([[n]])).copy()[0] for n in (2, 3))]
    rebinding = OnnxEngine(files["fused"])
    rebinding.device = "cpu"
    cache = rebinding._new_cache(1)
    assert isinstance(cache, SharedCache)
    cache.rebinds = True
    found = [cache.run(np.array([[n]]), place)[0].copy() for place, n in enumerate((1, 2, 3))]
    np.testing.assert_array_equal(np.concatenate(wanted), np.concatenate(found))


def test_threads_reach_onnxruntime(files: dict[str, Path]) -> None:
    options = [OnnxEngine(files["fused"], threads)._session.get_session_options() for threads in (1, 3)]
    assert [option.intra_op_num_threads for option in options] == [1, 3]


def test_cuda_is_refused_where_it_is_not(files: dict[str, Path], trained_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--precision fp16"):
        OnnxEngine(files["fused"], provider="cuda")
    if torch.cuda.is_available():
        return
    export(RunDir(trained_run), tmp_path / "half.onnx", "fp16", portable=False, corpus=None)
    assert OnnxEngine(tmp_path / "half.onnx").device == "cpu"
    with pytest.raises(UserError, match="finds no CUDA"):
        OnnxEngine(tmp_path / "half.onnx", provider="cuda")
