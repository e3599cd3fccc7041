"""Gradients for those who do not differentiate them again."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, compiler
from torch import func as torch_func
from torch.func import debug_unwrap, vjp

from fnlm.tree import Tree

__all__ = ["grad", "grad_and_value"]


def grad(loss: Callable[..., Any], *, has_aux: bool = False) -> Callable[..., Any]:
    """Make the function that returns the gradient by the first argument: see `grad_and_value`.

    Args:
        loss: `loss(params, *args, **kwargs) -> []`.
        has_aux: `loss` returns a pair, `([], aux)`, and the function `(gradient, aux)`.

    >>> import torch
    >>> grad(lambda params, x: (params["w"] * x).sum())({"w": torch.ones(2)}, torch.tensor(3.0))
    {'w': tensor([3., 3.])}
    """

    def gradient(params: Tree, *args: Any, **kwargs: Any) -> Any:
        grads, value = grad_and_value(loss, has_aux=has_aux)(params, *args, **kwargs)
        return (grads, value[1]) if has_aux else grads

    return gradient


def grad_and_value(loss: Callable[..., Any], *, has_aux: bool = False) -> Callable[..., Any]:
    """Make the function that returns the gradient by the first argument, and the value.

    The same numbers as those of `torch.func.grad_and_value`, in less memory: that one always keeps
    what a second derivative would need, this one where somebody outside differentiates, too.

    Args:
        loss: `loss(params, *args, **kwargs) -> []`; all leaves of `params` are floating point.
        has_aux: `loss` returns a pair, `([], aux)`, and the function `(gradient, ([], aux))`.

    Returns:
        `fn(params, *args, **kwargs) -> (gradient, value)`, which every transform takes, `grad` too;
        the gradient is a tree like `params`.

    Raises:
        ValueError: from that function, where the loss is not one number.

    >>> import torch
    >>> grad_and_value(lambda x: x.square().sum())(torch.tensor([1.0, 2.0]))
    (tensor([2., 4.]), tensor(5.))
    """

    def differentiate(params: Tree, *args: Any, **kwargs: Any) -> Any:
        if compiler.is_compiling():  # keeps nothing that is not needed
            return torch_func.grad_and_value(loss, has_aux=has_aux)(params, *args, **kwargs)
        value, pull, *aux = vjp(lambda p: loss(p, *args, **kwargs), params, has_aux=has_aux)
        if not isinstance(value, Tensor) or value.ndim:
            found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"the loss must return one number, a tensor of shape [], got {found}")
        again = _is_tracked(value)
        (grads,) = pull(value.new_ones(()), retain_graph=again, create_graph=again)
        return grads, (value, *aux) if has_aux else value

    return differentiate


def _is_tracked(value: Tensor) -> bool:
    """Say whether anything outside, at any level of nested transforms, differentiates the value.

    A batch of `vmap` does not tell what the tensor inside it knows, so every layer is asked.
    """
    inner = debug_unwrap(value, recurse=False)
    return value.requires_grad or (inner is not value and _is_tracked(inner))
