"""Levels of differentiation: how many are active around a call, and which of them track a tensor.

A level is a `torch.func` transform, forward mode (`jvp`, `forward_ad`) or plain autograd. Fused
kernels have a first derivative, so where levels meet, layers compute in plain operations instead.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _functorch
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.autograd import forward_ad
from torch.func import debug_unwrap
from torch.fx.experimental.proxy_tensor import get_proxy_mode

__all__ = ["Levels", "is_tracked", "is_traced", "levels"]

_GRAD, _JVP = _functorch.TransformType.Grad, _functorch.TransformType.Jvp


class Levels(NamedTuple):
    """The levels of differentiation around a call."""

    forward: int  # of forward mode
    dual: bool  # that of forward_ad.dual_level, in which torch.func.jvp can't be called
    reverse: int  # of torch.func.grad and vjp
    autograd: bool  # plain autograd, outside of all transforms, tracks the inputs
    transforms: bool  # any transform of torch.func is active, vmap included

    @property
    def order(self) -> int:
        """The number of levels: the highest order of derivative that they take together."""
        return self.forward + self.reverse + self.autograd


def levels(*inputs: Tensor) -> Levels:
    """Return the active levels; inputs are those of the call, which plain autograd may track.

    >>> from torch.func import grad, jvp
    >>> def orders(x):
    ...     print(levels(x).order)
    ...     return x
    >>> x = torch.tensor(1.0)
    >>> _ = orders(x), grad(orders)(x), jvp(grad(orders), (x,), (x,))
    0
    1
    2
    """
    stack = _functorch.get_interpreter_stack()
    if not stack:
        tracked = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
        dual = forward_ad._current_level >= 0
        return Levels(int(dual), dual, 0, tracked, False)
    kinds = [transform.key() for transform in stack]
    forward = kinds.count(_JVP)
    dual = not forward and forward_ad._current_level >= 0  # torch.func.jvp opens a dual level
    tracked = _is_tracked_outside(stack, inputs)
    return Levels(forward or int(dual), dual, kinds.count(_GRAD), tracked, True)


def is_traced() -> bool:
    """Return whether operations are recorded, for a graph that may be differentiated later."""
    if torch.compiler.is_compiling() or torch._C._is_tracing() or get_proxy_mode() is not None:
        return True
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None


def is_tracked(x: Tensor) -> bool:
    """Return whether a level, or plain autograd, differentiates by something that x depends on.

    >>> is_tracked(torch.ones(2)), is_tracked(torch.ones(2, requires_grad=True))
    (False, True)
    """
    if x.requires_grad:
        return True
    stack = _functorch.get_interpreter_stack()
    if forward_ad._current_level >= 0 and (not stack or stack[-1].key() == _JVP):
        if forward_ad.unpack_dual(x).tangent is not None:
            return True
    if not stack:
        return False
    inner = debug_unwrap(x, recurse=False)
    if _functorch.is_functorch_wrapped_tensor(x):
        outer = _functorch.maybe_get_level(x) < len(stack)  # x is of a level further out
        inner = x if outer else inner
    with temporarily_pop_interpreter_stack():
        return is_tracked(inner)


def _is_tracked_outside(stack: Any, inputs: tuple[Tensor, ...]) -> bool:
    """Return whether plain autograd, outside of all transforms, tracks the inputs."""
    outermost = next((transform for transform in stack if transform.key() == _GRAD), None)
    grad_enabled = torch.is_grad_enabled()
    if outermost is not None:  # it enables grad mode inside: the mode outside counts
        grad_enabled = _functorch.CGradInterpreterPtr(outermost).prevGradMode()
    return grad_enabled and any(debug_unwrap(x).requires_grad for x in inputs)
