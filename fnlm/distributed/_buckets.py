"""The sum of many tensors in few collectives: each costs a latency, however small the tensor.

Tensors of one dtype and device go into buckets in their order, flattened; one that fills a bucket
goes by itself. A bucket is summed when its last tensor is there: nothing overlaps the backward
pass, as a pure function has its gradients at its end.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import Function, forward_ad

from fnlm.distributed._messages import all_reduce_
from fnlm.distributed.groups import size

__all__ = ["BUCKET", "replicate_all", "sum_all"]

BUCKET = 25 * 2**20  # bytes
_TRANSPOSE = {"sum": "replicate", "replicate": "sum"}
Tensors = tuple[Tensor, ...]


def sum_all(xs: Sequence[Tensor], group: str = "") -> Tensors:
    """Return the sum over ranks of each tensor, as `sum` of each does.

    >>> sum_all([torch.ones(1), torch.ones(2)])
    (tensor([1.]), tensor([1., 1.]))
    """
    return _call(tuple(xs), "sum", group)


def replicate_all(xs: Sequence[Tensor], group: str = "") -> Tensors:
    """Return the tensors, whose gradients are summed over ranks: the transpose of `sum_all`.

    >>> replicate_all([torch.ones(1)])
    (tensor([1.]),)
    """
    return _call(tuple(xs), "replicate", group)


def _call(xs: Tensors, kind: str, group: str) -> Tensors:
    """Return the results of a map that is linear, with its derivatives: see `collectives._call`."""
    if size(group) == 1 or not xs:
        return xs
    stack = _functorch.get_interpreter_stack() or ()
    forward = [level.key() == _functorch.TransformType.Jvp for level in stack]
    if stack and forward[-1] and forward.count(True) > 1:
        duals = [forward_ad.unpack_dual(x) for x in xs]
        moving = [i for i, dual in enumerate(duals) if dual.tangent is not None]
        if moving:
            tangents: list[Any] = [duals[i].tangent for i in moving]
            moved = dict(zip(moving, _call(tuple(tangents), kind, group), strict=True))
            found = _call(tuple(dual.primal for dual in duals), kind, group)
            return tuple(
                forward_ad.make_dual(x, moved[i]) if i in moved else x for i, x in enumerate(found)
            )
    return _Many.apply(kind, group, *xs)


def _summed(xs: Tensors, group: str) -> Tensors:
    """Return the sums, each bucket in one collective."""
    found: dict[int, Tensor] = {}
    for bucket in _buckets(xs):
        flat = torch.cat([xs[i].reshape(-1) for i in bucket])  # a copy, even of one
        parts = all_reduce_(flat, group).split([xs[i].numel() for i in bucket])
        found |= {i: part.view(xs[i].shape) for i, part in zip(bucket, parts, strict=True)}
    return tuple(found[i] for i in range(len(xs)))


def _buckets(xs: Tensors) -> list[list[int]]:
    """Return the numbers of the tensors that are summed together."""
    filled: list[list[int]] = []
    open_ones: dict[Any, tuple[list[int], int]] = {}
    for i, x in enumerate(xs):
        kind = x.dtype, x.device
        bucket, nbytes = open_ones.get(kind, ([], BUCKET))
        if nbytes + x.nbytes > BUCKET:
            bucket, nbytes = [], 0
            filled.append(bucket)
        bucket.append(i)
        open_ones[kind] = bucket, nbytes + x.nbytes
    return filled


class _Many(Function):
    """`sum` or `replicate` of many tensors."""

    @staticmethod
    def forward(kind: str, group: str, *xs: Tensor) -> Tensors:
        if kind == "replicate":
            return tuple(x.view_as(x) for x in xs)
        return _summed(tuple(x.detach() for x in xs), group)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.kind, ctx.group = inputs[:2]
        ctx.mark_non_differentiable(*(x for x in output if not x.is_floating_point()))

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        # Those of integers are of no use, and are not sent.
        given = [i for i, x in enumerate(cotangents) if x is not None and x.is_floating_point()]
        found = _call(tuple(cotangents[i] for i in given), _TRANSPOSE[ctx.kind], ctx.group)
        whole = dict(zip(given, found, strict=True))
        return None, None, *(whole.get(i) for i in range(len(cotangents)))

    @staticmethod
    def jvp(ctx: Any, _kind: Any, _group: Any, *tangents: Tensor | None) -> tuple[Any, ...]:
        given = [i for i, x in enumerate(tangents) if x is not None]
        found = _call(tuple(tangents[i] for i in given), ctx.kind, ctx.group)  # type: ignore[misc]
        whole = dict(zip(given, found, strict=True))
        return tuple(whole.get(i) for i in range(len(tangents)))

    @staticmethod
    def vmap(info: Any, in_dims: Any, kind: str, group: str, *xs: Tensor) -> tuple[Tensors, Any]:
        return _call(xs, kind, group), tuple(in_dims[2:])
