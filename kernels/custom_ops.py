"""The ops as registered with PyTorch, with their output shapes and their gradients.

Autograd and ``torch.compile`` see through them, where a bare Triton launch would break the graph. A backward pass is an
op of its own. Each op runs a Triton kernel or the same arithmetic in plain PyTorch, as ``kernels.backend`` decides;
modules with Triton code are imported only where it runs. ``kernels.ops`` describes the arguments; an op also returns
what its backward pass needs, as the functions of ``kernels.reference`` describe.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernels import layouts, reference
from kernels.backend import runs_kernel


@torch.library.custom_op("charformer::attention", mutates_args=())
def attention(q: Tensor, k: Tensor, v: Tensor, dropout_p: float, seed: Tensor | None) -> tuple[Tensor, Tensor]:
    if runs_kernel(q):
        from kernels.gpu import attention as kernel

        return kernel.forward(q, k, v, dropout_p, seed)
    out, lse = reference.attention_forward(q, k, v, dropout_p, seed)
    return layouts.as_heads(out), lse


@attention.register_fake
def _(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return layouts.empty_heads(q), q.new_empty(q.shape[:3], dtype=_stat_dtype(q))


@torch.library.custom_op("charformer::attention_backward", mutates_args=())
def attention_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, dropout_p: float, seed: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    if runs_kernel(q):
        from kernels.gpu import attention as kernel

        return kernel.backward(d_out, q, k, v, out, lse, dropout_p, seed)
    d_q, d_k, d_v = reference.attention_backward(d_out, q, k, v, out, lse, dropout_p, seed)
    return layouts.as_heads(d_q), layouts.as_heads(d_k), layouts.as_heads(d_v)


@attention_backward.register_fake
def _(_d_out: Tensor, q: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return layouts.empty_heads(q), layouts.empty_heads(q), layouts.empty_heads(q)


def _attention_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.dropout_p, seed = inputs
    ctx.save_for_backward(q, k, v, *output, seed)
    ctx.set_materialize_grads(False)  # no zeros for unused gradients, such as that of lse; likewise below


def _attention_gradient(ctx: Any, d_out: Tensor, _d_lse: None) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, seed = ctx.saved_tensors
    return *attention_backward(d_out, q, k, v, out, lse, ctx.dropout_p, seed), None, None


attention.register_autograd(_attention_gradient, setup_context=_attention_context)


@torch.library.custom_op("charformer::layer_norm", mutates_args=())
def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    if runs_kernel(x):
        from kernels.gpu import layer_norm as kernel

        return kernel.forward(x, None, weight, bias, eps)[1:]
    return reference.layer_norm_forward(x, weight, bias, eps, x.dtype)


@layer_norm.register_fake
def _(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(x), *_row_stats(x)


@torch.library.custom_op("charformer::layer_norm_backward", mutates_args=())
def layer_norm_backward(d_y: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    if runs_kernel(x):
        from kernels.gpu import layer_norm as kernel

        d_x, _, d_weight_bias = kernel.backward(d_y, None, x, weight, mean, rstd, None)
        return d_x, d_weight_bias
    d_x, d_weight_bias = reference.layer_norm_backward(d_y, x, weight, mean, rstd)
    return d_x.to(x.dtype), d_weight_bias


@layer_norm_backward.register_fake
def _(_d_y: Tensor, x: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _empty(x), weight.new_empty(2, len(weight))


def _layer_norm_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, _, _ = inputs
    _, mean, rstd = output
    ctx.save_for_backward(x, weight, mean, rstd)
    ctx.set_materialize_grads(False)


def _layer_norm_gradient(ctx: Any, d_y: Tensor, _d_mean: None, _d_rstd: None) -> tuple[Tensor | None, ...]:
    d_x, d_weight_bias = layer_norm_backward(d_y, *ctx.saved_tensors)
    return d_x, d_weight_bias[0], d_weight_bias[1], None


layer_norm.register_autograd(_layer_norm_gradient, setup_context=_layer_norm_context)


@torch.library.custom_op("charformer::add_dropout_layer_norm", mutates_args=())
def add_dropout_layer_norm(
    residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor, dropout_p: float, seed: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if runs_kernel(x):
        from kernels.gpu import layer_norm as kernel

        total, y, mean, rstd = kernel.forward(x, residual, weight, bias, eps, dropout_p, seed)
        assert total is not None
        return total, y, mean, rstd
    total = reference.add_dropout(residual, x, dropout_p, seed)
    return total, *reference.layer_norm_forward(total, weight, bias, eps, x.dtype)


@add_dropout_layer_norm.register_fake
def _(residual: Tensor, x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _empty(residual), _empty(x), *_row_stats(x)


@torch.library.custom_op("charformer::add_dropout_layer_norm_backward", mutates_args=())
def add_dropout_layer_norm_backward(
    d_total: Tensor | None,
    d_y: Tensor,
    total: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    dropout_p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    if runs_kernel(d_y):
        from kernels.gpu import layer_norm as kernel

        d_residual, d_x, d_weight_bias = kernel.backward(
            d_y, d_total, total, weight, mean, rstd, d_y.dtype, dropout_p, seed
        )
        assert d_x is not None
        return d_residual, d_x, d_weight_bias
    d_normed, d_weight_bias = reference.layer_norm_backward(d_y, total, weight, mean, rstd)
    d_residual = d_normed if d_total is None else d_normed + d_total
    d_x = reference.dropout(d_residual, dropout_p, seed)
    return d_residual.to(total.dtype), d_x.to(d_y.dtype), d_weight_bias


@add_dropout_layer_norm_backward.register_fake
def _(_d_total: Tensor | None, d_y: Tensor, total: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(total), _empty(d_y), weight.new_empty(2, len(weight))


def _add_dropout_layer_norm_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, weight, _, ctx.dropout_p, seed, _ = inputs
    total, y, mean, rstd = output
    ctx.save_for_backward(total, weight, mean, rstd, seed)
    ctx.y_dtype = y.dtype
    ctx.set_materialize_grads(False)


def _add_dropout_layer_norm_gradient(
    ctx: Any, d_total: Tensor | None, d_y: Tensor | None, _d_mean: None, _d_rstd: None
) -> tuple[Tensor | None, ...]:
    total, weight, mean, rstd, seed = ctx.saved_tensors
    if d_y is None:
        d_y = torch.zeros_like(total, dtype=ctx.y_dtype)
    d_residual, d_x, d_weight_bias = add_dropout_layer_norm_backward(
        d_total, d_y, total, weight, mean, rstd, ctx.dropout_p, seed
    )
    return d_residual, d_x, d_weight_bias[0], d_weight_bias[1], None, None, None


add_dropout_layer_norm.register_autograd(
    _add_dropout_layer_norm_gradient, setup_context=_add_dropout_layer_norm_context
)


@torch.library.custom_op("charformer::rotary", mutates_args=())
def rotary(qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if runs_kernel(qkv):
        from kernels.gpu import rotary as kernel

        return kernel.forward(qkv, cos, sin)
    q, k, v = reference.rotary_forward(qkv, cos, sin)
    return layouts.as_heads(q), layouts.as_heads(k), layouts.as_heads(v).clone()


@rotary.register_fake
def _(qkv: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    like = qkv[:, :, 0].transpose(1, 2)
    return layouts.empty_heads(like), layouts.empty_heads(like), layouts.empty_heads(like)


@torch.library.custom_op("charformer::rotary_backward", mutates_args=())
def rotary_backward(d_q: Tensor, d_k: Tensor, d_v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    if runs_kernel(d_q):
        from kernels.gpu import rotary as kernel

        return kernel.backward(d_q, d_k, d_v, cos, sin)
    return reference.rotary_backward(d_q, d_k, d_v, cos, sin)


@rotary_backward.register_fake
def _(d_q: Tensor, *_: Any) -> Tensor:
    batch, heads, time, width = d_q.shape
    return d_q.new_empty(batch, time, 3, heads, width)


def _rotary_context(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs[1:])


def _rotary_gradient(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    return rotary_backward(*gradients, *ctx.saved_tensors), None, None


rotary.register_autograd(_rotary_gradient, setup_context=_rotary_context)


@torch.library.custom_op("charformer::cross_entropy", mutates_args=())
def cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    if runs_kernel(logits):
        from kernels.gpu import cross_entropy as kernel

        return kernel.forward(logits, targets, ignore_index)
    return reference.cross_entropy_forward(logits, targets, ignore_index)


@cross_entropy.register_fake
def _(logits: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    stat = partial(logits.new_empty, dtype=_stat_dtype(logits))
    return stat(()), stat(len(logits)), stat(())


@torch.library.custom_op("charformer::cross_entropy_backward", mutates_args=())
def cross_entropy_backward(
    d_loss: Tensor, logits: Tensor, targets: Tensor, lse: Tensor, count: Tensor, ignore_index: int
) -> Tensor:
    if runs_kernel(logits):
        from kernels.gpu import cross_entropy as kernel

        return kernel.backward(d_loss, logits, targets, lse, count, ignore_index)
    d_logits = reference.cross_entropy_backward(d_loss, logits, targets, lse, count, ignore_index)
    return layouts.empty_padded(logits).copy_(d_logits)


@cross_entropy_backward.register_fake
def _(_d_loss: Tensor, logits: Tensor, *_: Any) -> Tensor:
    return layouts.empty_padded(logits)


def _cross_entropy_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, targets, ctx.ignore_index = inputs
    _, lse, count = output
    ctx.save_for_backward(logits, targets, lse, count)
    ctx.set_materialize_grads(False)


def _cross_entropy_gradient(ctx: Any, d_loss: Tensor, _d_lse: None, _d_count: None) -> tuple[Tensor | None, ...]:
    return cross_entropy_backward(d_loss, *ctx.saved_tensors, ctx.ignore_index), None, None


cross_entropy.register_autograd(_cross_entropy_gradient, setup_context=_cross_entropy_context)


def _stat_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _empty(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _row_stats(x: Tensor) -> tuple[Tensor, Tensor]:
    rows = x.numel() // x.shape[-1]
    return x.new_empty(rows, dtype=_stat_dtype(x)), x.new_empty(rows, dtype=_stat_dtype(x))
