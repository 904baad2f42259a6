"""The n-gram prior: an n-gram model's probabilities as a second input of a GPT and the base of its logits.

A network that starts from the knowledge in counts needs to learn only the rest (Li et al. 2022, "N-gram is back:
Residual learning of neural text generation with n-gram language model"). The prior is also an input of the first block,
and a gate weights it at each position, so that it continues to help as the network learns (docs/training.md).
"""

import torch
from torch import Tensor, nn

from charformer.config import ModelConfig

INPUT_SPREAD = 0.1  # standard deviation of the input map's initial weights


class NgramPrior(nn.Module):
    """The part of a GPT that uses ``prior``, (B, T, V): the next-character probabilities of an n-gram table.

    charformer/data/ngram.py has the table. The square root gives rare characters some weight in the input, and makes
    every distribution a vector of length one.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input = nn.Linear(config.vocab_size, config.n_embd, bias=False)
        self.gate = nn.Linear(config.n_embd, 1)
        nn.init.normal_(self.input.weight, std=INPUT_SPREAD)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def embed(self, prior: Tensor) -> Tensor:
        """Return the embedding of ``prior``, (B, T, C), to add to the embedding of the characters."""
        embedded: Tensor = self.input(prior.to(self.input.weight.dtype).sqrt())
        return embedded

    def correct(self, logits: Tensor, h: Tensor, prior: Tensor) -> Tensor:
        """Return ``logits`` plus the gated logarithm of ``prior``, (B, T, V), in at least float32.

        ``h`` is the normalised residual stream from which the logits come, (B, T, C).
        """
        gate = self.gate(h).float().exp() if logits.dtype != torch.float64 else self.gate(h).exp()
        return logits + gate * prior.to(gate.dtype).log()

    @torch.no_grad()
    def extend_vocab(self, vocab_size: int, generator: torch.Generator) -> None:
        """Append columns to the input map until there are ``vocab_size``; old ones keep their values.

        A new column is the mean of the old ones plus noise of a tenth of their spread, as in ``GPT.extend_vocab``.
        """
        old = self.input.weight
        new = vocab_size - old.shape[1]
        noise = torch.randn(old.shape[0], new, generator=generator).to(old) * (0.1 * old.std())
        self.input = nn.Linear(vocab_size, old.shape[0], bias=False, device=old.device, dtype=old.dtype)
        self.input.weight.copy_(torch.cat([old, old.mean(1, keepdim=True) + noise], dim=1))
