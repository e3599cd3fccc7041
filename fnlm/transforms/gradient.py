"""Gradients with the memory of a first derivative, unless a caller differentiates them again."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, compiler
from torch import func as torch_func
from torch.func import debug_unwrap, vjp

from fnlm import _former, tree
from fnlm.tree import Tree

__all__ = ["grad", "grad_and_value"]


@_former.answering
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


@_former.answering
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
        ValueError: from the returned function, if the loss is not a scalar, a leaf not floating, or
            there is none.

    >>> import torch
    >>> grad_and_value(lambda x: x.square().sum())(torch.tensor([1.0, 2.0]))
    (tensor([2., 4.]), tensor(5.))
    """

    def differentiate(params: Tree, *args: Any, **kwargs: Any) -> Any:
        _check_floating(params)
        if compiler.is_compiling():  # the compiler drops the graph if it is not needed
            return torch_func.grad_and_value(loss, has_aux=has_aux)(params, *args, **kwargs)
        loss_of = loss if has_aux else _checked(loss)
        value, pull, *aux = vjp(lambda p: loss_of(p, *args, **kwargs), params, has_aux=has_aux)
        if not isinstance(value, Tensor) or value.ndim:
            raise ValueError(_no_number(value))
        create_graph = is_recorded(value)  # only for a second derivative
        (grads,) = pull(value.new_ones(()), retain_graph=create_graph, create_graph=create_graph)
        return grads, (value, *aux) if has_aux else value

    return differentiate


def _check_floating(params: Tree) -> None:
    """Raise ValueError where a leaf has no gradient."""
    leaves = tree.leaves(params)
    if not leaves:
        raise ValueError(
            f"params have no leaf to differentiate by, got {params!r:.60}: the predicate of a "
            "tree.partition selected none; tree.named_leaves lists the paths of a tree"
        )
    if all(x.is_floating_point() for x in leaves):
        return
    path, leaf = next(p for p in tree.named_leaves(params) if not p[1].is_floating_point())
    raise ValueError(
        f"{path} has type {leaf.dtype}, by which nothing can be differentiated: part it from the "
        "others, tree.partition(params, lambda path, leaf: leaf.is_floating_point()), and "
        "tree.merge the halves in the loss"
    )


def _checked(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Return the loss, which raises ValueError where it returns no tensor."""

    def call(*args: Any, **kwargs: Any) -> Tensor:
        value = loss(*args, **kwargs)
        if not isinstance(value, Tensor):
            raise ValueError(_no_number(value))
        return value

    return call


def _no_number(value: Any) -> str:
    """Return the error of what a loss returned in place of a number."""
    result = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
    return (
        f"the loss must return one number, a tensor of shape [], got {result}: of what a model "
        "returns, fnlm.train.losses make one, and of many numbers .mean(); has_aux=True lets it "
        "return more"
    )


def is_recorded(value: Tensor) -> bool:
    """Return whether a gradient is recorded through a value, at any level of transforms or outside.

    The `requires_grad` of a batched tensor of `vmap` is not that of the tensor it wraps, so every
    level is checked.
    """
    inner = debug_unwrap(value, recurse=False)
    return value.requires_grad or (inner is not value and is_recorded(inner))
