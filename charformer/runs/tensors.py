"""The writing and reading of safetensors files, each of which states the hash of its tensors."""

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from charformer.errors import UserError
from charformer.files import atomic_path

Tensors = dict[str, np.ndarray[Any, Any]]


def tensors_sha256(tensors: Mapping[str, np.ndarray[Any, Any]]) -> str:
    """Return the SHA-256 of the names, dtypes, shapes and bytes of ``tensors``, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def write_tensors(path: Path, tensors: Tensors, metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically, with the SHA-256 of its tensors added to the metadata.

    Equal tensors and metadata produce equal bytes.
    """
    # safetensors 0.8.0 writes the memory of a transposed array without reordering, under the shape of the transpose.
    tensors = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in tensors.items()}
    with atomic_path(path) as temporary:
        content = safetensors.numpy.save(tensors, metadata | {"sha256": tensors_sha256(tensors)})
        header, data = _ordered_header(content)
        with open(temporary, "wb") as file:  # save_file would make it unreadable for other users
            file.write(header)
            file.write(data)


def _ordered_header(content: bytes) -> tuple[bytes, memoryview]:
    """Return the header of a safetensors file with sorted keys, and the tensors after it.

    The header is sorted because safetensors writes the keys of the metadata in random order. The format
    (https://github.com/huggingface/safetensors) is: the header's length as a little-endian uint64, the header in JSON,
    padded with spaces, and the tensors.
    """
    (length,) = struct.unpack_from("<Q", content)
    header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return content[:8] + header.encode().ljust(length), memoryview(content)[8 + length :]


def read_tensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Return the tensors and the metadata of a file that ``write_tensors`` wrote.

    Raises UserError if the file is missing, damaged or does not have the hash that it states.
    """
    with _open_tensors(path) as file:
        metadata: dict[str, str] = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.offset_keys()}
    if any(array.dtype.kind not in "biuf" for array in tensors.values()):
        raise UserError(f"cannot read {path}: it has a dtype that no run has")
    if metadata.get("sha256") != tensors_sha256(tensors):
        raise UserError(f"{path} is damaged: its weights do not match the hash in its metadata")
    return tensors, metadata


def require_finite(tensors: Tensors, path: Path) -> None:
    """Raise UserError if the tensors of ``path`` contain infinities or NaN."""
    for name, array in tensors.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UserError(f"{name} in {path} holds values that are not finite; train the run again")


def read_metadata(path: Path) -> dict[str, str]:
    """Return only the metadata of such a file, without the tensors. Raises UserError if it is missing or damaged."""
    with _open_tensors(path) as file:
        return file.metadata() or {}


@contextmanager
def _open_tensors(path: Path) -> Iterator[Any]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"there is no {path}") from None
    except (OSError, TypeError, AttributeError, safetensors.SafetensorError) as error:  # or a dtype that NumPy lacks
        raise UserError(f"cannot read {path}: {error}") from error
