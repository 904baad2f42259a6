"""Test sampling on the device: its texts are the engine's, and a step contains nothing that a graph would freeze."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from charformer.config import ModelConfig
from charformer.model.gpt import GPT
from charformer.sampling import sampler
from charformer.sampling.cuda_sampler import BLOCK, CudaSampler, _Decoder
from charformer.sampling.sampler import SamplingConfig, generate
from charformer.sampling.tensor_picking import filter_logits, pick
from charformer.sampling.torch_engine import TorchEngine
from tests.kernels.marks import needs_gpu

CPU = torch.device("cpu")
LEARNED = ModelConfig(n_layer=2, n_head=2, n_embd=24, block_size=24, vocab_size=13)
ROTARY = replace(LEARNED, rope_base=100.0, relu_power=2)
CONFIGS = {"learned": LEARNED, "rotary": ROTARY}
WAYS = {
    "plain": SamplingConfig(150, seed=3),
    "greedy": SamplingConfig(150, temperature=0),
    "top-k": SamplingConfig(150, 0.7, top_k=4, seed=2),
    "top-p": SamplingConfig(150, 1.3, top_p=0.8, seed=2),
    "both": SamplingConfig(150, 1.3, top_k=5, top_p=0.8, seed=2),
}
POSITIONS = pytest.mark.parametrize("positions", CONFIGS)
PROMPT = np.array([3, 1, 4, 1, 5])


def build(config: ModelConfig) -> GPT:
    """Return a model whose characters depend on everything that it sees."""
    torch.manual_seed(0)
    model = GPT(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(1.0 if ".ln" in name or name.startswith("ln_f") else 3.0)
    return model


def text(steps: Iterator[np.ndarray]) -> np.ndarray:
    return np.stack(list(steps))


@POSITIONS
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("samples", [1, 3])
def test_texts_far_past_the_context_are_the_engine_s(positions: str, way: str, samples: int) -> None:
    model = build(CONFIGS[positions])
    wanted = text(generate(TorchEngine(model, CPU), PROMPT, samples, WAYS[way]))
    np.testing.assert_array_equal(text(CudaSampler(model, CPU).generate(PROMPT, samples, WAYS[way])), wanted)


@pytest.mark.parametrize("rope_base", [0.0, 100.0])
@pytest.mark.parametrize("block_size", [1, 2, 7])
@pytest.mark.parametrize("prompt", [1, 7, 40])
def test_contexts_and_prompts_of_any_length(rope_base: float, block_size: int, prompt: int) -> None:
    model = build(replace(LEARNED, rope_base=rope_base, block_size=block_size))
    ids = np.random.default_rng(0).integers(13, size=prompt)
    wanted = text(generate(TorchEngine(model, CPU), ids, 2, WAYS["plain"]))
    np.testing.assert_array_equal(text(CudaSampler(model, CPU).generate(ids, 2, WAYS["plain"])), wanted)


@pytest.mark.parametrize("length", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK])
def test_texts_of_any_length(length: int) -> None:
    model = build(ROTARY)
    config = SamplingConfig(length, seed=1)
    made = list(CudaSampler(model, CPU).generate(PROMPT, 2, config))
    wanted = list(generate(TorchEngine(model, CPU), PROMPT, 2, config))
    assert len(made) == length
    np.testing.assert_array_equal(np.array(made), np.array(wanted))


@pytest.mark.parametrize("numbers", [1, 100])
def test_blocks_are_short_where_noise_would_fill_the_memory(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("charformer.sampling.cuda_sampler.NOISE_NUMBERS", numbers)
    model = build(ROTARY)
    wanted = text(generate(TorchEngine(model, CPU), PROMPT, 2, WAYS["plain"]))
    np.testing.assert_array_equal(text(CudaSampler(model, CPU).generate(PROMPT, 2, WAYS["plain"])), wanted)


@POSITIONS
def test_one_sampler_makes_text_after_text_and_several_at_once(positions: str) -> None:
    model = build(CONFIGS[positions])
    engine, mine = TorchEngine(model, CPU), CudaSampler(model, CPU)
    left_early = mine.generate(PROMPT, 1, WAYS["plain"])
    next(left_early)
    left_early.close()  # type: ignore[attr-defined]
    one, other = SamplingConfig(100, seed=8), SamplingConfig(100, seed=9)
    at_once = list(zip(mine.generate(PROMPT, 1, one), mine.generate(PROMPT[:2], 1, other), strict=True))
    np.testing.assert_array_equal([first for first, _ in at_once], text(generate(engine, PROMPT, 1, one)))
    np.testing.assert_array_equal([second for _, second in at_once], text(generate(engine, PROMPT[:2], 1, other)))
    for way in ("plain", "greedy", "plain"):
        wanted = text(generate(engine, PROMPT, 2, WAYS[way]))
        np.testing.assert_array_equal(text(mine.generate(PROMPT, 2, WAYS[way])), wanted)


def test_noise_that_cannot_be_made_ends_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("charformer.sampling.cuda_sampler.gumbel_noise", fail)
    with pytest.raises(MemoryError):
        list(CudaSampler(build(ROTARY), CPU).generate(PROMPT, 1, WAYS["plain"]))


class Recording(TorchDispatchMode):
    """A recording of what a CUDA graph keeps: operations and the memory they work on, without the Python in between.

    It refuses to read a number or to copy between devices, which would wait for the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "a number is read in a step"
        out = func(*args, **(kwargs or {}))
        self._calls.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        """Run the operations again on the present content of the memory."""
        made: dict[int, Any] = {}

        def now(value: Any) -> Any:
            return made.get(id(value), value) if isinstance(value, torch.Tensor) else value

        for func, args, kwargs, out in self._calls:
            again = func(*tree_map(now, args), **tree_map(now, kwargs))
            made |= {id(old): new for old, new in zip(tree_flatten(out)[0], tree_flatten(again)[0], strict=True)}


def recorded(work: Callable[[], None]) -> Callable[[], None]:
    """Return a function that runs ``work`` in its first two calls, recording the second, and then replays it."""
    recording, calls = Recording(), 0

    def run() -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            with recording:
                work()
        elif calls == 1:
            work()
        else:
            recording.replay()

    return run


@POSITIONS
@pytest.mark.parametrize("way", WAYS)
def test_recorded_work_makes_the_same_text(positions: str, way: str) -> None:
    model = build(CONFIGS[positions])
    mine = CudaSampler(model, CPU)
    decoder = _Decoder(model.eval(), 2, replace(WAYS[way], max_new_tokens=0, seed=0), CPU, torch.float32)
    for name in ("_step", "_slide", "_reread"):
        setattr(decoder, name, recorded(getattr(decoder, name)))
    mine._idle = [decoder]
    for seed in (5, 6):
        config = replace(WAYS[way], max_new_tokens=150, seed=seed)
        wanted = text(generate(TorchEngine(model, CPU), PROMPT, 2, config))
        np.testing.assert_array_equal(text(mine.generate(PROMPT, 2, config)), wanted)
        assert mine._idle == [decoder]


# Few values, so that there are ties.
tables = st.integers(1, 40).flatmap(
    lambda width: st.lists(st.lists(st.integers(-3, 3), min_size=width, max_size=width), min_size=1, max_size=3)
)


@given(tables, st.integers(0, 12), st.sampled_from([0.1, 0.5, 0.77, 1.0]))
def test_filters_leave_what_the_sampler_s_leave(table: list[list[int]], top_k: int, top_p: float) -> None:
    logits = np.array(table, np.float64)
    wanted = sampler.filter_logits(logits, top_k, top_p)
    np.testing.assert_array_equal(filter_logits(torch.from_numpy(logits), top_k, top_p).numpy(), wanted)


@given(tables, st.integers(0, 12), st.sampled_from([0.0, 1e-281, 1e-279, 0.7, 1e308]), st.booleans())
def test_picks_are_the_sampler_s_ties_too(table: list[list[int]], top_k: int, temperature: float, even: bool) -> None:
    logits = np.array(table, np.float32)
    config = SamplingConfig(temperature=temperature, top_k=top_k)
    noise = np.zeros(logits.shape) if even else np.random.default_rng(0).gumbel(size=logits.shape)
    picked = pick(
        torch.from_numpy(logits),
        torch.from_numpy(noise) if temperature > 1e-280 else None,
        torch.tensor(temperature, dtype=torch.float64),
        top_k,
        config.top_p,
    )
    np.testing.assert_array_equal(picked.numpy(), sampler.pick(logits, noise, config))


@needs_gpu
@POSITIONS
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("samples", [1, 64])
def test_a_gpu_s_texts_are_the_cpu_s(positions: str, way: str, samples: int) -> None:
    config, cuda = replace(CONFIGS[positions], n_embd=128), torch.device("cuda")
    wanted = text(generate(TorchEngine(build(config), CPU), PROMPT, samples, WAYS[way]))
    mine = CudaSampler(build(config), cuda)
    np.testing.assert_array_equal(text(mine.generate(PROMPT, samples, WAYS[way])), wanted)
    assert mine.is_captured
    np.testing.assert_array_equal(text(mine.generate(PROMPT, samples, WAYS[way])), wanted)  # by replays alone


@needs_gpu
def test_a_gpu_samples_in_bfloat16_too() -> None:
    mine = CudaSampler(build(replace(ROTARY, n_embd=128)), torch.device("cuda"), torch.bfloat16)
    assert text(mine.generate(PROMPT, 2, WAYS["both"])).shape == (150, 2)
    assert mine.is_captured
