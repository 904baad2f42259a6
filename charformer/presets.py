"""The presets: the settings that each name stands for, as data."""

from dataclasses import dataclass, replace

from charformer.config import ModelConfig, TrainConfig


@dataclass(frozen=True)
class Preset:
    """A model's shape and a TrainConfig for each stage.

    Attributes:
        follows_text: whether a text that is shorter than the ones that the preset was tuned on takes fewer steps.
    """

    model: ModelConfig
    pretrain: TrainConfig
    finetune: TrainConfig
    follows_text: bool = True


def _baseline(batch_size: int, block_size: int) -> Preset:
    training = TrainConfig(batch_size=batch_size)
    return Preset(ModelConfig(block_size=block_size), pretrain=training, finetune=training, follows_text=False)


_MODERN = ModelConfig(block_size=256, dropout=0.0, attention_dropout=0.0, rope_base=10000.0, relu_power=2)
_MUON = TrainConfig(
    batch_size=8,
    learning_rate=3e-3,
    muon_learning_rate=0.02,
    eval_interval=100,
    decay_fraction=0.6,
    patience=2,
    weight_decay=0.1,
    beta2=0.95,
)
_FINETUNE = replace(_MUON, max_steps=480, eval_interval=160, eval_batches=4, decay_fraction=0.8)
PRESETS: dict[str, Preset] = {
    "baseline": _baseline(batch_size=32, block_size=384),
    "baseline-as-coded": _baseline(batch_size=34, block_size=128),
    "nano": Preset(
        replace(_MODERN, n_layer=2, n_head=4, n_embd=256, ngram_order=7),
        pretrain=replace(_MUON, learning_rate=6e-3, max_steps=450, eval_interval=90, zero_init=1),
        finetune=_FINETUNE,
    ),
    "fast": Preset(
        replace(_MODERN, ngram_order=7),
        pretrain=replace(_MUON, max_steps=300, eval_interval=75, zero_init=1),
        finetune=_FINETUNE,
    ),
    "best": Preset(
        replace(_MODERN, block_size=512, dropout=0.2),
        pretrain=replace(_MUON, max_steps=2200, eval_interval=200, patience=3, zero_init=1),
        finetune=replace(_FINETUNE, max_steps=240, eval_interval=120),
    ),
}
DEFAULT_PRESETS = {"cpu": "nano", "cuda": "fast", "mps": "nano"}  # by device
