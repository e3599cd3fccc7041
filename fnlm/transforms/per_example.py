"""Per-example gradients, their norms, and sums of clipped ones."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fnlm import _former, tree
from fnlm.layers._levels import is_traced, levels
from fnlm.transforms import _reductions as reductions
from fnlm.transforms._examples import (
    Loss,
    check_batch,
    differentiable,
    merged,
    over_examples,
    rows,
)
from fnlm.transforms.capture import run
from fnlm.transforms.gradient import grad
from fnlm.tree import Tree

__all__ = ["clipped_grad_sum", "per_example_grads", "per_example_norms"]


@_former.answering
def per_example_grads(loss: Loss, params: Tree, *batch: Any, chunk_size: int | None = None) -> Tree:
    """Return the gradient of the loss for each example, as `vmap(grad(loss))` does.

    They are made of the factors of one pass back over the batch (see `capture`). Under a transform,
    in a compiled function and where autograd tracks the loss it is `vmap(grad(loss))`, which can be
    differentiated further.

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
    check_batch(batch, chunk_size)
    floats, constants = differentiable(params)
    if rows(batch) == 0:
        return tree.map(lambda p: p.new_zeros(0, *p.shape), floats)
    of_floats = merged(loss, constants)
    active = levels(*tree.leaves(floats), *tree.leaves(batch))
    if active.order or active.transforms or is_traced():
        return _map_examples(grad(of_floats), floats, batch, chunk_size)
    result = tree.map(lambda p: p.new_empty(rows(batch), *p.shape), floats)  # [B, ...]
    for span in _spans(rows(batch), chunk_size):
        captured = run(of_floats, floats, _take(batch, span))
        if captured.losses.requires_grad:  # by a tensor that the loss encloses
            return _map_examples(grad(of_floats), floats, batch, chunk_size)
        reductions.write_gradients(captured.by_leaf(), tree.map(lambda x, s=span: x[s], result))
    return result


@_former.answering
def per_example_norms(
    loss: Loss, params: Tree, *batch: Any, chunk_size: int | None = None
) -> Tensor:
    """Return the Euclidean norm of the gradient of the loss for each example.

    No gradient of an example is computed where its norm can be had of its factors, as those of all
    fnlm's models can: see `capture`, and there what is asked of the loss.

    Args:
        loss, params, batch: as for `per_example_grads`.
        chunk_size: number of examples computed at a time, to bound the memory of activations; None
            for all.

    Returns:
        [B] norms, at least float32; NaN of an example whose gradient has one.

    Raises:
        ValueError: there is no batch, or its first axes differ.

    >>> params = {"w": torch.tensor([1.0, 2.0])}
    >>> per_example_norms(lambda p, x: (p["w"] * x).sum() ** 2, params, torch.eye(2))
    tensor([2., 4.])
    """
    check_batch(batch, chunk_size)
    floats, constants = differentiable(params)
    of_floats = merged(loss, constants)
    spans = _spans(rows(batch), chunk_size)
    found = [run(of_floats, floats, _take(batch, span)).norms() for span in spans]
    return found[0] if len(found) == 1 else torch.cat(found)


@_former.answering
def clipped_grad_sum(
    loss: Loss,
    params: Tree,
    *batch: Any,
    max_norm: float | Tensor,
    weights: Tensor | None = None,
    chunk_size: int | None = None,
) -> tuple[Tree, Tensor]:
    """Return the sum of the gradients of all examples, each clipped, and their norms.

    Each gradient is multiplied by min(1, max_norm / norm), where the norm is that of the whole
    tree. A batch without one example differs by at most max_norm, times its weight.

    Args:
        loss, params, batch: as for `per_example_grads`.
        max_norm: positive; infinity clips nothing.
        weights: [B], factors of the clipped gradients. An example of weight 0 is absent: it
            contributes exactly 0, whatever its gradient.
        chunk_size: number of examples computed at a time, to bound the memory of activations; None
            for all.

    Returns:
        The sum, a tree like `params` (its floating-point leaves), and the norms [B] before
        clipping. An example whose norm is NaN or infinite has no direction: it contributes 0, and
        its norm tells.

    Raises:
        ValueError: there is no batch, its first axes differ, weights of another shape, or max_norm
            is not positive.

    >>> params = {"w": torch.tensor([1.0, 2.0])}
    >>> clipped_grad_sum(lambda p, x: (p["w"] * x).sum() ** 2, params, torch.eye(2), max_norm=3.0)
    ({'w': tensor([2., 3.])}, tensor([2., 4.]))

    Source: Abadi et al. 2016, "Deep Learning with Differential Privacy" (arXiv:1607.00133).
    Deviation: nothing is added to the norm.
    """
    check_batch(batch, chunk_size)
    if not isinstance(max_norm, Tensor) and not max_norm > 0:
        raise ValueError(f"max_norm must be positive, got {max_norm}: math.inf clips nothing")
    if weights is not None and weights.shape != (rows(batch),):
        raise ValueError(
            f"weights must be [{rows(batch)}], one for each example, got {list(weights.shape)}"
        )
    floats, constants = differentiable(params)
    of_floats = merged(loss, constants)
    total: Tree = None
    found = []
    for span in _spans(rows(batch), chunk_size):
        captured = run(of_floats, floats, _take(batch, span))
        norms, by_leaf = captured.norms(), captured.by_leaf()
        del captured  # the factors of a leaf are freed as soon as its sum is known
        factors = _clip_factors(norms, max_norm, None if weights is None else weights[span])
        clipped = reductions.weighted_sum(by_leaf, floats, factors)
        total = clipped if total is None else tree.map(torch.add, total, clipped)
        found.append(norms)
    return total, found[0] if len(found) == 1 else torch.cat(found)


def _clip_factors(norms: Tensor, max_norm: float | Tensor, weights: Tensor | None) -> Tensor:
    """Return weight * min(1, max_norm / norm) of each example, 0 where the norm is not finite."""
    clipped = norms > max_norm
    factors = torch.where(clipped, max_norm / torch.where(clipped, norms, 1), 1)
    if weights is not None:
        factors = factors * weights
    return torch.where(norms.isfinite(), factors, 0)


def _spans(size: int, chunk_size: int | None) -> list[slice]:
    """Return the chunks of B examples; one of none if there are none."""
    step = max(1, size if chunk_size is None else chunk_size)
    return [slice(start, start + step) for start in range(0, max(1, size), step)]


def _take(batch: tuple[Any, ...], span: slice) -> tuple[Any, ...]:
    return tree.map(lambda x: x[span], batch)


def _map_examples(
    fn: Callable[..., Tree], params: Tree, batch: tuple[Any, ...], chunk_size: int | None
) -> Tree:
    """Map a function over examples, in chunks that are copied into one preallocated result."""
    mapped = over_examples(fn, batch)
    spans = _spans(rows(batch), chunk_size)
    if len(spans) == 1:
        return mapped(params, *batch)
    result: Tree = None
    for span in spans:
        chunk = mapped(params, *_take(batch, span))
        if result is None:  # shapes and types are known from the first chunk
            result = tree.map(lambda x: x.new_empty(rows(batch), *x.shape[1:]), chunk)  # [B, ...]
        tree.map(lambda out, x, span=span: out[span].copy_(x), result, chunk)
    return result
