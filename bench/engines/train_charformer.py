"""Our trainer as an engine, as charformer-train makes it."""

from pathlib import Path

import torch
from torch import Tensor, nn

from bench.engines.variant import Variant
from charformer.config import TrainConfig
from charformer.data.corpus import Corpus
from charformer.data.vocab import Vocab
from charformer.device import keep_freed_memory
from charformer.model.freeze import freeze, train_mode
from charformer.model.gpt import GPT
from charformer.presets import PRESETS
from charformer.runs.folder import RunDir
from charformer.training.trainer import Trainer

PRIVATE_USE = 0xE000  # the first of the code points that no text has, which fill the vocabulary up


class CharformerEngine:
    """The batches, loss and update of our trainer, at the peak of the preset's learning rate."""

    def __init__(self, variant: Variant, corpus: Corpus, device: torch.device) -> None:
        keep_freed_memory()
        values = PRESETS[variant.preset].pretrain.to_dict() | {"batch_size": variant.batch_size, "eval_batches": 1}
        config = TrainConfig.from_dict(values)
        model = GPT(variant.model)
        freeze(model, variant.freeze)
        vocab = Vocab.of(corpus.alphabet)
        vocab = vocab.extended(map(chr, range(PRIVATE_USE, PRIVATE_USE + variant.model.vocab_size - len(vocab))))
        nowhere = RunDir(Path("never written"))
        dtype = variant.dtype
        self._trainer = Trainer(model.to(device), vocab, corpus, config, nowhere, device, dtype)
        self.model: nn.Module = model
        train_mode(model)

    def batch(self, out: tuple[Tensor, ...] | None = None) -> tuple[Tensor, ...]:
        """Return the next batch on the device: windows, (B, T + 1), and with an n-gram prior also its rows.

        It is written to ``out`` if that is given.
        """
        found = self._trainer.next_batch(out)
        self._trainer.counters.step += 1  # which determines the batch
        return found

    def loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Return the mean loss of a batch."""
        return self._trainer.loss(*batch)

    def step(self, *batch: Tensor) -> Tensor:
        """Do all work of a step on a batch and return the loss, without waiting for the device."""
        return self._trainer.forward_backward_update(*batch)

    def update(self) -> None:
        """Clip the gradients, take the optimizer's step, and clear the gradients."""
        self._trainer.update()

    def evaluate(self) -> None:
        """Compute the loss of one batch as the trainer's evaluation does."""
        self._trainer.subset_loss("validation")
