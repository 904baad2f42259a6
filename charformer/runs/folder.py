"""A run's folder: its files by name, and their contents."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from charformer.config import ModelConfig
from charformer.data.ngram import NgramTable
from charformer.data.vocab import Vocab
from charformer.errors import UserError
from charformer.files import make_folder, write_text
from charformer.runs.tensors import (
    Tensors,
    read_metadata,
    read_tensors,
    require_finite,
    tensors_sha256,
    write_tensors,
)

FORMAT = 1
WEIGHTS = ("best", "last")  # the best on validation, and those of the last save
MODEL = "model."  # the prefix of a weight's name in last.safetensors
EVENTS = "events.out.tfevents.*"  # the files of --log tensorboard
PLOTTED = ("step", "characters", "train_loss", "val_loss")
CARD_MARK = "\n<!-- charformer-train replaces this file as long as nobody has changed it. SHA-256 of the above: "


class RunDir:
    """The files of one run, by name."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.vocab = self.path / "vocab.json"
        self.weights = self.path / "model.safetensors"
        self.ngram = self.path / "ngram.safetensors"
        self.state = self.path / "last.safetensors"
        self.metrics = self.path / "metrics.jsonl"
        self.plot = self.path / "loss.png"
        self.sample = self.path / "sample.txt"
        self.card = self.path / "README.md"
        self.onnx = self.path / "model.onnx"
        self.lock = self.path / ".lock"

    def _files(self) -> list[Path]:
        """Return every file of a run, config.json last: as long as it exists, the folder is a run's."""
        files = [value for name, value in vars(self).items() if name not in ("path", "config", "lock")]
        return [*files, *self.path.glob(EVENTS), self.config]

    def _left_over(self) -> list[Path]:
        """Return the temporary files of writes that were killed."""
        return [path for file in self._files() for path in self.path.glob(f".{file.name}.*.tmp")]

    @property
    def exists(self) -> bool:
        """Return whether there is a run in the folder."""
        return self.config.is_file()

    @property
    def written(self) -> float:
        """Return when the weights were written, in seconds since the epoch. Raises OSError if there are none."""
        return self.weights.stat().st_mtime

    def check_free(self, overwrite: bool) -> None:
        """Raise UserError if the folder contains a run and ``overwrite`` is False, or contains anything but a run.

        A lock and the temporary files of a write that was killed do not count.
        """
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise UserError(f"{self.path} is not a folder; choose another `out`")
        if self.exists:
            self.read_config()  # other programs have a config.json too, which is not a run's
            if not overwrite:
                raise UserError(
                    f"{self.path} holds a run: `resume` continues it, `overwrite` replaces it, "
                    "another `out` goes elsewhere"
                )
        elif set(self.path.iterdir()) - {*self._left_over(), self.lock}:
            raise UserError(f"{self.path} holds files that are not a run's; choose another `out`")

    def start(self) -> None:
        """Create the folder, and remove the files of an earlier run in it, but no README.md that someone has changed.

        Raises UserError if that is impossible.
        """
        make_folder(self.path)
        kept = [self.card] if self.card_is_changed else []
        _remove([*self._left_over(), *(path for path in self._files() if path not in kept)])

    def tidy(self) -> None:
        """Remove the files that killed writes have left. Raises UserError if that is impossible.

        An unfinished model.onnx stays: an export takes no lock, and may be running.
        """
        _remove([path for path in self._left_over() if not path.name.startswith(f".{self.onnx.name}.")])

    def write_config(self, values: dict[str, Any]) -> None:
        write_text(self.config, json.dumps({"format": FORMAT} | values, indent=2) + "\n")

    def read_config(self) -> dict[str, Any]:
        """Return config.json. Raises UserError if there is no run, or one that this version cannot read."""
        if not self.exists:
            raise UserError(f"there is no run in {self.path}; `charformer-train --out {self.path}` makes one")
        values = _read_json(self.config)
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise UserError(
                f"{self.config} is not a run's, or was written by another version (this one has format {FORMAT})"
            )
        return values

    def read_section(self, name: str) -> dict[str, Any]:
        """Return one object of config.json. Raises UserError if it is missing."""
        values = self.read_config().get(name)
        if not isinstance(values, dict):
            raise UserError(f"{self.config} has no {name!r}")
        return values

    def read_shape(self) -> tuple[ModelConfig, Vocab]:
        """Return the model's shape and its vocabulary. Raises UserError unless both exist and have the same size."""
        config, vocab = ModelConfig.from_dict(self.read_section("model")), self.read_vocab()
        if not len(vocab) == config.vocab_size > 0:
            raise UserError(f"{self.vocab} has {len(vocab)} characters, {self.config} says {config.vocab_size}")
        return config, vocab

    def read_weights(self, config: ModelConfig, which: str = "best") -> tuple[Tensors, dict[str, str]]:
        """Return the weights, best or last, and their metadata, which always includes the hash.

        Raises UserError if there are none yet, or they are damaged, not finite, or not of a model of that shape.
        """
        self._require_weights(which)
        if which == "last":
            state = read_tensors(self.state)[0]
            tensors = {name.removeprefix(MODEL): array for name, array in state.items() if name.startswith(MODEL)}
            metadata = {"sha256": tensors_sha256(tensors)}
        else:
            tensors, metadata = read_tensors(self.weights)
        if any(array.dtype != np.float32 for array in tensors.values()):
            raise UserError(f"the weights in {self.path} are not float32, as charformer-train writes them")
        shapes = {name: array.shape for name, array in tensors.items()}
        if config.n_layer > len(shapes) or shapes != config.weight_shapes():  # no list for a huge n_layer
            raise UserError(f"the weights in {self.path} do not fit its config.json")
        require_finite(tensors, self.state if which == "last" else self.weights)
        return tensors, metadata

    def weights_sha256(self, which: str = "best") -> str:
        """Return the hash of the model: of its weights, best or last, and of its n-gram table if it has one.

        Raises UserError if there is no model. The hashes of the best weights and of the table are read from their
        files' metadata, without the tensors.
        """
        self._require_weights(which)
        config = ModelConfig.from_dict(self.read_section("model"))
        weights = self.read_weights(config, which)[1]["sha256"] if which == "last" else _stated_sha256(self.weights)
        has_table = config.ngram_order
        return combined_sha256(weights, _stated_sha256(self.ngram) if has_table else None)

    def write_ngram(self, table: NgramTable) -> None:
        write_tensors(self.ngram, table.arrays, {})

    def read_ngram(self, config: ModelConfig) -> NgramTable | None:
        """Return the table of the run's n-gram prior; None if its model, of the shape ``config``, has no prior.

        Raises UserError if the table is missing, damaged, or of another size.
        """
        if not config.ngram_order:
            return None
        arrays = read_tensors(self.ngram)[0]
        try:
            table = NgramTable(config.vocab_size, arrays)
        except UserError as error:
            raise UserError(f"{self.ngram} is damaged: {error}") from error
        if table.order > config.ngram_order:
            raise UserError(f"{self.ngram} has longer contexts than its run's config.json says")
        return table

    def _require_weights(self, which: str) -> None:
        self.read_config()  # to raise the error for a missing run first
        if not (self.weights.is_file() or self.state.is_file()):
            raise UserError(
                f"the run in {self.path} has saved no weights yet; `charformer-train --overwrite` starts it again"
            )
        if which == "best" and not self.weights.is_file():
            raise UserError(f"there is no {self.weights}; `charformer-train --resume` with more steps writes one")

    @property
    def card_is_changed(self) -> bool:
        """Return whether there is a README.md that differs from what ``write_card`` wrote."""
        try:
            above, mark, rest = self.card.read_text("utf-8").rpartition(CARD_MARK)
        except FileNotFoundError:
            return False
        except (OSError, ValueError):
            return True
        return not mark or rest != _card_ending(above)

    def write_card(self, text: str) -> bool:
        """Write README.md, unless someone has changed it; return whether it was written.

        Raises WriteError if that is impossible.
        """
        if self.card_is_changed:
            return False
        write_text(self.card, text + CARD_MARK + _card_ending(text))
        return True

    def write_vocab(self, vocab: Vocab) -> None:
        write_text(self.vocab, json.dumps(vocab.to_dict()) + "\n")

    def read_vocab(self) -> Vocab:
        try:
            return Vocab.from_dict(_read_json(self.vocab))
        except UserError as error:
            raise UserError(f"cannot use {self.vocab}: {error}") from error

    def write_metrics(self, rows: list[dict[str, Any]]) -> None:
        write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the rows of metrics.jsonl, or none if there is no such file. Raises UserError if it is damaged."""
        if not self.metrics.is_file():
            return []
        try:
            rows = [json.loads(line) for line in self.metrics.read_text("utf-8").splitlines()]
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.metrics} is damaged: {error}") from error
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, dict) or not all(isinstance(row.get(key), int | float) for key in PLOTTED):
                raise UserError(f"{self.metrics} is damaged: line {number} lacks a number of {', '.join(PLOTTED)}")
        return rows


def combined_sha256(weights: str, table: str | None) -> str:
    """Return one hash for the hashes of a model's weights and n-gram table; without a table, that of the weights."""
    return weights if table is None else hashlib.sha256(f"{weights} {table}".encode()).hexdigest()


def table_sha256(table: NgramTable | None) -> str | None:
    """Return the hash of ``table``, as its file in a run states it; None for no table."""
    return None if table is None else tensors_sha256(table.arrays)


def _card_ending(text: str) -> str:
    return f"{hashlib.sha256(text.encode()).hexdigest()} -->\n"


def _stated_sha256(path: Path) -> str:
    sha256 = read_metadata(path).get("sha256")
    if sha256 is None:
        raise UserError(f"{path} has no hash in its metadata; another program wrote it")
    return sha256


def _remove(paths: list[Path]) -> None:
    try:
        for path in paths:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot remove {error.filename}: {error.strerror}") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
