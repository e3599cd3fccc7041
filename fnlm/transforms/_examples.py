"""What the transforms of per-example losses share: the batch, and the leaves to differentiate."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from fnlm import tree
from fnlm.tree import Tree

__all__ = ["Loss", "check_batch", "chunks", "differentiable", "merged", "over_examples", "rows"]

Loss = Callable[..., Tensor]


def over_examples(fn: Callable[..., Any], batch: tuple[Any, ...]) -> Callable[..., Any]:
    """Map a function of parameters and an example over examples."""
    return vmap(fn, in_dims=(None, *(0 for _ in batch)))  # parameters are shared


def merged(loss: Loss, constants: Tree | None) -> Loss:
    """Return the loss as a function of the floating-point leaves alone."""

    def of_floats(floats: Tree, *example: Any) -> Tensor:
        return loss(floats if constants is None else tree.merge(floats, constants), *example)

    return of_floats


def rows(batch: tuple[Any, ...]) -> int:
    """Return B."""
    return int(tree.leaves(batch)[0].shape[0])


def differentiable(params: Tree) -> tuple[Tree, Tree | None]:
    """Split into floating-point leaves and constants (None if there are no constants).

    Raises:
        ValueError: a leaf lies on several processes, whose examples its gradient would mix.
    """
    if spanning := tree.spanning_leaves(params):
        path, leaf = spanning[0]
        raise ValueError(
            f"{path} is {leaf!r}, whose gradient is the sum over ranks of gradients by different "
            "examples: give the whole, fnlm.distributed.gather(params), and bring a sum of "
            "gradients back by fnlm.distributed.scatter(total, params)"
        )
    if all(torch.is_floating_point(leaf) for leaf in tree.leaves(params)):
        return params, None
    return tree.partition(params, lambda path, leaf: torch.is_floating_point(leaf))


def check_batch(batch: tuple[Any, ...], chunk_size: int | None = None) -> None:
    """Validate the examples: raise ValueError unless all have one first axis."""
    sizes = {f"batch.{path}": tuple(leaf.shape[:1]) for path, leaf in tree.named_leaves(batch)}
    if not sizes:
        raise ValueError(
            "no batch was given; examples are positional arguments with a first axis of examples"
        )
    if len(set(sizes.values())) > 1 or () in sizes.values():
        first: dict[tuple[int, ...], str] = {}  # the first leaf of each length
        for path, size in sizes.items():
            first.setdefault(size, path)
        lengths = ", ".join(f"{path} {list(size)}" for size, path in list(first.items())[:3])
        raise ValueError(
            f"all of batch need one first axis of examples, got the lengths {lengths}: params come "
            "first, then tensors with a row for each example"
        )
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(
            f"chunk_size must be at least 1, got {chunk_size}; leave it out for all at once"
        )


def chunks(batch: tuple[Any, ...], chunk_size: int) -> Iterator[tuple[Any, ...]]:
    """Yield parts of a batch of at most so many examples, as views."""
    check_batch(batch, chunk_size)
    for start in range(0, rows(batch), chunk_size):
        yield tree.map(lambda x, start=start: x[start : start + chunk_size], batch)
