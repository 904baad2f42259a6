"""The format of charformer-export's .onnx files: their metadata, and a hash that detects changes."""

import base64
import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from charformer.config import ModelConfig
from charformer.data.ngram import NgramTable
from charformer.data.vocab import Vocab
from charformer.errors import UserError
from charformer.sampling.speculation import Draft, PriorDraft, Proposer

FORMAT = 2
PRIOR_FORMAT = 3  # of a model with an n-gram prior, which version 2 lacks
MAX_TABLE = 1 << 28  # bytes of its table
PRECISIONS = ("fp32", "fp16", "int8", "int4")

# A file ends with this metadata entry of a serialized ModelProto and 64 hexadecimal digits, the SHA-256 of all before.
HASH_ENTRY = b"\x72\x4a\x0a\x06sha256\x12\x40"

# Numbers of fields: those of a ModelProto that are messages or texts and that charformer-export writes, ...
PRODUCER, GRAPH, OPSETS, METADATA = 2, 7, 8, 14
NODE = 1  # ... of a GraphProto, ...
OPERATOR, DOMAIN = 4, 7  # ... and of a NodeProto
OPERATORS = {
    "": frozenset(
        (
            *("Add", "Cast", "Concat", "DequantizeLinear", "Exp", "Gather", "Greater", "LayerNormalization", "Log"),
            *("MatMul", "Mul", "Or", "Range", "Relu", "Reshape", "Softmax", "Split", "Sqrt", "Squeeze", "Sub"),
            *("Transpose", "Unsqueeze", "Where"),
        )
    ),
    "com.microsoft": frozenset(
        ("DynamicQuantizeMatMul", "GroupQueryAttention", "MatMulNBits", "SkipSimplifiedLayerNormalization")
    ),
}


def padded_width(config: ModelConfig) -> int:
    """Return a head's width in a fused graph: a multiple of 8 for GroupQueryAttention, or of 16 to rotate."""
    multiple = 16 if config.rope_base else 8
    return -(-(config.n_embd // config.n_head) // multiple) * multiple


def sealed(content: bytes) -> bytes:
    """Return a serialized ModelProto with its own hash appended as one more metadata entry."""
    return content + HASH_ENTRY + hashlib.sha256(content).hexdigest().encode()


def unsealed(content: bytes) -> bytes:
    """Return the ModelProto that ``sealed`` hashed. Raises ValueError for other bytes."""
    body, entry, digest = content[: -len(HASH_ENTRY) - 64], content[-len(HASH_ENTRY) - 64 : -64], content[-64:]
    if entry != HASH_ENTRY or digest != hashlib.sha256(body).hexdigest().encode():
        raise ValueError("the hash at its end is missing or wrong")
    return body


def is_sealed(path: Path) -> bool:
    """Return whether a file ends with the entry that ``sealed`` appends. Its hash may be wrong: the file is damaged."""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - len(HASH_ENTRY) - 64))
        return file.read(len(HASH_ENTRY)) == HASH_ENTRY


def read_metadata(content: bytes) -> dict[str, str]:
    """Return the metadata of a serialized ModelProto.

    In protocol buffers, a message is a sequence of fields, each with a key, which is 8 x its number + its type, and a
    value. Raises ValueError for other bytes, and for a model that could loop forever: one with an operator that
    charformer-export does not use, or with functions, training steps or other parts that it does not write.
    """
    found = {}
    for number, entry in _fields(memoryview(content)):
        if number not in (PRODUCER, GRAPH, OPSETS, METADATA):
            raise ValueError(f"it has a part that is not ours: field {number} of the model")
        if number == METADATA:
            pair = {part: bytes(text).decode() for part, text in _fields(entry)}
            found[pair.get(1, "")] = pair.get(2, "")
        elif number == GRAPH:
            operators = {_operator(node) for part, node in _fields(entry) if part == NODE}
            strangers = [f"{domain} {name}" for domain, name in operators if name not in OPERATORS.get(domain, ())]
            if strangers:
                raise ValueError(f"it has operators that are not ours: {', '.join(sorted(strangers))[:100].strip()}")
    return found


def _operator(node: memoryview) -> tuple[str, str]:
    """Return a node's domain, which is empty for a standard operator, and its operator; of repeated fields the last."""
    texts = {part: bytes(text).decode() for part, text in _fields(node) if part in (OPERATOR, DOMAIN)}
    return texts.get(DOMAIN, ""), texts.get(OPERATOR, "")


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield the number and content of each field of a message that is a string or a message."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        if key >> 32:  # keys have 32 bits
            raise ValueError("it is not an ONNX model")
        kind, length = key & 7, {1: 8, 5: 4}.get(key & 7, 0)
        if kind == 0:
            _, place = _varint(message, place)
        elif kind == 2:
            length, place = _varint(message, place)
        elif not length:
            raise ValueError("it is not an ONNX model")
        if place + length > len(message):
            raise ValueError("it ends too early")
        if kind == 2:
            yield key >> 3, message[place : place + length]
        place += length


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """Return the number at ``place``, of seven bits per byte, lowest first, and the place after it."""
    value = 0
    for shift in range(0, 64, 7):
        byte = message[place] if place < len(message) else 0
        value |= (byte & 127) << shift
        place += 1
        if byte < 128:
            return value, place
    raise ValueError("it is not an ONNX model")


class OutdatedError(UserError):
    """Raised for a file of an earlier version, of which only these attributes are known."""

    def __init__(self, message: str, precision: str, portable: bool) -> None:
        super().__init__(message)
        self.precision = precision
        self.portable = portable


@dataclass(frozen=True)
class Description:
    """The description of a model in its file's metadata."""

    config: ModelConfig
    vocab: Vocab
    precision: str
    portable: bool
    weights_sha256: str
    draft: Draft | None
    ngram: NgramTable | None = None

    @property
    def proposer(self) -> Proposer | None:
        """Return the table that proposes characters in speculative sampling; None if the file has none."""
        return self.draft if self.ngram is None else PriorDraft(self.ngram)

    def to_metadata(self) -> dict[str, str]:
        """Return the description as metadata entries for the file."""
        values = {
            "format": PRIOR_FORMAT if self.ngram else FORMAT,
            "model": self.config.to_dict(),
            "vocab": self.vocab.to_dict(),
            "precision": self.precision,
            "portable": self.portable,
            "weights_sha256": self.weights_sha256,
        }
        texts = {"charformer": json.dumps(values), "draft": self.draft.to_text() if self.draft else ""}
        return texts | ({"ngram": _table_to_text(self.ngram)} if self.ngram else {})

    @classmethod
    def from_metadata(cls, metadata: dict[str, str]) -> "Description":
        """Return the description that ``to_metadata`` wrote. Raises UserError for other metadata or another version."""
        try:
            values = json.loads(metadata["charformer"])
            if values["format"] not in (FORMAT, PRIOR_FORMAT):
                if values["format"] in range(FORMAT) and values["precision"] in PRECISIONS:
                    message = "an earlier version wrote it; charformer-export writes it again"
                    raise OutdatedError(message, values["precision"], values["portable"] is True)
                raise UserError(
                    f"its format is {str(values['format'])[:20]} and this version reads {PRIOR_FORMAT}; "
                    "update charformer"
                )
            config, vocab = ModelConfig.from_dict(values["model"]), Vocab.from_dict(values["vocab"])
            if len(vocab) != config.vocab_size:
                raise UserError(f"it has {len(vocab)} characters and says {config.vocab_size}")
            precision, portable, weights_sha256 = (values[key] for key in ("precision", "portable", "weights_sha256"))
            types = (type(precision), type(portable), type(weights_sha256))
            if len(vocab) == 0 or precision not in PRECISIONS or types != (str, bool, str):
                raise ValueError("a value that charformer-export does not write")
            draft = Draft.from_text(metadata["draft"], config.vocab_size) if metadata["draft"] else None
            if (values["format"] == PRIOR_FORMAT) != (config.ngram_order > 0):
                raise ValueError("a format that does not go with its model")
            ngram = _table_from_text(metadata["ngram"], config) if config.ngram_order else None
            return cls(config, vocab, precision, portable, weights_sha256, draft, ngram)
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            reason = repr(error)[:100]
            raise UserError(f"its description is damaged: {reason}; charformer-export writes it again") from error


def _table_to_text(table: NgramTable) -> str:
    """Return a safetensors file of the table's arrays, compressed (RFC 1950) and in base64."""
    return base64.b64encode(zlib.compress(safetensors.numpy.save(table.arrays), 9)).decode()


def _table_from_text(text: str, config: ModelConfig) -> NgramTable:
    """Return the table that ``_table_to_text`` wrote. Raises UserError or ValueError for anything else."""
    try:
        content = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), MAX_TABLE)
        arrays = safetensors.numpy.load(content)
    except (zlib.error, safetensors.SafetensorError) as error:
        raise ValueError(f"no n-gram table: {error}") from error
    if any(array.dtype not in (np.uint8, np.uint16) for array in arrays.values()):
        raise ValueError("an n-gram table of other numbers")
    table = NgramTable(config.vocab_size, arrays)
    if table.order > config.ngram_order:
        raise ValueError("an n-gram table of longer contexts than the model's")
    return table
