"""The shape of a model and the settings of its training."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self, get_args

from charformer.errors import UserError

Device = Literal["auto", "cpu", "cuda", "mps"]
DEVICES: tuple[Device, ...] = get_args(Device)
MAX_THREADS = 1024
SLIDE_AT_LEAST = 16  # slots; one run of speculative sampling fills fewer


@dataclass(frozen=True)
class _Config:
    """Fields that are numbers, each with its least and its most; a value of another type or size is a UserError."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            kinds, kind = ((int, float), "number") if item.type is float else (int, "whole number")
            if isinstance(value, bool) or not isinstance(value, kinds):
                raise UserError(f"`{item.name}` is {value!r}; it must be a {kind}")
            least, most = item.metadata["least"], item.metadata["most"]
            if not least <= value <= most:
                raise UserError(f"`{item.name}` is {value}; it must be from {least} to {most}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the config that ``to_dict`` wrote. Raises UserError for an unknown, mistyped or impossible field.

        A missing field takes its default, so that a run from before the field existed can still be read.
        """
        if unknown := values.keys() - {item.name for item in fields(cls)}:
            raise UserError(f"the {cls.__name__} has an unknown field {min(unknown)!r}")
        return cls(**values)


def _number(default: float, help: str, least: float = 0, most: float = 2**31 - 1) -> Any:
    return field(default=default, metadata={"help": help, "least": least, "most": most})


@dataclass(frozen=True)
class ModelConfig(_Config):
    """The shape of a GPT; the names are those of GPT-2's and nanoGPT's configs."""

    n_layer: int = _number(6, "transformer blocks", least=1)
    n_head: int = _number(6, "attention heads in a block", least=1)
    n_embd: int = _number(384, "channels of the residual stream", least=1)
    block_size: int = _number(384, "longest context, in characters", least=1, most=2**16)
    dropout: float = _number(0.2, "dropout on each branch", most=0.999)
    attention_dropout: float = _number(0.2, "dropout on attention weights, which is slow on a CPU", most=0.999)
    rope_base: float = _number(
        0.0, "base of rotary positions (10000 is usual); 0 learns an embedding of each position", most=1e9
    )
    relu_power: int = _number(1, "power of the MLP's ReLU: 1, or 2 for its square", least=1, most=2)
    ngram_order: int = _number(0, "longest context of the n-gram prior, in characters; 0 is no prior", most=8)
    vocab_size: int = _number(0, "distinct characters; taken from the text")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields; ``ngram_order`` only if it is not 0, so that earlier versions can read the others."""
        return {name: value for name, value in super().to_dict().items() if value or name != "ngram_order"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the config; a model from before ``attention_dropout`` existed has one dropout for both."""
        if "dropout" in values:
            values = {"attention_dropout": values["dropout"], **values}
        return super().from_dict(values)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_embd % self.n_head:
            raise UserError(f"`n_embd` {self.n_embd} is not a multiple of `n_head` {self.n_head}; change one of them")
        if self.rope_base and (self.rope_base < 1 or self.n_embd // self.n_head % 2):
            raise UserError("rotary positions want a `rope_base` of at least 1 and heads of an even width")

    @property
    def cache_size(self) -> int:
        """Return the number of positions that a cache of keys and values holds.

        Learned positions fill the cache once. Rotary positions slide: a full cache moves its last block_size - 1
        positions to the front. The more slots it has beyond block_size, the more rarely it moves them; but every slot
        costs onnxruntime time at every character (docs/lab/sampling.md).
        """
        return self.block_size + (max(SLIDE_AT_LEAST, self.block_size // 4) if self.rope_base else 0)

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor of a checkpoint, by its name in the state dict."""
        wide, hidden = self.n_embd, 4 * self.n_embd
        shapes: dict[str, tuple[int, ...]] = {
            "tok_emb.weight": (self.vocab_size, wide),
        }
        if not self.rope_base:
            shapes["pos_emb.weight"] = (self.block_size, wide)
        for block in (f"blocks.{layer}" for layer in range(self.n_layer)):
            shapes |= {f"{block}.{norm}.{part}": (wide,) for norm in ("ln1", "ln2") for part in ("weight", "bias")}
            shapes[f"{block}.attn.qkv.weight"] = (3 * wide, wide)
            shapes |= {f"{block}.attn.proj.weight": (wide, wide), f"{block}.attn.proj.bias": (wide,)}
            shapes |= {f"{block}.mlp.fc.weight": (hidden, wide), f"{block}.mlp.fc.bias": (hidden,)}
            shapes |= {f"{block}.mlp.proj.weight": (wide, hidden), f"{block}.mlp.proj.bias": (wide,)}
        if self.ngram_order:
            shapes |= {"ngram_prior.input.weight": (wide, self.vocab_size)}
            shapes |= {"ngram_prior.gate.weight": (1, wide), "ngram_prior.gate.bias": (1,)}
        shapes |= {"ln_f.weight": (wide,), "ln_f.bias": (wide,)}
        return shapes | {"head.weight": (self.vocab_size, wide), "head.bias": (self.vocab_size,)}


@dataclass(frozen=True)
class TrainConfig(_Config):
    """The settings of one stage of training, with AdamW (Loshchilov & Hutter 2019; Adam if weight_decay is 0).

    If muon_learning_rate is not 0, Muon trains the matrices of the blocks (charformer/training/muon.py).
    """

    batch_size: int = _number(32, "sequences of block_size characters in a step", least=1)
    learning_rate: float = _number(3e-4, "peak learning rate")
    muon_learning_rate: float = _number(0.0, "Muon's peak rate, for the blocks' matrices; 0 leaves them to AdamW")
    zero_init: int = _number(0, "1 starts the head and the last linear of every branch from zero", most=1)
    max_steps: int = _number(5000, "optimizer steps; a short text takes fewer than the preset has", least=1)
    eval_interval: int = _number(500, "steps between evaluations (each also saves the run)", least=1)
    save_interval: int = _number(0, "steps between further saves (each evaluation saves too); 0 is none")
    save_minutes: float = _number(0.0, "minutes between further saves (each evaluation saves too); 0 is none")
    eval_batches: int = _number(5, "batches of each split in an evaluation's fixed subset", least=1)
    even_windows: int = _number(
        0, "1 spaces the windows of that subset evenly, as early versions did; 0 draws one from each stratum", most=1
    )
    warmup_steps: int = _number(0, "steps over which the learning rate rises from 0")
    decay_fraction: float = _number(
        0.0, "share of the steps, at the end, in which the learning rate falls to 0", most=1
    )
    patience: int = _number(
        0, "evaluations in a row without a better one, after which the learning rate falls at once; 0 is no limit"
    )
    weight_decay: float = _number(0.0, "weight decay, of matrices only")
    beta2: float = _number(0.999, "decay of the second moment", most=0.99999)
    ngram_folds: int = _number(
        8, "parts of the text, each predicted by an n-gram table of the others", least=2, most=64
    )
    ngram_min_count: int = _number(1, "how often an n-gram must occur to be kept in the run's n-gram table", least=1)
    grad_clip: float = _number(0.0, "largest norm of the gradient; 0 is no limit")
    seed: int = _number(1337, "seed of the initial weights, batches and dropout", most=2**63 - 1)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the config; a training from before windows were drawn at random keeps its evenly spaced ones."""
        return super().from_dict({"even_windows": 1, **values})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.muon_learning_rate and not self.learning_rate:
            raise UserError("`learning_rate` must be above 0: `muon_learning_rate` rises and falls with it")


SCORE_CHARACTERS = 2_000_000  # of a validation split that are scored at the end, unless asked otherwise
DROPOUTS = ("dropout", "attention_dropout")  # of ModelConfig, which a later training of the same model may change
MODEL_FIELDS = [item.name for item in fields(ModelConfig) if item.name != "vocab_size"]  # which the text decides
TRAIN_FIELDS = [item.name for item in fields(TrainConfig)]
# What a run has begun with: another value would change its weights' shapes, its order of windows or its estimates.
FIXED_FIELDS = [
    *(name for name in MODEL_FIELDS if name not in DROPOUTS),
    *("batch_size", "zero_init", "eval_batches", "even_windows", "ngram_folds", "ngram_min_count", "seed"),
]


def require_fields(names: Iterable[str]) -> None:
    """Raise UserError for a name that is neither a field of ModelConfig, ``vocab_size`` apart, nor of TrainConfig."""
    if unknown := [name for name in names if name not in (*MODEL_FIELDS, *TRAIN_FIELDS)]:
        raise UserError(f"`{unknown[0]}` is not a field of ModelConfig or TrainConfig")


def check_threads(threads: int | None) -> None:
    """Raise UserError unless ``threads`` is a number of threads, or None for the default."""
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise UserError(f"`threads` is {threads}; it must be from 1 to {MAX_THREADS}")
