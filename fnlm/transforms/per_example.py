"""Gradients of single examples."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from fnlm import tree
from fnlm.transforms.gradient import grad
from fnlm.tree import Tree

__all__ = ["per_example_grads", "per_example_norms"]

Loss = Callable[..., Tensor]


def per_example_grads(loss: Loss, params: Tree, *batch: Any, chunk_size: int | None = None) -> Tree:
    """Return the gradient of the loss at each example: those of a loop, computed together.

    Args:
        loss: `loss(params, *example) -> []`, where an example is an element of the batch, without
            batch axis.
        params: the tree to differentiate by; leaves that are not floating point are constants.
        *batch: tensors, or trees of tensors, all with a first axis of length B (keys for dropout
            too).
        chunk_size: how many examples to do at a time, to bound the memory of activations; left out,
            all.

    Returns:
        The tree of `params` (its floating-point leaves), each leaf [B, *shape]; B may be 0, as in
        Poisson sampling, and the loss is then not called.

    Raises:
        ValueError: no batch was given, or its first axes differ.

    >>> params = {"w": torch.tensor([1.0, 2.0])}
    >>> per_example_grads(lambda p, x: (p["w"] * x).sum() ** 2, params, torch.eye(2))
    {'w': tensor([[2., 0.], [0., 4.]])}
    """
    _check(batch, chunk_size)
    floats, rest = _differentiable(params)

    def one(floats: Tree, *example: Any) -> Tensor:
        return loss(floats if rest is None else tree.merge(floats, rest), *example)

    if _rows(batch) == 0:
        return tree.map(lambda p: p.new_zeros(0, *p.shape), floats)
    return _over_examples(grad(one), floats, batch, chunk_size)


def per_example_norms(
    loss: Loss, params: Tree, *batch: Any, chunk_size: int | None = None
) -> Tensor:
    """Return the Euclidean norm of the gradient of the loss at each example.

    Args:
        loss, params, batch: as for `per_example_grads`.
        chunk_size: how many examples to do at a time; only so many gradients exist at once.

    Returns:
        [B].

    >>> params = {"w": torch.tensor([1.0, 2.0])}
    >>> per_example_norms(lambda p, x: (p["w"] * x).sum() ** 2, params, torch.eye(2))
    tensor([2., 4.])
    """
    _check(batch, chunk_size)
    floats, rest = _differentiable(params)

    def one(floats: Tree, *example: Any) -> Tensor:
        return loss(floats if rest is None else tree.merge(floats, rest), *example)

    if _rows(batch) == 0:  # of the type that the norms of these gradients have
        return tree.norm(tree.map(lambda p: p.new_zeros(()), floats)).new_zeros(0)
    return _over_examples(
        lambda p, *example: tree.norm(grad(one)(p, *example)), floats, batch, chunk_size
    )


def _over_examples(
    fn: Callable[..., Tree], params: Tree, batch: tuple[Any, ...], chunk_size: int | None
) -> Tree:
    """Map a function over examples; chunks go into one result, whose memory is there once."""
    mapped = vmap(fn, in_dims=(None, *(0 for _ in batch)))
    size = _rows(batch)
    if chunk_size is None or chunk_size >= size:
        return mapped(params, *batch)
    result: Tree = None
    for start in range(0, size, chunk_size):
        rows = slice(start, start + chunk_size)
        chunk = mapped(params, *tree.map(lambda x, rows=rows: x[rows], batch))
        if start == 0:
            result = tree.map(lambda x: x.new_empty(size, *x.shape[1:]), chunk)
        tree.map(lambda out, x, rows=rows: out[rows].copy_(x), result, chunk)
    return result


def _rows(batch: tuple[Any, ...]) -> int:
    return int(tree.leaves(batch)[0].shape[0])


def _differentiable(params: Tree) -> tuple[Tree, Tree | None]:
    """Split off the leaves that have no gradient; None where there are none."""
    if all(torch.is_floating_point(leaf) for leaf in tree.leaves(params)):
        return params, None
    return tree.partition(params, lambda path, leaf: torch.is_floating_point(leaf))


def _check(batch: tuple[Any, ...], chunk_size: int | None) -> None:
    sizes = {f"batch.{path}": tuple(leaf.shape[:1]) for path, leaf in tree.named_leaves(batch)}
    if not sizes:
        raise ValueError(
            "no batch was given; examples are positional arguments with a first axis of examples"
        )
    if len(set(sizes.values())) > 1 or () in sizes.values():
        raise ValueError(f"all of batch need one first axis of examples, got the lengths {sizes}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(
            f"chunk_size must be at least 1, got {chunk_size}; leave it out for all at once"
        )
