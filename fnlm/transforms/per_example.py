"""Per-example gradients and their norms."""

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
    """Return the gradient of the loss for each example, vectorized by `vmap`.

    Args:
        loss: `loss(params, *example) -> []`, where an example has no batch axis.
        params: the parameters; leaves that are not floating point are constants.
        *batch: tensors, or trees of tensors, all with a first axis of length B (dropout keys too).
        chunk_size: number of examples computed at a time, to bound the memory of activations; None
            for all.

    Returns:
        The tree of `params` (its floating-point leaves), each leaf [B, *shape]; B may be 0, as in
        Poisson sampling, and the loss is then not called.

    Raises:
        ValueError: there is no batch, or its first axes differ.

    >>> params = {"w": torch.tensor([1.0, 2.0])}
    >>> per_example_grads(lambda p, x: (p["w"] * x).sum() ** 2, params, torch.eye(2))
    {'w': tensor([[2., 0.], [0., 4.]])}
    """
    _check(batch, chunk_size)
    floats, constants = _differentiable(params)

    def of_floats(floats: Tree, *example: Any) -> Tensor:
        return loss(floats if constants is None else tree.merge(floats, constants), *example)

    if _rows(batch) == 0:
        return tree.map(lambda p: p.new_zeros(0, *p.shape), floats)
    return _map_examples(grad(of_floats), floats, batch, chunk_size)


def per_example_norms(
    loss: Loss, params: Tree, *batch: Any, chunk_size: int | None = None
) -> Tensor:
    """Return the Euclidean norm of the gradient of the loss for each example.

    Args:
        loss, params, batch: as for `per_example_grads`.
        chunk_size: number of examples computed at a time, and of gradients in memory at once; None
            for all.

    Returns:
        [B] norms.

    >>> params = {"w": torch.tensor([1.0, 2.0])}
    >>> per_example_norms(lambda p, x: (p["w"] * x).sum() ** 2, params, torch.eye(2))
    tensor([2., 4.])
    """
    _check(batch, chunk_size)
    floats, constants = _differentiable(params)

    def of_floats(floats: Tree, *example: Any) -> Tensor:
        return loss(floats if constants is None else tree.merge(floats, constants), *example)

    if _rows(batch) == 0:  # [0], in the type that the norms would have
        return tree.norm(tree.map(lambda p: p.new_zeros(()), floats)).new_zeros(0)
    return _map_examples(
        lambda p, *example: tree.norm(grad(of_floats)(p, *example)), floats, batch, chunk_size
    )


def _map_examples(
    fn: Callable[..., Tree], params: Tree, batch: tuple[Any, ...], chunk_size: int | None
) -> Tree:
    """Map a function over examples, in chunks that are copied into one preallocated result."""
    mapped = vmap(fn, in_dims=(None, *(0 for _ in batch)))  # params are shared
    size = _rows(batch)
    if chunk_size is None or chunk_size >= size:
        return mapped(params, *batch)
    result: Tree = None
    for start in range(0, size, chunk_size):
        rows = slice(start, start + chunk_size)
        chunk = mapped(params, *tree.map(lambda x, rows=rows: x[rows], batch))
        if start == 0:  # shapes and types are known from the first chunk
            result = tree.map(lambda x: x.new_empty(size, *x.shape[1:]), chunk)  # [B, ...]
        tree.map(lambda out, x, rows=rows: out[rows].copy_(x), result, chunk)
    return result


def _rows(batch: tuple[Any, ...]) -> int:
    return int(tree.leaves(batch)[0].shape[0])


def _differentiable(params: Tree) -> tuple[Tree, Tree | None]:
    """Split into floating-point leaves and constants (None if there are no constants)."""
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
