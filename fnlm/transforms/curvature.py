"""Curvature of losses as linear operators: Hessian, generalized Gauss-Newton, Fisher information.

A product costs a few gradients, in time and memory; no matrix is made. A tied leaf is one leaf, so
its rows and columns hold what all of its uses contribute. Frozen parameters are closed over, after
`fnlm.tree.partition`.

Letters: p parameters, f outputs of the model, J = df/dp, g gradients.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

from fnlm import tree
from fnlm.transforms._examples import check_batch, chunks, rows
from fnlm.transforms.gradient import grad
from fnlm.transforms.operator import Operator, inner, split_floats
from fnlm.transforms.softmax import SoftmaxCrossEntropy
from fnlm.tree import Tree

__all__ = ["empirical_fisher", "fisher", "ggn", "hessian"]

Loss = Callable[..., Tensor]
Count = Callable[..., Any]  # count(*chunk) -> a number


class OutputLoss(Protocol):
    """A loss of a model's outputs; it may have `curvature_product(outputs, tangents)`."""

    def __call__(self, outputs: Any, /) -> Tensor: ...


def hessian(
    loss: Loss,
    params: Tree,
    *batch: Any,
    chunk_size: int | None = None,
    count: Count | None = None,
    reverse: bool = False,
) -> Operator:
    """Return the Hessian of a loss by the parameters, as an operator.

    Args:
        loss: `loss(params, *batch) -> []`; with dropout, its keys are part of the batch.
        params: the parameters; leaves that are not floating point are constants.
        *batch: tensors, or trees of tensors.
        chunk_size: number of examples at a time, along the first axis of all of `batch`; None for
            all. The loss is then a mean, and is called on chunks.
        count: `count(*chunk)`, the number of things that the loss of a chunk is the mean of, such
            as its labels, so that chunks weigh as they do in the whole; None for examples.
        reverse: differentiate the gradient in reverse mode, for a loss with an operation that has
            no forward derivative. The default, `jvp` of `grad`, is faster and needs less memory.

    Returns:
        `op(tree) -> tree`, for trees like the floating-point leaves of `params`.

    Raises:
        ValueError: `chunk_size` is less than 1, or first axes of the batch differ.

    >>> params = {"w": torch.tensor([1.0, 2.0])}
    >>> op = hessian(lambda p, x: (p["w"] * x).sum() ** 2, params, torch.tensor([1.0, 3.0]))
    >>> op({"w": torch.tensor([1.0, 0.0])})
    {'w': tensor([2., 6.])}
    """
    floats, whole = split_floats(params)
    gradient = grad(lambda p, *rows: loss(whole(p), *rows))

    def product(direction: Tree, *rows: Any) -> Tree:
        if reverse:
            return vjp(lambda p: gradient(p, *rows), floats)[1](direction)[0]
        return jvp(lambda p: gradient(p, *rows), (floats,), (direction,))[1]

    return Operator(_over_chunks(product, batch, chunk_size, count), floats)


def ggn(
    model: Callable[..., Any],
    loss: OutputLoss,
    params: Tree,
    *batch: Any,
    chunk_size: int | None = None,
    count: Count | None = None,
) -> Operator:
    """Return the generalized Gauss-Newton matrix of `loss(model(params, *batch))` as an operator.

    It is the Hessian without the curvature of the model, positive semidefinite for a convex loss::

        J^T (d^2 loss / df^2) J

    Args:
        model: `model(params, *batch) -> outputs`, a tensor or a tree; labels are handed through it:
            `lambda params, ids, labels: (gpt2.apply(params, ids)[0], labels)`.
        loss: `loss(outputs) -> []`. `SoftmaxCrossEntropy` and `LinearSoftmaxCrossEntropy` know
            their curvature; any other loss is differentiated twice by the floating-point outputs.
        params, batch, chunk_size, count: as for `hessian`.

    Returns:
        `op(tree) -> tree`, for trees like the floating-point leaves of `params`.

    >>> params, x = {"w": torch.tensor([1.0, 2.0])}, torch.tensor([1.0, 3.0])
    >>> op = ggn(lambda p, x: (p["w"] * x).sum(), torch.square, params, x)
    >>> op({"w": torch.tensor([1.0, 0.0])})
    {'w': tensor([2., 6.])}

    Source: Schraudolph 2002; Martens 2020.
    """
    floats, whole = split_floats(params)

    def product(direction: Tree, *rows: Any) -> Tree:
        def smooth(p: Tree) -> tuple[tuple[Tensor, ...], Tree]:
            """Return the floating-point outputs, and all of them beside."""
            made = model(whole(p), *rows)
            return tuple(x for x in tree.leaves(made) if x.is_floating_point()), made

        moved: Any = jvp(smooth, (floats,), (direction,), has_aux=True)
        _, tangents, outputs = moved
        cotangents = _curvature_product(loss, outputs, tangents)
        del moved, outputs, tangents  # before the second pass, which makes logits again
        return grad(lambda p: inner(smooth(p)[0], cotangents))(floats)

    return Operator(_over_chunks(product, batch, chunk_size, count), floats)


def fisher(
    model: Callable[..., Any],
    params: Tree,
    *batch: Any,
    chunk_size: int | None = None,
    count: Count | None = None,
) -> Operator:
    """Return the Fisher information of a model's own predictive distribution, as an operator.

    The distribution is softmax(logits) at every position, and the mean is taken over positions::

        mean of E[g g^T], g = d log softmax(logits)[y] / dp, y drawn from softmax(logits)

    The expectation is exact, not sampled: it is the Gauss-Newton matrix of `SoftmaxCrossEntropy`.

    Args:
        model: `model(params, *batch) -> logits [..., V]`, or log-probabilities; or a pair of these
            and labels [...], which are -1 at positions that do not count and are not read else.
        params, batch, chunk_size, count: as for `hessian`.

    Returns:
        `op(tree) -> tree`, for trees like the floating-point leaves of `params`. For vocabularies
        in chunks, call `ggn` with `LinearSoftmaxCrossEntropy`.

    >>> op = fisher(lambda p: p["logits"], {"logits": torch.zeros(2)})
    >>> op({"logits": torch.tensor([1.0, 0.0])})
    {'logits': tensor([ 0.2500, -0.2500])}
    """
    loss = SoftmaxCrossEntropy()
    return ggn(model, loss, params, *batch, chunk_size=chunk_size, count=count)


def empirical_fisher(
    loss: Loss, params: Tree, *batch: Any, chunk_size: int | None = None
) -> Operator:
    """Return the mean of g g^T over the gradients g of single examples, as an operator.

    Args:
        loss: `loss(params, *example) -> []`, where an example has no batch axis.
        params: the parameters; leaves that are not floating point are constants.
        *batch: tensors, or trees of tensors, all with a first axis of examples (dropout keys too).
        chunk_size: number of examples at a time; None for all.

    Returns:
        `op(tree) -> tree`, for trees like the floating-point leaves of `params`. No gradient of a
        single example is made: a product is a `jvp` and a `vjp` of the losses.

    Raises:
        ValueError: there is no batch, it has no examples, or its first axes differ.

    >>> params = {"w": torch.tensor([1.0, 2.0])}
    >>> op = empirical_fisher(lambda p, x: (p["w"] * x).sum(), params, torch.eye(2))
    >>> op({"w": torch.tensor([1.0, 3.0])})
    {'w': tensor([0.5000, 1.5000])}
    """
    check_batch(batch)
    size = rows(batch)
    if not size:
        raise ValueError("the empirical Fisher information of no examples is not defined")
    floats, whole = split_floats(params)
    every = vmap(lambda p, *example: loss(whole(p), *example), (None, *(0 for _ in batch)))

    def product(direction: Tree, *part: Any) -> Tree:
        slopes = jvp(lambda p: every(p, *part), (floats,), (direction,))[1]  # [B]: g . direction
        slopes = slopes / max(len(slopes), 1)
        return grad(lambda p: torch.dot(every(p, *part), slopes))(floats)

    return Operator(_over_chunks(product, batch, chunk_size, None), floats)


def _over_chunks(
    product: Callable[..., Tree],
    batch: tuple[Any, ...],
    chunk_size: int | None,
    count: Count | None,
) -> Callable[[Tree], Tree]:
    """Return the product with the mean over chunks, each weighing what `count` says."""
    if chunk_size is None:
        return lambda direction: product(direction, *batch)
    pieces = list(chunks(batch, chunk_size))
    weights = [float(count(*piece) if count else rows(piece)) for piece in pieces]
    shares = [weight / (sum(weights) or 1.0) for weight in weights]

    def summed(direction: Tree) -> Tree:
        total: Tree = None
        for piece, share in zip(pieces, shares, strict=True):
            if share:
                part = tree.map(lambda x, share=share: share * x, product(direction, *piece))
                total = part if total is None else tree.map(torch.add, total, part)
        return tree.map(torch.zeros_like, direction) if total is None else total

    return summed


def _curvature_product(
    loss: OutputLoss, outputs: Tree, tangents: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Return the Hessian of a loss by the floating-point outputs, times their tangents."""
    if hasattr(loss, "curvature_product"):
        return loss.curvature_product(outputs, tangents)
    leaves, structure = tree.leaves(outputs), tree.structure(outputs)
    places = [i for i, leaf in enumerate(leaves) if leaf.is_floating_point()]

    def of_floats(floats: tuple[Tensor, ...]) -> Tensor:
        every = list(leaves)
        for i, leaf in zip(places, floats, strict=True):
            every[i] = leaf
        return loss(tree.unflatten(structure, every))

    primals = tuple(leaves[i] for i in places)
    return jvp(grad(of_floats), (primals,), (tangents,))[1]
