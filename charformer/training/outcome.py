"""What a finished training leaves behind: its score, a sample and the picture of its losses."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from charformer.files import write_text
from charformer.runs.folder import RunDir
from charformer.sampling import sampler
from charformer.sampling.torch_engine import TorchEngine
from charformer.training.session import Start
from charformer.training.trainer import Trainer
from charformer.ui.plots import Rows, plot_losses

SAMPLE_CHARACTERS = 500


@dataclass(frozen=True)
class Outcome:
    """The loss of the best weights over the whole validation split, and a text that they wrote."""

    val_loss: float
    sample: str


def conclude(trainer: Trainer, start: Start, on_progress: Callable[[int, int], None]) -> Outcome:
    """Score the best weights, which the model then holds, and write a sample of theirs to sample.txt.

    The sample is a function of the weights, the run's prompt and its seed. ``on_progress`` is called with the
    characters scored so far and in all.
    """
    val_loss = trainer.whole_validation_loss(on_progress)
    ids = sampler.encode_prompt(start.vocab, start.record["prompt"])
    config = sampler.SamplingConfig(max_new_tokens=SAMPLE_CHARACTERS, seed=trainer.config.seed)
    made = sampler.generate(TorchEngine(start.model, trainer.device), ids, 1, config)
    text = start.vocab.decode(np.concatenate([ids, *made]))
    write_text(trainer.run.sample, text)
    return Outcome(val_loss, text)


def draw(trainer: Trainer, start: Start) -> None:
    """Draw loss.png: this run's losses and, of a fine-tune, those of the run that it came from."""
    stages: list[tuple[str, Rows]] = [(f"{start.record['stage']} on {trainer.corpus.name}", trainer.history)]
    source = RunDir(start.record["init_from"])
    if start.record["init_from"] and source.exists and (rows := source.read_metrics()):
        values = source.read_config()
        stages.insert(0, (f"{values['stage']} on {values['corpus']['name']}", rows))
    plot_losses(trainer.run, stages)
