"""charformer as a library: train a model on a text of one's own, or fine-tune one.

import charformer

run = charformer.train("novel.txt", steps=400)       # into runs/novel
print(charformer.load(run.out).generate("ROMEO:"))
"""

import os
import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from charformer.config import SCORE_CHARACTERS, Device
from charformer.data import corpus as corpora
from charformer.data.cached import load_again
from charformer.device import keep_freed_memory
from charformer.errors import UserError, WriteError
from charformer.runs.folder import RunDir
from charformer.runs.lock import locked
from charformer.runs.metrics import Progress
from charformer.runs.record import RunRecord
from charformer.sampling.sampler import encode_prompt
from charformer.training.recipe import choose_recipe
from charformer.training.session import Place, TrainingSession, prepare_resume
from charformer.training.trainer import Trainer
from charformer.ui.tensorboard import TensorBoardLog, require_tensorboard


@dataclass(frozen=True)
class TrainedRun:
    """The result of a training.

    Attributes:
        out: the folder of the run, for ``charformer.load``.
        val_loss: the loss of the best weights over the validation split, in nats a character.
        best_step: the step of the best weights.
        steps: the number of steps taken in all.
        characters: the number of characters read in all.
        seconds: the seconds of training, without evaluations.
        sample: a text sampled from the best weights.
    """

    out: Path
    val_loss: float
    best_step: int
    steps: int
    characters: int
    seconds: float
    sample: str


def train(
    data: str | Path | Sequence[str | Path],
    *,
    out: str | Path | None = None,
    steps: int | None = None,
    preset: str | None = None,
    init_from: str | Path | None = None,
    freeze: Literal["attention", "trunk", "all"] | None = None,
    prompt: str = "",
    resume: bool = False,
    overwrite: bool = False,
    device: Device = "auto",
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    encoding: str | None = None,
    log: Literal["tensorboard"] | None = None,
    on_step: Callable[[Progress], None] = lambda _: None,
    **values: Any,
) -> TrainedRun:
    """Train a model on a text, and return the result.

    The training runs in a thread of its own, so that an interrupt (Ctrl-C, or a notebook's stop button) ends it after a
    step: everything is saved, KeyboardInterrupt is raised, and ``resume`` continues. Further interrupts are ignored
    until all is saved. PyTorch's global random state is used while it runs.

    Args:
        data: a file, a folder of text files, or several; or the name of a corpus.
        out: the folder of the run (default: runs/ and the name of the text).
        steps: the number of steps (default: the preset's, or fewer for a short text).
        preset: the name of a preset (default: ``nano``, ``fast`` on an NVIDIA GPU; for a fine-tune its source's).
        init_from: the folder of a run to fine-tune.
        freeze: the part of the model that a fine-tune freezes (default: nothing).
        prompt: the text that the sample at the end continues; an empty one means a newline.
        resume: continue the run in ``out``, with the same text and the given ``steps`` and ``values``.
        overwrite: replace the run in ``out``.
        device: the device; ``auto`` uses an NVIDIA GPU if there is one, and ``mps`` is Apple's GPU.
        dtype: the dtype of matrix products; ``auto`` uses bfloat16 if the processor has it. A resumed run keeps its
            device and dtype where these are ``auto``.
        encoding: the encoding of the files (default: UTF-8, or that of the resumed run).
        log: where else to log the training: for TensorBoard, in the run's folder.
        on_step: called with each step's Progress in the caller's thread. An exception that it raises stops the
            training, after everything is saved.
        values: fields of ModelConfig and TrainConfig, such as ``n_layer`` or ``learning_rate``.

    Raises:
        UserError: if an argument cannot work, if ``log`` needs a package that is not installed, or if the training
            cannot be written, which is then saved elsewhere.
    """
    places = [str(place) for place in ([data] if isinstance(data, str | Path) else data)]
    if not places or "" in (*places, out, init_from):
        raise UserError("`data` has no text, or a name in `data`, `out` or `init_from` is empty")
    name = Path(os.path.abspath(places[0])).stem  # noqa: PTH100 - resolve() would name the target of a symlink
    run = RunDir(Path("runs") / name if out is None else out)
    begins = {"preset": preset, "init_from": init_from, "freeze": freeze, "overwrite": overwrite or None}
    if resume and (given := [name for name, value in begins.items() if value is not None]):
        raise UserError(f"`{given[0]}` begins a new run; leave it out to resume")
    if log is not None:
        if log != "tensorboard":
            raise UserError(f"`log` is {log!r}; it must be 'tensorboard' or None")
        require_tensorboard()
    values |= {} if steps is None else {"max_steps": steps}
    place = Place.choose(device, dtype, RunRecord.read(run).machine if resume else None)
    keep_freed_memory()
    if not resume:
        source = None if init_from is None else RunDir(init_from)
        recipe = choose_recipe(place.device.type, preset, source, freeze, values)
        run.check_free(overwrite)
    with locked(run):
        if resume:
            record = RunRecord.read(run)
            session = prepare_resume(run, record, values, load_again(places, record.corpus, encoding), place)
        else:
            session = recipe.session(run, corpora.load(places, encoding=encoding or "utf-8"), place)
        if prompt:
            encode_prompt(session.vocab, prompt)
            session.record.prompt = prompt
        session.open()
        tracker = TensorBoardLog(run, session.trainer.counters.step) if log else None
        try:
            with tracker or nullcontext():
                _take_steps(session.trainer, tracker, on_step)
        except WriteError as error:
            raise UserError(f"{error}; the training was saved in {session.rescue().path} instead") from error
        return _finish(session)


def _take_steps(trainer: Trainer, tracker: TensorBoardLog | None, on_step: Callable[[Progress], None]) -> None:
    """Take and log all steps in a thread.

    An interrupt of this one, in which ``on_step`` is called, ends the training, and is raised again once all is saved.
    """
    stop = threading.Event()
    taken: queue.SimpleQueue[Progress | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            for progress in trainer.steps(stop.is_set):
                if tracker:
                    tracker.update(progress)
                taken.put(progress)
        finally:
            taken.put(None)

    with ThreadPoolExecutor(1, "charformer-train") as pool:
        done: Future[None] = pool.submit(work)
        try:
            while (progress := taken.get()) is not None:
                on_step(progress)
        finally:
            stop.set()
            _wait(done)
            done.result()  # an error of the thread, such as a failed save, matters more than the interrupt


def _wait(done: Future[None]) -> None:
    """Wait until the thread has ended, whatever interrupts: until then it writes to the run's folder."""
    is_done = False
    while not is_done:
        with suppress(KeyboardInterrupt):
            wait([done])
            is_done = True


def _finish(session: TrainingSession) -> TrainedRun:
    with suppress(Exception):  # a missing font must not cost the result
        session.plot()
    result, counters = session.finish(most=SCORE_CHARACTERS), session.trainer.counters
    assert result.val_loss is not None, "nothing asked the scoring to stop"
    return TrainedRun(
        session.run.path,
        result.val_loss,
        counters.best_step,
        counters.step,
        counters.characters,
        counters.train_seconds,
        result.sample,
    )
