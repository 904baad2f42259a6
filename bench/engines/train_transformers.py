"""GPT-2 of the package transformers as an engine, in a plain training loop."""

import torch
from torch import Tensor, nn

from bench.engines import baseline
from bench.engines.plain import PlainEngine
from bench.engines.variant import Variant
from charformer.data.corpus import Corpus
from charformer.device import autocast


def build(variant: Variant, corpus: Corpus, device: torch.device) -> PlainEngine:
    """Return an engine with a GPT2LMHeadModel of the variant's shape and AdamW."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = variant.model
    config = GPT2Config(
        vocab_size=shape.vocab_size,
        n_positions=shape.block_size,
        n_embd=shape.n_embd,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        resid_pdrop=shape.dropout,
        embd_pdrop=shape.dropout,
        attn_pdrop=shape.dropout,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    model: nn.Module = GPT2LMHeadModel(config)
    model.to(device).train()

    def loss(x: Tensor, y: Tensor) -> Tensor:
        with autocast(variant.dtype, device):
            logits = model(input_ids=x).logits
            return nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())

    optimizer = torch.optim.AdamW(model.parameters(), lr=baseline.LEARNING_RATE)
    return PlainEngine(variant, corpus, device, model, loss, optimizer)
