"""Layer normalisation whose derivatives are right at every order.

torch's kernel hands mean and standard deviation to its derivatives as constants. Its first
derivatives are right all the same, but not the second ones where a transform of `torch.func` meets
another level of derivatives, nor the third ones anywhere (see docs/torch_func.md). So the kernel
runs where at most one level differentiates, and plain arithmetic where levels meet.
"""

from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad
from torch.func import debug_unwrap
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn import functional as F

__all__ = ["layer_norm"]

_GRAD, _JVP = _functorch.TransformType.Grad, _functorch.TransformType.Jvp
_HALF = (torch.float16, torch.bfloat16)
_kernel_backward = torch.ops.aten.native_layer_norm_backward.default


def layer_norm(x: Tensor, scale: Tensor, bias: Tensor, *, eps: float) -> Tensor:
    """Normalise the last axis: (x - mean) / sqrt(variance + eps) * scale + bias.

    The variance is the biased one; half types are normalised in float32.

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
    if torch.compiler.is_compiling() or torch._C._is_tracing() or get_proxy_mode() is not None:
        return _plain(x, scale, bias, eps)  # what is recorded may be differentiated later
    stack = _functorch.get_interpreter_stack()
    if stack or forward_ad._current_level >= 0:
        kinds = [transform.key() for transform in stack or ()]
        forward = max(kinds.count(_JVP), int(forward_ad._current_level >= 0))
        outside = _is_tracked_outside(stack or (), x, scale, bias)
        if outside + forward + kinds.count(_GRAD) > 1 or (outside and stack):
            return _plain(x, scale, bias, eps)
    elif torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad or bias.requires_grad):
        return _Kernel.apply(x, scale, bias, eps)
    return F.layer_norm(x, (x.shape[-1],), scale, bias, eps)


def _is_tracked_outside(stack: Any, *inputs: Tensor) -> bool:
    """Say whether plain autograd, outside of all transforms, records what is done to the inputs."""
    first = next((transform for transform in stack if transform.key() == _GRAD), None)
    records = torch.is_grad_enabled()
    if first is not None:  # inside of it the record is on: the mode outside counts
        records = _functorch.CGradInterpreterPtr(first).prevGradMode()
    return records and any(debug_unwrap(leaf).requires_grad for leaf in inputs)


def _plain(x: Tensor, scale: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalise by operations that torch differentiates to any order: [..., D] -> [..., D]."""
    normed, _ = _standardised(x, eps)
    return (normed * scale + bias).to(x.dtype)


def _standardised(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return (x - mean) / deviation [..., D] and 1 / deviation [..., 1], at least in float32."""
    wide = x.float() if x.dtype in _HALF else x
    centred = wide - wide.mean(-1, keepdim=True)
    inverse = ((centred * centred).mean(-1, keepdim=True) + eps).rsqrt()
    return centred * inverse, inverse


class _Kernel(torch.autograd.Function):
    """torch's kernels for plain autograd; a gradient that is recorded is plain arithmetic."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, bias: Tensor, eps: float) -> Tensor:
        result, mean, inverse = torch.native_layer_norm(x, (x.shape[-1],), scale, bias, eps)
        ctx.save_for_backward(x, scale, bias, mean, inverse)
        ctx.eps = eps
        return result

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, bias, mean, inverse = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        if not torch.is_grad_enabled():
            shape = (x.shape[-1],)
            return *_kernel_backward(slope, x, shape, mean, inverse, scale, bias, wanted), None
        normed, inverse = _standardised(x, ctx.eps)
        by_normed = slope * scale
        along = (by_normed * normed).mean(-1, keepdim=True)
        by_x = inverse * (by_normed - by_normed.mean(-1, keepdim=True) - normed * along)
        grads = by_x, (slope * normed).sum_to_size(scale.shape), slope.sum_to_size(bias.shape)
        leaves = zip(grads, (x, scale, bias), wanted, strict=True)
        return *(grad.to(leaf.dtype) if want else None for grad, leaf, want in leaves), None
