"""Validation of the arguments of optimizers: hyperparameters, and gradients against parameters."""

import inspect
import math
from typing import Any

from torch import Tensor

from fnlm import tree
from fnlm.tree import Tree

__all__ = ["check_clip", "check_decay_rates", "check_gradients", "check_rates", "check_trainable"]


def check_rates(**rates: Any) -> None:
    """Raise unless rates are finite and not negative; tensors and schedules are not checked.

    >>> check_rates(lr=float("nan"))
    Traceback (most recent call last):
    ValueError: lr must be a finite number, got nan
    """
    for name, value in rates.items():
        if isinstance(value, Tensor) or callable(value):
            continue
        _check_number(name, value)
        if value < 0:
            raise ValueError(f"{name} must not be negative, got {value}: give 0 or more")
        if not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value}")


def _check_number(name: str, value: Any) -> None:
    """Raise TypeError unless a hyperparameter is a number."""
    if isinstance(value, int | float) or hasattr(value, "__float__"):
        return
    remedy = f"give a number, such as {name}=1e-3"
    if isinstance(value, dict | list | tuple) or inspect.isgenerator(value):
        remedy = "no optimizer holds parameters; state = optimizer.init(params) is made of them"
    raise TypeError(f"{name} must be a number, got {type(value).__name__}: {remedy}")


def check_decay_rates(**rates: Any) -> None:
    """Raise unless the decay rates of moment estimates, b1 and b2, are in [0, 1).

    >>> check_decay_rates(b1=1.0)
    Traceback (most recent call last):
    ValueError: b1 must be in [0, 1), got 1.0: such as 0.9 or 0.999
    """
    for name, value in rates.items():
        if isinstance(value, Tensor):
            continue
        _check_number(name, value)
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be in [0, 1), got {value}: such as 0.9 or 0.999")


def check_clip(**norms: Any) -> None:
    """Raise if a maximum norm is NaN.

    >>> check_clip(max_norm=float("nan"))
    Traceback (most recent call last):
    ValueError: max_norm must be a number (not above 0 for no clipping), got nan
    """
    for name, value in norms.items():
        if not isinstance(value, Tensor) and math.isnan(value):
            raise ValueError(f"{name} must be a number (not above 0 for no clipping), got {value}")


def check_trainable(params: Tree) -> None:
    """Raise unless all leaves are floating point.

    Raises:
        ValueError: there is none; or names the first one that is not, such as the integers of a
            quantized matrix.
    """
    if not tree.leaves(params):
        raise ValueError(
            f"params have no leaf to train, got {params!r:.60}: the predicate of a tree.partition "
            "selected none; tree.named_leaves lists the paths of a tree"
        )
    for path, leaf in tree.named_leaves(params):
        if not leaf.is_floating_point():
            raise ValueError(
                f"{path} has type {leaf.dtype}, which no optimizer updates: train a part of the "
                "tree, tree.partition(params, lambda path, leaf: leaf.is_floating_point())"
            )


def check_gradients(grads: Tree, params: Tree) -> None:
    """Raise unless gradients have the structure and shapes of the parameters.

    Raises:
        TypeError: a gradient is not a tensor; `torch.autograd.grad` returns None for a leaf that
            the loss does not use.
        ValueError: paths, shapes or containers differ.
    """
    actual: dict[str, Any] = {}
    for path, leaf in tree.named_leaves(grads):
        if not isinstance(leaf, Tensor):
            raise TypeError(
                f"grads have {leaf!r:.40} at {path!r}, not a tensor: for a leaf that the loss does "
                "not use give zeros (torch.func.grad does), or train a part of the tree "
                "(tree.partition)"
            )
        actual[path] = tuple(leaf.shape)
    if params is None:
        raise TypeError(
            "params must be those of optimizer.init, got None: update(grads, state, params)"
        )
    expected = {path: tuple(leaf.shape) for path, leaf in tree.named_leaves(params)}
    if actual == expected and tree.structure(grads) == tree.structure(params):
        return
    for path in expected.keys() | actual.keys():
        if expected.get(path) != actual.get(path):
            raise ValueError(
                f"grads do not fit params at {path!r}: shape {actual.get(path, 'absent')} against "
                f"{expected.get(path, 'absent')}; take gradients with respect to these params"
            )
    raise ValueError(
        "grads and params have the same leaves in different containers; take gradients with "
        "respect to these params (torch.func.grad keeps the containers, the config included)"
    )
