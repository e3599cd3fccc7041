"""Symmetric linear maps between trees like the parameters, and vectors of all their elements."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fnlm import tree
from fnlm.tree import Tree

__all__ = ["Operator", "flatten", "unflatten_like"]

Product = Callable[[Tree], Tree]


@dataclass(frozen=True, eq=False)
class Operator:
    """A symmetric matrix over all elements of a tree, known by its products: `op(tree) -> tree`.

    It is linear and pure, and works under every transform of `torch.func`. Operators add, and
    multiply by numbers: batches that come one after the other give `op_1 + op_2`. The solvers of
    SciPy accept it, as it has `shape`, `dtype`, `matvec` and `rmatvec`, over vectors of all
    elements in the order of `tree.leaves`.

    Args:
        product: the product with a tree.
        like: a tree of tensors with the structure, shapes and types of what is multiplied.

    >>> op = 2.0 * Operator(lambda v: {"w": 3 * v["w"]}, {"w": torch.zeros(2)})
    >>> op({"w": torch.ones(2)}), op.shape, op.matvec(np.ones(2))
    ({'w': tensor([6., 6.])}, (2, 2), array([6., 6.], dtype=float32))
    """

    product: Product
    like: Tree

    def __call__(self, direction: Tree) -> Tree:
        check_like(direction, self.like)
        return self.product(direction)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of elements, twice."""
        size = tree.count(self.like)
        return size, size

    @property
    def dtype(self) -> np.dtype:
        """Type of the vectors: that of the leaves, at least float32."""
        return torch.zeros((), dtype=_wide(self.like)).numpy().dtype

    def matvec(self, vector: np.ndarray) -> np.ndarray:
        """Return the product with a vector: [n] or [n, 1] -> [n]."""
        first = tree.leaves(self.like)[0]
        flat = torch.as_tensor(np.asarray(vector).reshape(-1), device=first.device)
        if flat.numel() != self.shape[0]:
            raise ValueError(
                f"the operator has the shape {self.shape}, got a vector of {flat.numel()} elements"
            )
        product = self(unflatten_like(self.like, flat))
        return flatten(product).detach().cpu().numpy()

    rmatvec = matvec  # it is symmetric

    def __add__(self, other: "Operator") -> "Operator":
        if not isinstance(other, Operator):
            return NotImplemented
        check_like(other.like, self.like)
        return Operator(lambda v: tree.map(torch.add, self.product(v), other.product(v)), self.like)

    def __mul__(self, factor: float | Tensor) -> "Operator":
        if isinstance(factor, Operator):
            return NotImplemented
        return Operator(lambda v: tree.map(lambda x: factor * x, self.product(v)), self.like)

    __rmul__ = __mul__


def flatten(direction: Tree) -> Tensor:
    """Return all elements of a tree as one vector [n], at least float32.

    >>> flatten({"a": torch.ones(2), "b": torch.zeros(1, 1)})
    tensor([1., 1., 0.])
    """
    check_whole(direction)
    wide = _wide(direction)
    return torch.cat([leaf.reshape(-1).to(wide) for leaf in tree.leaves(direction)])


def unflatten_like(like: Tree, vector: Tensor) -> Tree:
    """Return the tree whose elements are those of a vector [..., n]: the inverse of `flatten`.

    Args:
        like: a tree with the structure, shapes and types of the result.
        vector: [..., n]; leading axes come in front of every leaf.

    >>> unflatten_like({"a": torch.zeros(2), "b": torch.zeros(1, 1)}, torch.arange(3.0))
    {'a': tensor([0., 1.]), 'b': tensor([[2.]])}
    """
    check_whole(like)
    leaves = tree.leaves(like)
    parts = vector.split([leaf.numel() for leaf in leaves], -1)
    shaped = (
        part.reshape(*vector.shape[:-1], *leaf.shape).to(leaf.dtype)
        for part, leaf in zip(parts, leaves, strict=True)
    )
    return tree.unflatten(tree.structure(like), list(shaped))


def inner(a: Tree, b: Tree) -> Tensor:
    """Return the inner product of two trees: [], at least float32."""
    pairs = zip(tree.leaves(a), tree.leaves(b), strict=True)
    wide = _wide(a)
    products = [torch.dot(x.reshape(-1).to(wide), y.reshape(-1).to(wide)) for x, y in pairs]
    return torch.stack(tree.over_processes(a, products)).sum()


def check_whole(like: Tree) -> None:
    """Raise ValueError where a vector of all elements would be one of a process's parts alone."""
    if spanning := tree.spanning_leaves(like):
        path, leaf = spanning[0]
        raise ValueError(
            f"{path} is {leaf!r}, of which each process has a part: vectors of all elements, and "
            "random ones, need the whole, fnlm.distributed.gather(params); products and `solve` "
            "take it as it is"
        )


def split_floats(params: Tree) -> tuple[Tree, Callable[[Tree], Tree]]:
    """Return the floating-point leaves, and the function that puts the others back."""
    if all(torch.is_floating_point(leaf) for leaf in tree.leaves(params)):
        return params, lambda floats: floats
    floats, rest = tree.partition(params, lambda path, leaf: torch.is_floating_point(leaf))
    return floats, lambda floats: tree.merge(floats, rest)


def _wide(direction: Tree) -> torch.dtype:
    """Return the widest type of the leaves, at least float32."""
    dtype = torch.float32
    for leaf in tree.leaves(direction):
        dtype = torch.promote_types(dtype, leaf.dtype)
    return dtype


def check_like(direction: Any, like: Tree) -> None:
    """Raise unless a tree has the paths, shapes and types of another."""
    given, wanted = dict(tree.named_leaves(direction)), dict(tree.named_leaves(like))
    if given.keys() != wanted.keys():
        raise ValueError(
            f"the operator takes a tree like the parameters it was made of: missing "
            f"{sorted(wanted.keys() - given.keys())}, unexpected "
            f"{sorted(given.keys() - wanted.keys())} (leaves that are not floating point are "
            "constants, and left out)"
        )
    for path, leaf in given.items():
        other = wanted[path]
        if leaf.shape != other.shape or leaf.dtype != other.dtype:
            raise ValueError(
                f"the operator takes a tree like the parameters it was made of: {path!r} is "
                f"{tuple(leaf.shape)} {leaf.dtype}, wanted {tuple(other.shape)} {other.dtype}"
            )
