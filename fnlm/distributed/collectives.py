"""Collectives that are pure functions, with their derivatives of every kind and order.

A value is either the same on every rank of a group (a loss, a parameter that each rank has whole)
or of each rank's own (its examples, its shard). Each collective turns one into the other, and two
of them are each other's transposes::

    sum             own -> same    the sum over ranks         transpose: replicate
    replicate       same -> own    nothing is communicated    transpose: sum
    gather_own      own -> own     [...] -> [N, ...]          transpose: scatter_sum
    scatter_sum     own -> own     [N, ...] -> [...]          transpose: gather_own
    gather_same     own -> same    [...] -> [N, ...]          transpose: own_part
    own_part        same -> own    [N, ...] -> [...]          transpose: gather_same

So the gradient of a loss that ends in `sum` is the gradient of that sum, counted once. All are
linear, and each is its own derivative in forward mode. In one process they communicate nothing.

Deviation: `torch.distributed`'s own functional collectives have rules for autograd alone; here
`vmap`, `jvp` and nested transforms hold as well.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C import _functorch
from torch.autograd import Function, forward_ad

from fnlm import tree
from fnlm.distributed._buckets import replicate_all, sum_all
from fnlm.distributed._messages import all_reduce_, note
from fnlm.distributed.groups import Group, name_of, process_group, rank, size
from fnlm.tree import Tree

__all__ = ["gather_own", "gather_same", "own_part", "replicate", "scatter_sum", "sum"]


def sum(x: Tree, group: Group = None) -> Any:
    """Return the sum of x over ranks, the same on each.

    Args:
        x: a tensor [...] of each rank's own, of one shape and type; or a tree of such tensors,
            which are sent in buckets of 25 MB, one collective each.
        group: the ranks: a process group, a mesh of one dimension, a name; all of them by default.

    Returns:
        what x is, bit-equal on all ranks.

    >>> sum(torch.tensor([1.0, 2.0]))  # in one process
    tensor([1., 2.])
    """
    return _of_tree(x, "sum", name_of(group))


def replicate(x: Tree, group: Group = None) -> Any:
    """Return x, which is the same on every rank, for what each rank computes of its own.

    The gradient is summed over ranks, that of a tree in buckets, as by `sum`. A loss that uses a
    parameter without it has the gradient of this rank's part alone.

    >>> replicate(torch.ones(1))
    tensor([1.])
    """
    return _of_tree(x, "replicate", name_of(group))


def _of_tree(x: Tree, kind: str, group: str) -> Any:
    """Return the result of a collective of one tensor, or of a tree of them in buckets."""
    if isinstance(x, Tensor):
        return _call(x, kind, group)
    many = sum_all if kind == "sum" else replicate_all
    return tree.unflatten(tree.structure(x), many(tree.leaves(x), group))


def gather_own(x: Tensor, group: Group = None) -> Tensor:
    """Return x of all ranks [N, ...], for what each rank computes of its own.

    The gradient of a rank's x is the sum over ranks of what they did with it.

    >>> gather_own(torch.ones(2)).shape
    torch.Size([1, 2])
    """
    return _call(x, "gather_own", name_of(group))


def scatter_sum(x: Tensor, group: Group = None) -> Tensor:
    """Return row r of the sum of x over ranks, r being this rank: [N, ...] -> [...].

    Raises:
        ValueError: the first axis of x is not as long as the group.

    >>> scatter_sum(torch.ones(1, 2))
    tensor([1., 1.])
    """
    return _call(_checked(x, group), "scatter_sum", name_of(group))


def gather_same(x: Tensor, group: Group = None) -> Tensor:
    """Return x of all ranks [N, ...], with which every rank then does the same.

    The gradient of a rank's x is its row of the gradient, which all ranks have.

    >>> gather_same(torch.ones(2)).shape
    torch.Size([1, 2])
    """
    return _call(x, "gather_same", name_of(group))


def own_part(x: Tensor, group: Group = None) -> Tensor:
    """Return row r of x, which is the same on every rank, r being this rank: [N, ...] -> [...].

    Raises:
        ValueError: the first axis of x is not as long as the group.

    >>> own_part(torch.ones(1, 2))
    tensor([1., 1.])
    """
    return _call(_checked(x, group), "own_part", name_of(group))


def _checked(x: Tensor, group: Group) -> Tensor:
    if x.ndim and x.shape[0] == size(group):
        return x
    raise ValueError(
        f"x must have one row for each of {size(group)} ranks, got the shape {list(x.shape)}"
    )


def _all_reduce(x: Tensor, group: str) -> Tensor:
    return all_reduce_(x.clone(memory_format=torch.contiguous_format), group)


def _function(name: str, former: str) -> Callable[..., Any]:
    """Return a function of torch.distributed by its name, or by the one before torch 2.13."""
    return getattr(dist, name, None) or getattr(dist, former)


def _all_gather(x: Tensor, group: str) -> Tensor:
    whole = x.new_empty(size(group), *x.shape)
    flat = whole.view(-1), x.contiguous().view(-1)  # gloo asks for one number of axes
    _function("all_gather_single", "all_gather_into_tensor")(*flat, group=process_group(group))
    note("all_gather", whole, group)
    return whole


def _reduce_scatter(x: Tensor, group: str) -> Tensor:
    part = x.new_empty(x.shape[1:])
    flat = part.view(-1), x.contiguous().view(-1)
    _function("reduce_scatter_single", "reduce_scatter_tensor")(*flat, group=process_group(group))
    note("reduce_scatter", x, group)
    return part


class _Rule(NamedTuple):
    """One collective."""

    run: Callable[[Tensor, str], Tensor]
    transpose: str
    alone: Callable[[Tensor], Tensor]  # in a group of one
    rows: int  # axes that are added in front


_RULES = {
    "sum": _Rule(_all_reduce, "replicate", lambda x: x, 0),
    "replicate": _Rule(lambda x, group: x.view_as(x), "sum", lambda x: x, 0),
    "gather_own": _Rule(_all_gather, "scatter_sum", lambda x: x[None], 1),
    "scatter_sum": _Rule(_reduce_scatter, "gather_own", lambda x: x[0], -1),
    "gather_same": _Rule(_all_gather, "own_part", lambda x: x[None], 1),
    "own_part": _Rule(
        lambda x, group: x[rank(group)].clone(), "gather_same", lambda x: x[0], -1
    ),
}  # fmt: skip


def _call(x: Tensor, kind: str, group: str) -> Tensor:
    """Return the result of a collective, with its derivatives."""
    if size(group) == 1:
        return _RULES[kind].alone(x)
    stack = _functorch.get_interpreter_stack() or ()
    forward = [level.key() == _functorch.TransformType.Jvp for level in stack]
    if stack and forward[-1] and forward.count(True) > 1:
        # jvp of jvp of a Function that has its own jvp is 0 in silence (docs/torch_func.md), so
        # the linear map is applied here to both parts of the inner level.
        primal, tangent = forward_ad.unpack_dual(x)
        if tangent is not None:
            return forward_ad.make_dual(_call(primal, kind, group), _call(tangent, kind, group))
    return _Collective.apply(x, kind, group)


class _Collective(Function):
    """A linear map between the ranks of a group."""

    @staticmethod
    def forward(x: Tensor, kind: str, group: str) -> Tensor:
        return _RULES[kind].run(x.detach(), group)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.kind, ctx.group = inputs[1:]
        if not output.is_floating_point():
            ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, None]:
        return _call(cotangent, _RULES[ctx.kind].transpose, ctx.group), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        return _call(tangent, ctx.kind, ctx.group)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, kind: str, group: str) -> tuple[Tensor, int]:
        rows, axis = _RULES[kind].rows, in_dims[0]
        if rows < 0 and axis == 0:
            x, axis = x.movedim(0, 1), 1
        return _call(x, kind, group), axis + rows
