"""Attention by torch's fused kernel, below every transform.

The kernel holds no scores. It has a gradient, but no rule for `vmap`, `jvp` or second derivatives.
So it stands in an `autograd.Function` with a rule for `vmap`, and the kernel of its gradient in a
second one, which is differentiated in plain operations. Where levels of differentiation meet, and
in forward mode, `fnlm.layers.attention.attend` does not come here.

Dimensions: B all leading axes as one, H heads, T queries, S keys, Dh width of a head.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import unwrap_if_dead
from torch.func import vjp

from fnlm.layers._levels import is_traced, levels

__all__ = ["attend", "can_attend"]

# Below these sizes plain operations are as fast (benchmarks/attention.py), as they are in bfloat16.
# There is a further reason: where keys are fewer than a vector register holds, the kernel turns a
# NaN into 0, and in half precision an infinity.
QUERIES, KEYS = 128, 128
_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_kernel_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
_FLOATS = (torch.float64, torch.float32)


def can_attend(
    q: Tensor, keys: tuple[Tensor, ...], values: tuple[Tensor, ...], mask: Tensor | None
) -> bool:
    """Return whether the kernel takes these, and they are large enough to gain by it."""
    if q.shape[-2] < QUERIES or sum(k.shape[-2] for k in keys) < KEYS or is_traced():
        return False
    if q.device.type != "cpu" or q.dtype not in _FLOATS or not q.numel():
        return False
    if mask is not None and mask.dtype not in (torch.bool, q.dtype):
        return False
    alike = (*q.shape[:-2], q.shape[-1])  # but for the number of tokens
    if any((*x.shape[:-2], x.shape[-1]) != alike or x.dtype != q.dtype for x in (*keys, *values)):
        return False
    active = levels(q, *keys, *values, *([] if mask is None else [mask]))
    return not active.forward and active.order < 2


def attend(
    q: Tensor,
    keys: tuple[Tensor, ...],
    values: tuple[Tensor, ...],
    mask: Tensor | None,
    chunk: int | None,
) -> Tensor:
    """Return the attention of `fnlm.layers.attention.attend`, without dropout.

    Args:
        q: [..., H, T, Dh].
        keys: segments, concatenated here.
        values: likewise.
        mask: broadcastable to [..., H, T, S]: bool, or of the dtype of q and added.
        chunk: queries at a time, each time without the keys after the last of them; None takes all
            queries and keys together.

    Returns:
        [..., H, T, Dh].
    """
    lead = q.shape[:-3]
    k, v = (xs[0] if len(xs) == 1 else torch.cat(xs, -2) for xs in (keys, values))
    if mask is not None and mask.dtype == torch.bool:
        # A query without keys attends uniformly: its scores are 0, and `_added` leaves them so.
        q = torch.where(mask.any(-1, keepdim=True), q, 0.0)
    elif mask is not None:
        mask = mask - mask.amax(-1, keepdim=True)  # NaN in a row of -inf, where the kernel gives 0
    q, k, v = (x.reshape(-1, *x.shape[-3:]) for x in (q, k, v))  # [B, H, T, Dh], [B, H, S, Dh]
    if mask is not None:
        mask = mask[(None,) * (3 - mask.ndim)]  # [..., 1 or H, 1 or T, 1 or S]
        if mask.shape[:-3].numel() > 1:
            mask = mask.expand(*lead, *mask.shape[-3:])
        mask = mask.reshape(-1, *mask.shape[-3:])  # [1 or B, ...]
    active = levels(q, k, v, *([] if mask is None else [mask]))
    if active.order or active.transforms:
        out, _ = _Attend.apply(chunk, q, k, v, mask)
    else:
        out, _ = _forward(q, k, v, mask, chunk=chunk)
    return out.reshape(*lead, *q.shape[-3:])


def _parts(
    q: Tensor, k: Tensor, mask: Tensor | None, chunk: int | None
) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """Yield the queries and keys of each chunk, and what is added to their scores."""
    queries, total = q.shape[-2], k.shape[-2]
    if chunk is None:
        yield slice(queries), slice(total), _added(mask, q.dtype)
        return
    if mask is not None:
        mask = mask.expand(*mask.shape[:2], queries, total)
    for start in range(0, queries, chunk):
        end = min(start + chunk, queries)
        of_q, of_k = slice(start, end), slice(total - queries + end)
        yield of_q, of_k, _added(None if mask is None else mask[..., of_q, of_k], q.dtype)


def _added(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return what is added to the scores: of a chunk alone, so that no [T, S] floats are kept."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    hidden = ~mask & mask.any(-1, keepdim=True)  # nothing, in a row without keys
    return torch.zeros_like(mask, dtype=dtype).masked_fill(hidden, -math.inf)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, chunk: int | None
) -> tuple[Tensor, Tensor]:
    """Return the kernel's result [B, H, T, Dh], and the logsumexp of the scores [B, H, T]."""
    q, k, v, mask = map(_dense, (q, k, v, mask))
    found = [
        _kernel(q[..., of_q, :], k[..., of_k, :], v[..., of_k, :], 0.0, False, attn_mask=part)
        for of_q, of_k, part in _parts(q, k, mask, chunk)
    ]
    if len(found) == 1:
        return found[0]
    outs, sums = zip(*found, strict=True)
    return torch.cat(outs, -2), torch.cat(sums, -1)


def _plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, chunk: int | None) -> Tensor:
    """Return the result in plain operations, which are differentiable to any order."""
    scaled, outs = q / math.sqrt(q.shape[-1]), []
    for of_q, of_k, part in _parts(q, k, mask, chunk):
        scores = scaled[..., of_q, :] @ k[..., of_k, :].mT
        weights = (scores if part is None else scores + part).softmax(-1)
        outs.append(weights @ v[..., of_k, :])
    return torch.cat(outs, -2)


def _gradients(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, chunk: int | None
) -> tuple[Tensor, ...]:
    """Return the gradients by q, k, v and a mask of numbers, in plain operations."""
    if mask is None or mask.dtype == torch.bool:
        return vjp(partial(_plain, mask=mask, chunk=chunk), q, k, v)[1](grad_out)
    return vjp(partial(_plain, chunk=chunk), q, k, v, mask)[1](grad_out)


class _Attend(torch.autograd.Function):
    """The kernel, whose gradient is `_AttendBackward`."""

    @staticmethod
    def forward(chunk: int | None, *inputs: Any) -> tuple[Tensor, Tensor]:
        return _forward(*inputs, chunk=chunk)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.chunk, *tensors = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        q, k, v, mask, out, sums = _saved(ctx)
        # The kernel has no gradient by a mask, and what follows no rule for forward mode.
        if ctx.needs_input_grad[4] or levels(grad_out, q, k, v).forward:
            found = _gradients(grad_out, q, k, v, mask, chunk=ctx.chunk)
        else:
            found = _AttendBackward.apply(ctx.chunk, grad_out, q, k, v, mask, out, sums)
        return None, *found, *(None,) * (4 - len(found))

    @staticmethod
    def vmap(info: Any, dims: Any, chunk: int | None, *inputs: Any) -> Any:
        folded = _fold(info.batch_size, dims[1:], inputs, mask=3)
        return _unfold(info.batch_size, _Attend.apply(chunk, *folded))


class _AttendBackward(torch.autograd.Function):
    """The kernel of the gradient by q, k and v, differentiated in plain operations."""

    @staticmethod
    def forward(chunk: int | None, *inputs: Any) -> tuple[Tensor, ...]:
        return _backward(*inputs, chunk=chunk)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.chunk, *tensors = inputs
        ctx.save_for_backward(*tensors[:5])  # what the kernel kept follows from the rest

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *given, mask = _saved(ctx)
        found = vjp(partial(_gradients_by_qkv, mask=mask, chunk=ctx.chunk), *given)[1](grads)
        return None, *found, None, None, None

    @staticmethod
    def vmap(info: Any, dims: Any, chunk: int | None, *inputs: Any) -> Any:
        folded = _fold(info.batch_size, dims[1:], inputs, mask=4)
        return _unfold(info.batch_size, _AttendBackward.apply(chunk, *folded))


def _gradients_by_qkv(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, chunk: int | None
) -> tuple[Tensor, ...]:
    return _gradients(grad_out, q, k, v, mask, chunk=chunk)[:3]


def _backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *kept: Tensor,
    chunk: int | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return the kernel's gradients by q, k and v; a chunk adds to those of the keys before."""
    out, sums = kept
    grad_out, q, k, v, mask = map(_dense, (grad_out, q, k, v, mask))

    def one(of_q: slice, of_k: slice, part: Tensor | None) -> tuple[Tensor, ...]:
        new, old, result = (x[..., of_q, :] for x in (grad_out, q, out))
        given = new, old, k[..., of_k, :], v[..., of_k, :], result, sums[..., of_q]
        return _kernel_backward(*given, 0.0, False, attn_mask=part)

    parts = _parts(q, k, mask, chunk)
    if chunk is None:
        return one(*next(parts))
    grads_q, grad_k, grad_v = [], torch.zeros_like(k), torch.zeros_like(v)
    for of_q, of_k, part in parts:
        grad_q, to_k, to_v = one(of_q, of_k, part)
        grads_q.append(grad_q)
        grad_k[..., of_k, :] += to_k
        grad_v[..., of_k, :] += to_v
    return torch.cat(grads_q, -2), grad_k, grad_v


def _dense(x: Any) -> Any:
    """Make the numbers of the last axis neighbours, as the kernel takes for given; None stays."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def _saved(ctx: Any) -> tuple[Any, ...]:
    """Return what was saved; a gradient may be taken when the level that saved it is gone."""
    return tuple(None if x is None else unwrap_if_dead(x) for x in ctx.saved_tensors)


def _fold(size: int, dims: Any, inputs: Any, *, mask: int) -> list[Any]:
    """Fold the mapped axis into the first one, B; a mask of one for all stays so."""
    folded = []
    for place, (x, dim) in enumerate(zip(inputs, dims, strict=True)):
        if x is None or (place == mask and dim is None and x.shape[0] == 1):
            folded.append(x)
            continue
        x = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)  # [n, B, ...]
        if place == mask:
            x = x.expand(size, folded[0].shape[0] // size, *x.shape[2:])
        folded.append(x.flatten(0, 1))
    return folded


def _unfold(size: int, outputs: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    found = tuple(x.unflatten(0, (size, -1)) for x in outputs)
    return found, (0,) * len(found)
