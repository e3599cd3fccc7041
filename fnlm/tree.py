"""Trees: nested dicts, tuples, lists and NamedTuples with tensors at the leaves.

Parameters, gradients, optimizer states and caches are all trees, and one vocabulary serves them
all. A frozen dataclass that was registered with `register_constant` (a model's config) has no
leaves: every function here carries it along unchanged. A typed leaf, such as those of
`fnlm.leaves`, stands where a tensor stands and is itself a small tree: paths go on into it, as in
`blocks.0.attention.qkv.weight.a`. This module and `_nodes` alone know whose tree library it is.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fnlm._nodes import (
    Params,
    Predicate,
    Tree,
    check_alike,
    dotted,
    is_typed,
    keep,
    plain,
    register_constant,
    register_leaf,
    register_value,
    table,
    union,
)

__all__ = [
    "Params", "Predicate", "Tree", "cast", "combine", "count", "describe", "dot", "init_many",
    "leaves", "map", "map_with_path", "merge", "named_leaves", "norm", "norms",
    "over_processes", "partition", "register_constant", "register_leaf", "register_value", "select",
    "spanning_leaves", "stack", "structure", "to", "typed_leaves", "unflatten", "unstack",
]  # fmt: skip


def structure(tree: Tree) -> Any:
    """Return the structure of a tree without its leaves, comparable by `==`.

    >>> structure({"a": 1}) == structure({"a": 2}), structure({"a": 1}) == structure({"b": 1})
    (True, False)
    """
    return pytree.tree_structure(tree)


def unflatten(like: Any, leaves: Sequence[Any]) -> Tree:
    """Return a tree of this structure with these leaves (in the order of `leaves`).

    >>> unflatten(structure({"a": 0, "b": (0,)}), [1, 2])
    {'a': 1, 'b': (2,)}
    """
    return pytree.tree_unflatten(leaves, like)


def leaves(tree: Tree) -> list[Any]:
    """Return the leaves, depth first, dict entries in their own order.

    >>> leaves({"b": 1, "a": (2, 3)})
    [1, 2, 3]
    """
    return pytree.tree_leaves(tree)


def named_leaves(tree: Tree, *, whole: type | None = None) -> list[tuple[str, Any]]:
    """Return the leaves with their dotted paths, the names used in errors, predicates and files.

    Args:
        tree: any tree.
        whole: a class of typed leaves, or their base class, that count as one leaf each.

    Raises:
        ValueError: two leaves have one path.

    >>> named_leaves({"blocks": ({"weight": 1}, {"weight": 2})})
    [('blocks.0.weight', 1), ('blocks.1.weight', 2)]
    """
    seen: set[str] = set()
    pairs, _ = pytree.tree_flatten_with_path(tree, is_leaf=_is_a(whole))
    return [(dotted(path, seen), leaf) for path, leaf in pairs]


def typed_leaves(tree: Tree) -> list[tuple[str, Any]]:
    """Return the typed leaves with their paths; one that stands in another is not listed.

    >>> from fnlm.leaves import quantize
    >>> blocks = ({"weight": torch.ones(2, 4), "bias": torch.ones(4)},)
    >>> typed_leaves(quantize({"blocks": blocks}, bits=8))
    [('blocks.0.weight', Int8([2, 4], torch.float32))]
    """
    pairs, _ = pytree.tree_flatten_with_path(tree, is_leaf=is_typed)
    return [(dotted(path), leaf) for path, leaf in pairs if is_typed(leaf)]


def spanning_leaves(tree: Tree) -> list[tuple[str, Any]]:
    """Return the typed leaves that several processes have together, with their paths.

    They are those of `fnlm.distributed` in a group of more than one rank, also within other leaves.

    >>> spanning_leaves({"w": torch.ones(2)})
    []
    """
    pairs, _ = pytree.tree_flatten_with_path(tree, is_leaf=_spans)
    return [(dotted(path), leaf) for path, leaf in pairs if _spans(leaf)]


def map(fn: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """Return the tree of `fn(leaf, ...)`, with the leaves of `rest` at the same place.

    >>> map(lambda x, y: x + y, {"a": 1}, {"a": 10})
    {'a': 11}
    """
    try:
        return pytree.tree_map(fn, tree, *rest)
    except ValueError:
        check_alike(tree, rest)  # raises the error that names the path, if that is the matter
        raise


def map_with_path(
    fn: Callable[..., Any], tree: Tree, *rest: Tree, whole: type | None = None
) -> Tree:
    """Return the tree of `fn(path, leaf, ...)`, `path` being the dotted name.

    Args:
        fn: of the path and the leaves at it.
        tree: gives the structure.
        rest: more trees of that structure.
        whole: a class of typed leaves, or their base class, that count as one leaf each.

    Raises:
        ValueError: two leaves have one path.

    >>> map_with_path(lambda path, x: f"{path}={x}", {"a": {"b": 1}})
    {'a': {'b': 'a.b=1'}}
    """
    seen: set[str] = set()
    return pytree.tree_map_with_path(
        lambda path, *xs: fn(dotted(path, seen), *xs), tree, *rest, is_leaf=_is_a(whole)
    )


def partition(tree: Tree, predicate: Predicate) -> tuple[Tree, Tree]:
    """Return two trees: the leaves for which `predicate(path, leaf)` holds, and the others.

    Dict entries without any chosen leaf are left out; a tuple keeps its length, and a typed leaf
    its parts, so the two halves `merge` again. A constant node (a config) goes with the second.

    >>> chosen, rest = partition({"a": 1, "b": (2, 3)}, lambda path, leaf: path == "b.1")
    >>> chosen, rest
    ({'b': ({}, 3)}, {'a': 1, 'b': (2, {})})
    >>> merge(chosen, rest)
    {'b': (2, 3), 'a': 1}
    """
    if not callable(predicate):
        raise TypeError(
            f"predicate must be a function of path and leaf, got {predicate!r:.60}: such as "
            "lambda path, leaf: path.startswith('blocks')"
        )
    return keep(tree, predicate, "", False), keep(
        tree, lambda path, leaf: not predicate(path, leaf), "", True
    )


def select(tree: Tree, predicate: Predicate) -> Tree:
    """Return the first half of `partition`.

    >>> select({"weight": 1, "bias": 2}, lambda path, leaf: path.endswith("bias"))
    {'bias': 2}
    """
    return partition(tree, predicate)[0]


def merge(first: Tree, second: Tree) -> Tree:
    """Return the union of two halves of a `partition`: its inverse, up to the order of dicts.

    Raises:
        ValueError: both trees have a leaf at the same place, or halves of different leaves.

    >>> merge({"a": 1}, {"b": 2})
    {'a': 1, 'b': 2}
    """
    return union(first, second, "")


def count(tree: Tree) -> int:
    """Return the number of elements in a tree; a tied leaf is one leaf, and counts once.

    >>> count({"weight": torch.zeros(3, 4), "bias": torch.zeros(4)})
    16
    """
    return sum(leaf.numel() for leaf in leaves(tree))


def norm(tree: Tree) -> Tensor:
    """Return the Euclidean norm of all leaves together, a 0-d tensor of at least float32.

    Leaves of which each process has a part (`fnlm.distributed`) count whole.

    >>> norm({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])})
    tensor(5.)
    """
    found = norms(tree)
    if not found:
        raise ValueError("norm() needs a tree with at least one leaf, got one with none")
    return torch.linalg.vector_norm(torch.stack(found))


def norms(tree: Tree) -> list[Tensor]:
    """Return the Euclidean norm of each leaf, 0-d tensors of at least float32.

    They are in the order of `leaves`; those of which each process has a part count whole.

    >>> norms({"a": torch.tensor([3.0, 4.0]), "b": torch.ones(1)})
    [tensor(5.), tensor(1.)]
    """
    local = [torch.linalg.vector_norm(_wide(x)) for x in leaves(tree)]
    if not spanning_leaves(tree):
        return local
    return [_root(x) for x in over_processes(tree, [x.square() for x in local])]


def dot(first: Tree, second: Tree) -> Tensor:
    """Return the inner product of two trees of one structure, a 0-d tensor of at least float32.

    Leaves of which each process has a part count whole.

    >>> dot({"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([3.0, 4.0])})
    tensor(11.)
    """
    products = leaves(map(lambda x, y: (_wide(x) * _wide(y)).sum(), first, second))
    if not products:
        raise ValueError("dot() needs trees with at least one leaf, got two with none")
    return torch.stack(over_processes(first, products)).sum()


def over_processes(tree: Tree, numbers: Sequence[Tensor]) -> list[Tensor]:
    """Return a number for each leaf, summed over the processes that have parts of the leaf.

    Args:
        tree: its typed leaves may have an attribute `across`, a function from numbers of this
            process [K] to their sums: one call serves all leaves with an equal one.
        numbers: [] of this process for each leaf, in the order of `leaves`.

    >>> over_processes({"w": torch.ones(2)}, [torch.tensor(2.0)])
    [tensor(2.)]
    """
    nodes, _ = pytree.tree_flatten(tree, is_leaf=lambda node: bool(_sum_of(node)))
    places: dict[Any, list[int]] = {}
    position = 0
    for node in nodes:
        count = len(leaves(node))
        if across := _sum_of(node):
            places.setdefault(across, []).extend(range(position, position + count))
        position += count
    found = list(numbers)
    for across, chosen in places.items():
        dtype = found[chosen[0]].dtype
        sums = across(torch.stack([found[i].to(dtype) for i in chosen]))
        for i, x in zip(chosen, sums.unbind(), strict=True):
            found[i] = x.to(found[i].dtype)
    return found


def combine(trees: Iterable[Tree], weights: Iterable[float | Tensor]) -> Tree:
    """Return the weighted sum of trees of one structure, leaf by leaf.

    An interpolation is `combine([a, b], [1 - t, t])`, task arithmetic
    `combine([base, first, second], [1 - s - t, s, t])`; weights that are tensors can be learned.

    Raises:
        ValueError: not as many weights as trees, or none; a leaf that is not floating point.

    >>> combine([{"w": torch.ones(2)}, {"w": torch.zeros(2)}], [0.25, 0.75])
    {'w': tensor([0.2500, 0.2500])}
    """
    trees, factors = list(trees), list(weights)
    if not trees or len(trees) != len(factors):
        raise ValueError(f"combine() got {len(trees)} trees and {len(factors)} weights")

    def sum_up(path: str, *xs: Tensor) -> Tensor:
        if not all(x.is_floating_point() for x in xs):
            raise ValueError(
                f"{path} has type {xs[0].dtype}, of which there are no weighted sums: part the "
                "tree with partition() and combine its floating-point half"
            )
        products = [x * factor for x, factor in zip(xs, factors, strict=True)]
        return sum(products[1:], products[0])

    return map_with_path(sum_up, *trees)


def cast(tree: Tree, dtype: torch.dtype) -> Tree:
    """Return the tree with floating-point leaves in `dtype`; integers and booleans stay.

    >>> cast({"w": torch.zeros(2), "step": torch.tensor(3)}, torch.float64)["w"].dtype
    torch.float64
    """
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype, got {dtype!r:.60}: such as torch.float16")
    return map(lambda x: plain(x).to(dtype) if x.is_floating_point() else x, tree)


def to(tree: Tree, device: torch.device | str) -> Tree:
    """Return the tree on a device (`"meta"`: shapes and dtypes without memory).

    >>> to({"w": torch.zeros(2)}, "meta")["w"].device.type
    'meta'
    """
    try:
        return map(lambda x: plain(x).to(device), tree)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        try:
            torch.empty(0, device=device)
        except (AssertionError, NotImplementedError, RuntimeError) as reason:
            first = str(reason).strip().splitlines()[0]
            raise ValueError(
                f"device={str(device)!r} is none here ({first}): use 'cpu', or 'cuda' where there "
                "is a GPU"
            ) from error
        raise


def stack(trees: Iterable[Tree]) -> Tree:
    """Return trees of one structure stacked along a new first axis: an ensemble for vmap.

    >>> stack([{"w": torch.zeros(2)}, {"w": torch.ones(2)}])["w"].shape
    torch.Size([2, 2])
    """
    trees = list(trees)
    if not trees:
        raise ValueError("stack() needs at least one tree")
    return map(lambda *xs: torch.stack([plain(x) for x in xs]), *trees)


def init_many(init: Callable[..., Tree], config: Any, keys: Tensor, **kwargs: Any) -> Tree:
    """Return an ensemble: `init(config, key)` for each key, stacked along a new first axis.

    Args:
        init: of a family.
        config: of it.
        keys: int64 [N], from `fnlm.random.split`.
        kwargs: passed on to `init`.

    >>> from fnlm import random
    >>> keys = random.split(random.key(0), 3)
    >>> init_many(lambda config, key: {"w": random.normal(key, (2,))}, None, keys)["w"].shape
    torch.Size([3, 2])
    """
    return stack(init(config, key, **kwargs) for key in keys.unbind())


def unstack(tree: Tree) -> list[Tree]:
    """Return one tree for each index of the leaves' first axis: the inverse of `stack`.

    >>> [t["w"].item() for t in unstack({"w": torch.tensor([1, 2])})]
    [1, 2]
    """
    sizes = {leaf.shape[0] for leaf in leaves(tree)}
    if len(sizes) != 1:
        raise ValueError(f"unstack() needs one size of first axis, got {sorted(sizes)}")
    return [map(lambda x, i=i: x[i], tree) for i in range(sizes.pop())]


def describe(tree: Tree) -> str:
    """Return a table of the leaves: path, shape, type and number of elements.

    Paths that differ in numbers alone share a line, with their count, if shape and type agree.

    >>> print(describe({"blocks": ({"w": torch.zeros(2, 3)},) * 4, "b": torch.zeros(3)}))
    blocks.*.w  x4  [2, 3]  float32  24
    b               [3]     float32   3
    in all                           27
    """
    return table(named_leaves(tree))


def _is_a(kind: type | None) -> Callable[[Any], bool] | None:
    """Return the test of what counts as one leaf, None where only tensors do."""
    return None if kind is None else lambda node: isinstance(node, kind)


def _root(x: Tensor) -> Tensor:
    """Return the square root, whose derivative at 0 is taken as 0."""
    return torch.where(x == 0, 0, torch.where(x == 0, 1, x).sqrt())


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _spans(node: Any) -> bool:
    return is_typed(node) and bool(getattr(type(node), "spans", False)) and node.spans


def _sum_of(node: Any) -> Any:
    return node.across if is_typed(node) and hasattr(type(node), "across") else None
