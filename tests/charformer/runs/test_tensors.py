import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from charformer.runs.tensors import read_tensors, write_tensors

MATRIX = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.mark.parametrize(
    "array",
    [MATRIX.T, MATRIX[:, ::2], MATRIX[::-1], np.asfortranarray(MATRIX), MATRIX.T[1:], np.float32(2.5), MATRIX[:0]],
    ids=["transposed", "strided", "reversed", "Fortran", "part of a transpose", "scalar", "empty"],
)
def test_values_survive_whatever_the_order_of_their_memory(array: np.ndarray, tmp_path: Path) -> None:
    array = np.asarray(array)
    write_tensors(tmp_path / "a", {"x": array, "y": MATRIX}, {"of": "a test"})
    tensors, metadata = read_tensors(tmp_path / "a")
    assert tensors["x"].shape == array.shape
    np.testing.assert_array_equal(tensors["x"], array)
    np.testing.assert_array_equal(safetensors.numpy.load_file(tmp_path / "a")["y"], MATRIX)
    assert metadata["of"] == "a test"


def test_equal_tensors_make_equal_files_in_every_process(tmp_path: Path) -> None:
    script = """if True:
        import sys
        from pathlib import Path
        import numpy as np
        from charformer.runs.tensors import write_tensors
        texts = {name: name * 3 for name in ("step", "é💥\\n\\"\\x01\\\\", "val_loss", "counters", "a", "b")}
        write_tensors(Path(sys.argv[1]), {"b": np.ones(3), "a": np.zeros((2, 2), np.int64)}, texts)
    """
    paths = [tmp_path / str(number) for number in range(4)]
    for path in paths:
        subprocess.run([sys.executable, "-c", script, path], check=True)
    assert len({path.read_bytes() for path in paths}) == 1
    assert read_tensors(paths[0])[1]['é💥\n"\x01\\'] == 'é💥\n"\x01\\' * 3
