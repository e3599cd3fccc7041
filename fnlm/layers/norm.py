"""Layer normalization with correct derivatives of every order.

torch's fused kernel passes mean and inverse deviation to its backward as constants. First
derivatives are right all the same; second ones are wrong under nested `torch.func` transforms, and
third ones anywhere (see docs/torch_func.md). So the kernel runs under at most one level of
differentiation, and plain differentiable arithmetic under nested ones.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fnlm.layers._levels import is_traced, levels

__all__ = ["layer_norm"]

_HALF = (torch.float16, torch.bfloat16)
_kernel_backward = torch.ops.aten.native_layer_norm_backward.default


def layer_norm(x: Tensor, scale: Tensor, bias: Tensor, *, eps: float) -> Tensor:
    """Normalize the last axis: (x - mean) / sqrt(variance + eps) * scale + bias.

    The variance is the biased one; half dtypes are normalized in float32.

    Args:
        x: [..., D].
        scale: [D].
        bias: [D].
        eps: the published value of the family, 1e-5 (GPT, GPT-2) or 1e-12 (BERT).

    Returns:
        [..., D].

    >>> import torch
    >>> layer_norm(torch.tensor([1.0, 3.0]), torch.ones(2), torch.zeros(2), eps=0.0)
    tensor([-1.,  1.])
    """
    # The kernel's derivatives are those of tensors: a typed leaf gives the one it stands for.
    scale, bias = (x if isinstance(x, Tensor) else torch.positive(x) for x in (scale, bias))
    if is_traced():
        return _plain(x, scale, bias, eps)  # a traced graph may be differentiated later
    active = levels(x, scale, bias)
    if active.order > 1 or (active.autograd and active.transforms):
        return _plain(x, scale, bias, eps)
    if active.autograd:
        return _Kernel.apply(x, scale, bias, eps)
    return F.layer_norm(x, (x.shape[-1],), scale, bias, eps)


def _plain(x: Tensor, scale: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm in plain ops, differentiable to any order: [..., D] -> [..., D]."""
    normed, _ = _standardize(x, eps)
    return (normed * scale + bias).to(x.dtype)


def _standardize(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return (x - mean) / std [..., D] and 1 / std [..., 1], at least in float32."""
    wide = x.float() if x.dtype in _HALF else x
    centered = wide - wide.mean(-1, keepdim=True)
    rstd = ((centered * centered).mean(-1, keepdim=True) + eps).rsqrt()  # [..., 1]
    return centered * rstd, rstd


class _Kernel(torch.autograd.Function):
    """torch's kernels for plain autograd; under `create_graph`, a plain backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, bias: Tensor, eps: float) -> Tensor:
        result, mean, rstd = torch.native_layer_norm(x, (x.shape[-1],), scale, bias, eps)
        ctx.save_for_backward(x, scale, bias, mean, rstd)
        ctx.eps = eps
        return result

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, bias, mean, rstd = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        if not torch.is_grad_enabled():
            shape = (x.shape[-1],)
            return *_kernel_backward(grad_out, x, shape, mean, rstd, scale, bias, needed), None
        # With create_graph the gradient is differentiated again: recompute it from x.
        normed, rstd = _standardize(x, ctx.eps)
        grad_normed = grad_out * scale  # [..., D]
        projection = (grad_normed * normed).mean(-1, keepdim=True)  # [..., 1]
        grad_x = rstd * (grad_normed - grad_normed.mean(-1, keepdim=True) - normed * projection)
        grad_scale = (grad_out * normed).sum_to_size(scale.shape)
        grads = grad_x, grad_scale, grad_out.sum_to_size(bias.shape)
        leaves = zip(grads, (x, scale, bias), needed, strict=True)
        return *(grad.to(leaf.dtype) if need else None for grad, leaf, need in leaves), None
