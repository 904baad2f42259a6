"""The contents of a run's config.json, with types."""

from dataclasses import asdict, dataclass, field
from typing import Any, Self

from charformer.config import ModelConfig, TrainConfig
from charformer.errors import UserError
from charformer.runs.folder import RunDir

TEXTS = ("stage", "preset", "freeze", "prompt", "init_from", "counted")


@dataclass
class RunRecord:
    """The record of a run, which config.json stores.

    Attributes:
        stage: ``pretrain`` or ``finetune``.
        preset: the name of the preset that provided its values.
        freeze: the weights that a fine-tune keeps unchanged; ``none`` in a pretraining.
        corpus: the name, source, SHA-256 and size of the text.
        prompt: the text that the sample at the end continues; empty for a newline.
        init_from: the folder of the run that a fine-tune started from, else empty.
        counted: the text whose n-grams a fine-tune's table counts: ``new``, ``old`` or ``both``; else empty.
        counted_corpus: with ``both``, the summary of the source's text.
        machine: the device, its name, the dtype and the threads.
        processes: the number of processes that trained together.
        versions: the versions of charformer and of the libraries that a result depends on.
        changes: the values of the training that changed when it was resumed, and from which step on.
    """

    stage: str
    preset: str
    freeze: str
    model: ModelConfig
    training: TrainConfig
    corpus: dict[str, Any]
    prompt: str = ""
    init_from: str = ""
    counted: str = ""
    counted_corpus: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    processes: int = 1
    versions: dict[str, Any] = field(default_factory=dict)
    changes: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, run: RunDir) -> Self:
        """Read the record of ``run``. Raises UserError if there is none, or it is damaged."""
        values = run.read_config()
        for name in ("model", "training", "corpus", "machine"):
            if not isinstance(values.get(name), dict):
                raise UserError(f"{run.config} has no {name!r}")
        changes, processes, counted = (values.get(name) for name in ("changes", "processes", "counted_corpus"))
        return cls(
            **{name: str(values.get(name) or "") for name in TEXTS},
            model=ModelConfig.from_dict(values["model"]),
            training=TrainConfig.from_dict(values["training"]),
            corpus=values["corpus"],
            counted_corpus=counted if isinstance(counted, dict) else {},
            machine=values["machine"],
            processes=processes if isinstance(processes, int) else 1,
            versions=values["versions"] if isinstance(values.get("versions"), dict) else {},
            changes=changes if isinstance(changes, list) else [],
        )

    def write(self, run: RunDir) -> None:
        """Write the record to the config.json of ``run``. Raises WriteError if that is impossible."""
        run.write_config(asdict(self) | {"model": self.model.to_dict(), "training": self.training.to_dict()})
