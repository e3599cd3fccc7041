"""Compositions of transforms, and what each of them must give.

A function `h(params, i) -> []` has a tree of parameters, and the number i of an example. A
transform makes another such function of it: a derivative along a direction, or a weighted sum over
the examples by `vmap`. So any transforms compose, and the same numbers come from plain autograd and
loops alone, which `reference` uses; those are held to differences by `differs_from_differences`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from fnlm import tree
from fnlm.tree import Tree

Function = Callable[[Tree, Tensor], Tensor]
Transform = Callable[[Function, Tree], Function]
WEIGHTS = torch.tensor([1.0, -0.7], dtype=torch.float64)  # of the examples


def dot(a: Tree, b: Tree) -> Tensor:
    return sum((x * y).sum() for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True))


def add(a: Tree, b: Tree, t: Any = 1.0) -> Tree:
    return tree.map(lambda x, y: x + t * y, a, b)


def _grad(h: Function, direction: Tree) -> Function:
    return lambda p, i: dot(grad(h)(p, i), direction)


def _vjp(h: Function, direction: Tree) -> Function:
    def along(p: Tree, i: Tensor) -> Tensor:
        value, pull, *_ = vjp(lambda q: h(q, i), p)
        return dot(pull(torch.ones_like(value))[0], direction)

    return along


def _jvp(h: Function, direction: Tree) -> Function:
    return lambda p, i: jvp(lambda q: h(q, i), (p,), (direction,))[1]


def _vmap(h: Function, direction: Tree) -> Function:
    def total(p: Tree, i: Tensor) -> Tensor:
        shifts = torch.arange(len(WEIGHTS))
        return (vmap(lambda j: h(p, (i + j) % len(WEIGHTS)))(shifts) * WEIGHTS).sum()

    return total


def _matrix(transform: Callable[..., Any]) -> Transform:
    """Differentiate by two numbers that move half of the leaves each, and sum up the entries."""

    def along(h: Function, direction: Tree) -> Function:
        turn = iter(range(len(tree.leaves(direction))))
        a = tree.map(lambda x: x * (next(turn) % 2), direction)
        b = add(direction, a, -1.0)

        def total(p: Tree, i: Tensor) -> Tensor:
            start = torch.zeros(2, dtype=torch.float64)
            return transform(lambda t: h(add(add(p, a, t[0]), b, t[1]), i))(start).sum()

        return total

    return along


def slopes(h: Function, p: Tree, i: Tensor) -> Tree:
    """Return the gradient by plain autograd, recorded for a further one."""
    p = tree.map(lambda x: x if x.requires_grad else x.detach().requires_grad_(), p)
    made = torch.autograd.grad(
        h(p, i), tree.leaves(p), create_graph=True, allow_unused=True, materialize_grads=True
    )
    return tree.unflatten(tree.structure(p), made)


def _autograd(h: Function, direction: Tree) -> Function:
    return lambda p, i: dot(slopes(h, p, i), direction)


def _loop(h: Function, direction: Tree) -> Function:
    return lambda p, i: sum(w * h(p, (i + j) % len(WEIGHTS)) for j, w in enumerate(WEIGHTS))


PAIRED: dict[str, Transform] = {"grad": _grad, "vjp": _vjp, "jvp": _jvp, "vmap": _vmap}
TRANSFORMS: dict[str, Transform] = PAIRED | {
    "jacfwd": _matrix(jacfwd), "jacrev": _matrix(jacrev), "hessian": _matrix(hessian),
    "autograd": _autograd,  # stands outside of all others
}  # fmt: skip
ORDER = {"vmap": 0, "hessian": 2}  # how often a transform differentiates; the others once


def compose(h: Function, names: Sequence[str], directions: Sequence[Tree]) -> Function:
    """Apply the transforms, the last one first."""
    for name, direction in zip(reversed(names), reversed(directions), strict=True):
        h = TRANSFORMS[name](h, direction)
    return h


def reference(h: Function, names: Sequence[str], directions: Sequence[Tree]) -> Function:
    """Compose what gives the same numbers: plain autograd, and loops."""
    for name, direction in zip(reversed(names), reversed(directions), strict=True):
        for _ in range(ORDER.get(name, 1)):
            h = _autograd(h, direction)
        h = _loop(h, direction) if name == "vmap" else h
    return h


def difference(h: Function, p: Tree, i: Tensor, direction: Tree, step: float = 3e-5) -> Tensor:
    """Return the derivative along a direction by values at four points; its error is step^4."""
    far, near = (
        h(add(p, direction, t), i).detach() - h(add(p, direction, -t), i).detach()
        for t in (2 * step, step)
    )
    return (8 * near - far) / (12 * step)


def error(found: Tree, expected: Tree) -> float:
    """Return the largest error of any leaf, relative to that leaf's largest number."""
    worst = 0.0
    size = max(float(x.detach().abs().max()) for x in tree.leaves(expected) if x.numel())
    for a, b in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        if a.numel():
            scale = max(float(b.detach().abs().max()), 1e-6 * size, 1e-12)
            off = float((a - b).detach().abs().max()) / scale
            worst = max(worst, off if off == off else float("inf"))
    return worst
