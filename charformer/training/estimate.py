"""Estimates for a training before it starts: memory from its shapes, and time from a short probe."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch

from charformer.config import ModelConfig, TrainConfig
from charformer.device import total_memory
from charformer.model.freeze import count_parameters, is_trunk_frozen, train_mode
from charformer.model.gpt import GPT
from charformer.training.optimizer import muon_parameters
from charformer.training.trainer import Trainer
from kernels.cpu import attention as cpu_attention

PROBE_SECONDS = 10.0
PASSING = 7  # temporary tensors of the MLP's width in a step beside those it keeps: the measured maximum
WARM_STEPS = 2
MIN_STEPS = 3
RESERVE = {
    "cpu": 600 * 2**20,
    "cuda": 700 * 2**20,
    "mps": 600 * 2**20,
}  # Python and PyTorch, and a frozen trunk's kept outputs; on a GPU its context and gaps between blocks
GPU_SIZES = (4, 8)  # GiB of memory of common GPUs


@dataclass(frozen=True)
class Memory:
    """The bytes that a training holds: a fixed part from the first step to the last, and a part for each sequence."""

    weights: int  # in float32, and their copies in a step's dtype
    gradients: int
    optimizer: int  # its state and its temporary tensors
    sequence: int  # what a sequence keeps for the backward pass, and the temporary tensors
    tables: int = 0  # the tables of an n-gram prior, and the rows kept on a GPU

    def of(self, batch_size: int) -> int:
        """Return the bytes at the peak of a step of ``batch_size`` sequences."""
        return self.weights + self.gradients + self.optimizer + self.tables + batch_size * self.sequence

    def largest_batch(self, available: int) -> int:
        """Return the number of sequences that fit into ``available`` bytes, 0 if none does."""
        return max(0, (available - self.of(0)) // self.sequence)


@dataclass(frozen=True)
class Speed:
    """The seconds of a step, of all evaluations and of the last scoring, measured by a probe of ``steps`` steps."""

    step_seconds: float
    eval_seconds: float
    score_seconds: float
    steps: int


def memory(
    model: GPT, training: TrainConfig, dtype: torch.dtype, fused: bool, sequences: int = 1, tables: int = 0
) -> Memory:
    """Return the memory that training ``model`` takes.

    Args:
        dtype: the dtype of matrix products.
        fused: whether the GPU's fused kernels run, or the CPU's functions.
        sequences: the sequences of a step; the CPU's attention keeps its weights for the backward pass unless they are
            too many.
        tables: the bytes of an n-gram prior.
    """
    trained, frozen = count_parameters(model)
    copies = (trained + frozen) * dtype.itemsize if dtype != torch.float32 else 0
    by_muon = sum(p.numel() for _, p in muon_parameters(model, training))
    state = 4 * by_muon + 8 * (trained - by_muon)
    working = 4 * dtype.itemsize * by_muon
    length = model.config.block_size
    kept = kept_bytes(model, dtype, fused, sequences)
    passing = PASSING * 4 * model.config.n_embd * dtype.itemsize
    if model.config.ngram_order:
        passing += 4 * 4 * model.config.vocab_size  # its rows, their roots, their logarithms, and the gated rows
    return Memory(4 * (trained + frozen) + copies, 4 * trained, state + working, length * (kept + passing), tables)


def kept_bytes(model: GPT, dtype: torch.dtype, fused: bool, sequences: int = 1) -> int:
    """Return the bytes that the forward pass keeps for the backward pass per character: activations and masks."""
    config, size = model.config, dtype.itemsize
    row = config.n_embd * size
    norm = 4 * config.n_embd + 8  # the residual stream, and the mean and deviation of its layer norm
    head = norm + row + config.vocab_size * (size if fused else 4) + 16
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return 0
    if is_trunk_frozen(model):
        return head
    weights = 0 if fused else _weights_bytes(config, dtype, sequences)
    attention = 3 * row + (weights or row + 4 * config.n_head)  # q, k and v; if no weights, output and row sums
    if model.blocks[0].attn.qkv.weight.requires_grad:  # type: ignore[union-attr]
        attention += row if fused else 2 * row  # inputs of its matrices; the kernel's output is counted above
    mlp = row + 4 * row * (2 if config.relu_power == 2 else 1)
    masks = 2 * 2 * config.n_embd if config.dropout and not fused else 0
    return head + config.n_layer * (2 * norm + attention + mlp + masks)


def _weights_bytes(config: ModelConfig, dtype: torch.dtype, sequences: int) -> int:
    """Return the bytes of a character's attention weights in ``kernels.cpu``, or 0 if PyTorch's attention runs."""
    length = config.block_size
    shape = (sequences, config.n_head, length, config.n_embd // config.n_head)
    like = torch.empty(1, dtype=dtype).expand(shape)
    if not cpu_attention.suits(like, like, config.attention_dropout):
        return 0
    rows = min(cpu_attention.ROWS, length)
    return dtype.itemsize * config.n_head * (length + rows) // 2


def probe(
    trainer: Trainer,
    seconds: float = PROBE_SECONDS,
    on_step: Callable[[float], None] = lambda _: None,
    scored: int | None = None,
) -> Speed:
    """Train for ``seconds``, evaluate twice and score a batch, all without saving; return the speed.

    The model is useless afterwards.

    Args:
        on_step: called with the share of the time that has passed.
        scored: the most characters of the validation split that the training will score at its end; None for all.
    """
    train_mode(trainer.model)
    config = trainer.config
    taken: list[float] = []
    began = time.perf_counter()
    while len(taken) < WARM_STEPS + MIN_STEPS or time.perf_counter() - began < seconds:
        started = time.perf_counter()
        float(trainer.train_step(config.learning_rate))  # waits for a GPU
        taken.append(time.perf_counter() - started)
        on_step(min(1.0, (time.perf_counter() - began) / seconds))
    evaluations = []
    for _ in range(2):  # the first evaluation may keep outputs that later ones reuse
        started = time.perf_counter()
        trainer.subset_loss("validation")
        evaluations.append(2 * (time.perf_counter() - started))  # the other split has as many batches
    batch = config.batch_size * trainer.model.config.block_size
    started = time.perf_counter()
    trainer.score(most=batch)
    seconds_per_character = (time.perf_counter() - started) / trainer.scored_characters(batch)
    further = -(-config.max_steps // config.eval_interval)
    return Speed(
        step_seconds=median(taken[WARM_STEPS:]),
        eval_seconds=evaluations[0] + further * evaluations[1],
        score_seconds=seconds_per_character * trainer.scored_characters(scored),
        steps=len(taken) - WARM_STEPS,
    )


def available_bytes(device: torch.device) -> int | None:
    """Return the bytes that a training may take, or None if the system does not report its memory."""
    total = total_memory(device)
    return None if total is None else total - RESERVE[device.type]


def summary(
    config: TrainConfig, model: GPT, found: Memory, on_card: Memory, available: int | None, speed: Speed | None
) -> dict[str, Any]:
    """Return the object that --json prints, in bytes, characters per second and seconds; None for what is unknown.

    Args:
        on_card: the same training's memory in bf16 on a GPU.
        speed: the probed speed, or None without a probe, as when the training does not fit.
    """
    trained, frozen = count_parameters(model)
    characters = config.batch_size * model.config.block_size
    return {
        "trainable": trained,
        "frozen": frozen,
        "batch_size": config.batch_size,
        "steps": config.max_steps,
        "memory_bytes": found.of(config.batch_size),
        "memory": asdict(found),
        "available_bytes": available,
        "fits": None if available is None else found.of(config.batch_size) <= available,
        "largest_batch": None if available is None else found.largest_batch(available),
        "largest_batch_on_card": {
            f"{size} GiB": on_card.largest_batch(size * 2**30 - RESERVE["cuda"]) for size in GPU_SIZES
        },
        "chars_per_second": characters / speed.step_seconds if speed else None,
        "train_seconds": config.max_steps * speed.step_seconds if speed else None,
        "eval_seconds": speed.eval_seconds if speed else None,
        "score_seconds": speed.score_seconds if speed else None,
        "probed_steps": speed.steps if speed else None,
    }
