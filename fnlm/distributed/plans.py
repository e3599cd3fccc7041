"""Plans: where the leaves of a tree lie, and the functions that bring them there and back.

A plan is a function from the path and the leaf to a tuple of `Placement`, from the outside in; an
empty one leaves the leaf as it is. Plans of others are joined by `where`.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnlm import tree
from fnlm.distributed import collectives
from fnlm.distributed.groups import Group, name_of, rank, size
from fnlm.distributed.placed import Placed, Replicated, Sharded, Split, cut, joined
from fnlm.leaves import Leaf
from fnlm.leaves._leaf import is_table
from fnlm.tree import Predicate, Tree

__all__ = [
    "Placement", "Plan", "axis_to_cut", "fully_sharded", "gather", "replicated", "scatter", "shard",
    "tensor_parallel", "where",
]  # fmt: skip


class Placement(NamedTuple):
    """How a leaf lies on the ranks of a group."""

    kind: str  # "replicate", "shard" or "split": see `Replicated`, `Sharded` and `Split`
    axis: int | None = None  # along which it is cut, negative; None for one that divides, if any
    group: str = ""  # name; "" for all ranks


Plan = Callable[[str, Any], tuple[Placement, ...]]


def replicated(group: Group = None) -> Plan:
    """Return the plan of data parallelism: every rank has all leaves, gradients are summed.

    >>> shard({"w": torch.ones(2)}, replicated())
    {'w': Replicated([2], torch.float32)}
    """
    placement = Placement("replicate", None, name_of(group))
    return lambda path, leaf: (placement,)


def fully_sharded(group: Group = None) -> Plan:
    """Return the plan of ZeRO-3 and FSDP: every leaf, and with it the optimizer's state, is cut.

    Scalars are replicated.

    >>> shard({"w": torch.ones(2)}, fully_sharded())
    {'w': Sharded([2], 1/1 of axis -1, torch.float32)}
    """
    name = name_of(group)

    def plan(path: str, leaf: Any) -> tuple[Placement, ...]:
        return (Placement("shard" if leaf.ndim else "replicate", None, name),)

    return plan


def tensor_parallel(group: Group = None, data: Plan | None = None) -> Plan:
    """Return the plan that splits matrices by their outputs, and tables of tokens by their rows.

    All ranks of the group are given the same examples. Positions and token types stay whole.

    Args:
        group: over which matrices and tables are split.
        data: a plan over ranks that are given different examples, for every rank's part.

    >>> plan = tensor_parallel()
    >>> plan("embed.token", torch.ones(3, 2))
    (Placement(kind='split', axis=-2, group=''),)
    >>> plan("norm.scale", torch.ones(2))
    ()
    """
    name = name_of(group)

    def plan(path: str, leaf: Any) -> tuple[Placement, ...]:
        inner = () if data is None else data(path, leaf)
        if leaf.ndim != 2 or path.endswith((".position", ".token_type")):
            return inner
        return (Placement("split", -2 if is_table(path) else -1, name), *inner)

    return plan


def where(predicate: Predicate, chosen: Plan, others: Plan) -> Plan:
    """Return the plan that is one of two by a predicate of path and leaf.

    >>> plan = where(lambda path, leaf: leaf.ndim > 1, fully_sharded(), replicated())
    >>> shard({"scale": torch.ones(2)}, plan)
    {'scale': Replicated([2], torch.float32)}
    """
    return lambda path, leaf: (chosen if predicate(path, leaf) else others)(path, leaf)


def shard(params: Tree, plan: Plan) -> Tree:
    """Return the tree with a leaf of this rank's part for every leaf that the plan places.

    Args:
        params: the whole tree, the same on every rank; leaves that are placed already stay.
        plan: `replicated`, `fully_sharded`, `tensor_parallel`, or a function of your own.

    Returns:
        A tree for the same functions. Parts are copies: the whole can be freed.

    Raises:
        ValueError: a kind of placement that is not known, an axis that is not negative or that the
            leaf has not, or a typed leaf whose parts are not tensors of one shape.

    >>> part = shard({"w": torch.arange(4.0), "step": torch.tensor(3)}, fully_sharded())
    >>> part["w"].part, gather(part)["w"]
    (tensor([0., 1., 2., 3.]), tensor([0., 1., 2., 3.]))
    """

    def place(path: str, leaf: Any) -> Any:
        return leaf if isinstance(leaf, Placed) else _placed(path, leaf, plan(path, leaf))

    return tree.map_with_path(place, params, whole=Placed)


def _placed(path: str, leaf: Tensor, placements: tuple[Placement, ...]) -> Any:
    """Return the leaf of this rank's part."""
    if not placements:
        return leaf
    (kind, axis, group), *inner = placements
    if kind == "replicate":
        return Replicated(_placed(path, leaf, tuple(inner)), group)
    if kind not in ("shard", "split"):
        raise ValueError(
            f"{path}: the kind of a placement is 'replicate', 'shard' or 'split', got {kind!r}"
        )
    axis = axis_to_cut(leaf.shape, size(group)) if axis is None and leaf.ndim else axis or 0
    if not -leaf.ndim <= axis < 0:
        raise ValueError(
            f"{path} has shape {list(leaf.shape)} and can't be cut along axis {axis}: count from "
            "the end, -1 is the last axis"
        )
    own = cut(leaf, axis, size(group))[rank(group)].clone()  # a view would keep the whole
    kind_of = Sharded if kind == "shard" else Split
    return kind_of(_placed(path, own, tuple(inner)), axis, leaf.shape[axis], group)


def axis_to_cut(shape: Sequence[int], ranks: int) -> int:
    """Return the first axis that divides by the ranks, else the longest one, from the end.

    >>> axis_to_cut([3, 4], 2), axis_to_cut([3, 5], 2)
    (-1, -1)
    """
    axes = range(-len(shape), 0)
    return next((i for i in axes if shape[i] % ranks == 0), max(axes, key=shape.__getitem__))


def gather(params: Tree) -> Tree:
    """Return the tree with a whole tensor for every leaf that `shard` has placed.

    It is differentiable: a gradient through it is a tree like `params`, summed over the ranks and
    scattered. Leaves of one plan are communicated together, once each, however often a model uses
    them. So a loss that begins with `gather` needs the fewest messages, and the memory of the
    whole; one that does not gathers each leaf where it is used.

    >>> gather(shard({"w": torch.ones(3)}, fully_sharded()))
    {'w': tensor([1., 1., 1.])}
    """
    params = use_copies(params)
    whole: dict[str, Tensor] = {}
    buckets: dict[Any, list[tuple[str, Any]]] = defaultdict(list)
    for path, leaf in tree.named_leaves(params, whole=Placed):
        if isinstance(leaf, Sharded) and isinstance(leaf.part, Tensor):
            buckets[leaf.group, leaf.dtype, leaf.device].append((path, leaf))
        elif isinstance(leaf, Placed):
            whole[path] = leaf.dense()
    for (group, *_), bucket in buckets.items():
        flat = torch.cat([leaf.part.flatten() for _, leaf in bucket])
        sizes = [leaf.part.numel() for _, leaf in bucket]
        rows = collectives.gather_own(flat, group).split(sizes, -1)
        for (path, leaf), x in zip(bucket, rows, strict=True):
            parts = x.unflatten(-1, leaf.part.shape)  # [N, ..., n, ...]
            whole[path] = joined(parts, leaf.axis, leaf.length)
    return tree.map_with_path(lambda path, leaf: whole.get(path, leaf), params, whole=Placed)


def use_copies(params: Tree) -> Tree:
    """Return the tree with a plain tensor for every leaf that each rank has whole.

    Gradients through it are summed in buckets, once for each leaf: a loss without it sums that of
    every use by itself. `data_parallel` begins with it.

    >>> use_copies(shard({"w": torch.ones(3)}, replicated()))
    {'w': tensor([1., 1., 1.])}
    """
    copies: dict[str, dict[str, Tensor]] = defaultdict(dict)  # group -> path -> tensor
    for path, leaf in tree.named_leaves(params, whole=Placed):
        if isinstance(leaf, Replicated) and isinstance(leaf.part, Tensor):
            copies[leaf.group][path] = leaf.part
    used = {p: x for g, xs in copies.items() for p, x in collectives.replicate(xs, g).items()}
    return tree.map_with_path(lambda path, leaf: used.get(path, leaf), params, whole=Placed)


def scatter(total: Tree, like: Tree) -> Tree:
    """Return the sum over ranks of whole trees, with the placements of another tree.

    It is the transpose of `gather`, and what turns gradients by `gather(params)` into ones by
    `params`: those of `fnlm.transforms.clipped_grad_sum`, for example.

    Args:
        total: of each rank's own, with whole tensors.
        like: a tree of the same leaves, placed by `shard`; no value is read.

    Raises:
        ValueError: the leaves or their shapes differ.

    >>> like = shard({"w": torch.ones(3)}, fully_sharded())
    >>> scatter({"w": torch.ones(3)}, like)
    {'w': Sharded([3], 1/1 of axis -1, torch.float32)}
    """
    given = dict(tree.named_leaves(total))
    wanted = dict(tree.named_leaves(like, whole=Placed))
    shapes = ({path: tuple(x.shape) for path, x in leaves.items()} for leaves in (given, wanted))
    first, second = shapes
    if first != second:
        path = next(p for p in first | second if first.get(p) != second.get(p))
        raise ValueError(
            f"total does not fit like at {path!r}: shape {first.get(path, 'absent')} against "
            f"{second.get(path, 'absent')}"
        )

    def place(path: str, leaf: Any) -> Any:
        x = given[path]
        return _scattered(x, leaf) if isinstance(leaf, Leaf) else x

    return tree.map_with_path(place, like, whole=Placed)


def _scattered(x: Tensor, like: Any) -> Any:
    """Return the sum of x over ranks, placed as a leaf."""
    if not isinstance(like, Placed):
        return x
    if isinstance(like, Replicated):
        return Replicated(_scattered(collectives.sum(x, like.group), like.part), like.group)
    assert isinstance(like, Sharded | Split)
    rows = cut(x, like.axis, size(like.group))  # [N, ..., n, ...]
    reduce = collectives.scatter_sum if isinstance(like, Sharded) else collectives.own_part
    part = _scattered(reduce(rows, like.group), like.part)
    return type(like)(part, like.axis, like.length, like.group)


def like(x: Tensor, leaf: Any) -> Any:
    """Return a whole tensor, the same on every rank, placed as another leaf.

    >>> like(torch.ones(2), shard({"w": torch.zeros(2)}, fully_sharded())["w"])
    Sharded([2], 1/1 of axis -1, torch.float32)
    """
    if not isinstance(leaf, Placed):
        return torch.empty_like(leaf).copy_(x)  # in the memory order of the leaf
    if isinstance(leaf, Replicated):
        return Replicated(like(x, leaf.part), leaf.group)
    assert isinstance(leaf, Sharded | Split)
    own = cut(x, leaf.axis, size(leaf.group))[rank(leaf.group)]
    return type(leaf)(like(own, leaf.part), leaf.axis, leaf.length, leaf.group)
