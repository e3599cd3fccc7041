"""Gradients with the memory of a first derivative, unless a caller differentiates them again."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, compiler
from torch import func as torch_func
from torch.func import debug_unwrap, vjp

from fnlm.tree import Tree

__all__ = ["grad", "grad_and_value"]


def grad(loss: Callable[..., Any], *, has_aux: bool = False) -> Callable[..., Any]:
    """Return the gradient function of a loss, by the first argument; see `grad_and_value`.

    Args:
        loss: `loss(params, *args, **kwargs) -> []`.
        has_aux: `loss` returns a pair `([], aux)`; the gradient function returns `(gradient, aux)`.

    Returns:
        `fn(params, *args, **kwargs) -> gradient`, a tree like `params`.

    >>> import torch
    >>> grad(lambda params, x: (params["w"] * x).sum())({"w": torch.ones(2)}, torch.tensor(3.0))
    {'w': tensor([3., 3.])}
    """

    def gradient(params: Tree, *args: Any, **kwargs: Any) -> Any:
        grads, value = grad_and_value(loss, has_aux=has_aux)(params, *args, **kwargs)
        return (grads, value[1]) if has_aux else grads

    return gradient


def grad_and_value(loss: Callable[..., Any], *, has_aux: bool = False) -> Callable[..., Any]:
    """Return the function that computes the gradient by the first argument, and the value.

    The numbers are those of `torch.func.grad_and_value`, in less memory: torch's always builds the
    graph of a second derivative, this one only inside another differentiation.

    Args:
        loss: `loss(params, *args, **kwargs) -> []`; all leaves of `params` are floating point.
        has_aux: `loss` returns a pair `([], aux)`; the function returns `(gradient, ([], aux))`.

    Returns:
        `fn(params, *args, **kwargs) -> (gradient, value)`, where the gradient is a tree like
        `params`. It works under every transform, `grad` included.

    Raises:
        ValueError: from the returned function, if the loss is not a scalar.

    >>> import torch
    >>> grad_and_value(lambda x: x.square().sum())(torch.tensor([1.0, 2.0]))
    (tensor([2., 4.]), tensor(5.))
    """

    def differentiate(params: Tree, *args: Any, **kwargs: Any) -> Any:
        if compiler.is_compiling():  # the compiler drops the graph if it is not needed
            return torch_func.grad_and_value(loss, has_aux=has_aux)(params, *args, **kwargs)
        value, pull, *aux = vjp(lambda p: loss(p, *args, **kwargs), params, has_aux=has_aux)
        if not isinstance(value, Tensor) or value.ndim:
            result = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"the loss must return one number, a tensor of shape [], got {result}")
        create_graph = is_tracked(value)  # only for a second derivative
        (grads,) = pull(value.new_ones(()), retain_graph=create_graph, create_graph=create_graph)
        return grads, (value, *aux) if has_aux else value

    return differentiate


def is_tracked(value: Tensor) -> bool:
    """Return whether an outer transform, at any level, or autograd differentiates the value.

    The `requires_grad` of a batched tensor of `vmap` is not that of the tensor it wraps, so every
    level is checked.
    """
    inner = debug_unwrap(value, recurse=False)
    return value.requires_grad or (inner is not value and is_tracked(inner))
