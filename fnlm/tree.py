"""Trees: nested dicts, tuples, lists and NamedTuples with tensors at the leaves.

Parameters, gradients, optimizer states and caches are all trees, and one vocabulary serves them
all. A frozen dataclass that was registered with `register_constant` (a model's config) has no
leaves: every function here carries it along unchanged. This module alone knows which tree library
does the work.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Tree = Any
Params = dict[str, Any]  # the parameters of a model
Predicate = Callable[[str, Any], bool]
C = TypeVar("C", bound=type)

__all__ = [
    "Params", "Tree", "cast", "count", "leaves", "map", "map_with_path", "merge", "named_leaves",
    "norm", "partition", "register_constant", "register_value", "select", "stack", "structure",
    "to", "unflatten", "unstack",
]  # fmt: skip


def register_constant(cls: C) -> C:
    """Return a frozen dataclass, registered as a tree node without leaves; usable as a decorator.

    `torch.load` then reads what `torch.save` wrote of it, and so does `torch.export.load`, as long
    as its fields can be written as JSON.

    >>> @register_constant
    ... @dataclasses.dataclass(frozen=True)
    ... class Width:
    ...     size: int = 4
    >>> leaves({"config": Width(), "weight": 1.0})
    [1.0]
    """
    pytree.register_constant(cls)
    name = _name_in_files(cls)
    pytree.SUPPORTED_SERIALIZED_TYPES[cls] = pytree._SerializeNodeDef(
        cls,
        name,
        lambda node: dataclasses.asdict(node.value),
        lambda fields: pytree.ConstantNode(cls(**fields)),
    )
    pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE[name] = cls
    return cls


def register_value(cls: C) -> C:
    """Return a NamedTuple, registered for saving in files; usable as a decorator.

    `torch.export.save` and a plain `torch.load` know its name, and pickles and copies hold its
    tensors alone, not the larger storages that they may be views of.

    >>> import io
    >>> from fnlm.layers.kv_cache import Segment
    >>> torch.save(Segment((torch.ones(2),), ()), file := io.BytesIO())
    >>> torch.load(io.BytesIO(file.getvalue()))
    Segment(keys=(tensor([1., 1.]),), values=())
    """
    pytree._register_namedtuple(cls, serialized_type_name=_name_in_files(cls))
    cls.__reduce__ = _reduce  # type: ignore[assignment, method-assign]
    return cls


def _name_in_files(cls: type) -> str:
    """Return the name of a class in files, after allowing it to `torch.load`."""
    torch.serialization.add_safe_globals([cls])
    return f"{cls.__module__}.{cls.__qualname__}"


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


def named_leaves(tree: Tree) -> list[tuple[str, Any]]:
    """Return the leaves with their dotted paths, the names used in errors, predicates and files.

    >>> named_leaves({"blocks": ({"weight": 1}, {"weight": 2})})
    [('blocks.0.weight', 1), ('blocks.1.weight', 2)]
    """
    pairs, _ = pytree.tree_flatten_with_path(tree)
    return [(_dotted(path), leaf) for path, leaf in pairs]


def map(fn: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """Return the tree of `fn(leaf, ...)`, with the leaves of `rest` at the same place.

    >>> map(lambda x, y: x + y, {"a": 1}, {"a": 10})
    {'a': 11}
    """
    return pytree.tree_map(fn, tree, *rest)


def map_with_path(fn: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """Return the tree of `fn(path, leaf, ...)`, `path` being the dotted name.

    >>> map_with_path(lambda path, x: f"{path}={x}", {"a": {"b": 1}})
    {'a': {'b': 'a.b=1'}}
    """
    return pytree.tree_map_with_path(lambda path, *xs: fn(_dotted(path), *xs), tree, *rest)


def partition(tree: Tree, predicate: Predicate) -> tuple[Tree, Tree]:
    """Return two trees: the leaves for which `predicate(path, leaf)` holds, and the others.

    Dict entries without any chosen leaf are left out; a tuple keeps its length, so the two halves
    `merge` again. A constant node (a config) goes with the second half.

    >>> chosen, rest = partition({"a": 1, "b": (2, 3)}, lambda path, leaf: path == "b.1")
    >>> chosen, rest
    ({'b': ({}, 3)}, {'a': 1, 'b': (2, {})})
    >>> merge(chosen, rest)
    {'b': (2, 3), 'a': 1}
    """
    return _keep(tree, predicate, "", False), _keep(
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
        ValueError: both trees have a leaf at the same place.

    >>> merge({"a": 1}, {"b": 2})
    {'a': 1, 'b': 2}
    """
    return _merge(first, second, "")


def count(tree: Tree) -> int:
    """Return the number of elements in a tree; a tied leaf is one leaf, and counts once.

    >>> count({"weight": torch.zeros(3, 4), "bias": torch.zeros(4)})
    16
    """
    return sum(leaf.numel() for leaf in leaves(tree))


def norm(tree: Tree) -> Tensor:
    """Return the Euclidean norm of all leaves together, a 0-d tensor of at least float32.

    >>> norm({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])})
    tensor(5.)
    """
    wide = (x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for x in leaves(tree))
    norms = [torch.linalg.vector_norm(x) for x in wide]
    if not norms:
        raise ValueError("norm() needs a tree with at least one leaf, got one with none")
    return torch.linalg.vector_norm(torch.stack(norms))


def cast(tree: Tree, dtype: torch.dtype) -> Tree:
    """Return the tree with floating-point leaves in `dtype`; integers and booleans stay.

    >>> cast({"w": torch.zeros(2), "step": torch.tensor(3)}, torch.float64)["w"].dtype
    torch.float64
    """
    return map(lambda x: x.to(dtype) if x.is_floating_point() else x, tree)


def to(tree: Tree, device: torch.device | str) -> Tree:
    """Return the tree on a device (`"meta"`: shapes and dtypes without memory).

    >>> to({"w": torch.zeros(2)}, "meta")["w"].device.type
    'meta'
    """
    return map(lambda x: x.to(device), tree)


def stack(trees: Iterable[Tree]) -> Tree:
    """Return trees of one structure stacked along a new first axis: an ensemble for vmap.

    >>> stack([{"w": torch.zeros(2)}, {"w": torch.ones(2)}])["w"].shape
    torch.Size([2, 2])
    """
    trees = list(trees)
    if not trees:
        raise ValueError("stack() needs at least one tree")
    return map(lambda *xs: torch.stack(xs), *trees)


def unstack(tree: Tree) -> list[Tree]:
    """Return one tree for each index of the leaves' first axis: the inverse of `stack`.

    >>> [t["w"].item() for t in unstack({"w": torch.tensor([1, 2])})]
    [1, 2]
    """
    sizes = {leaf.shape[0] for leaf in leaves(tree)}
    if len(sizes) != 1:
        raise ValueError(f"unstack() needs one size of first axis, got {sorted(sizes)}")
    return [map(lambda x, i=i: x[i], tree) for i in range(sizes.pop())]


def _reduce(value: Any) -> tuple[Any, ...]:
    return type(value), tuple(map(_compact, part) for part in value)


def _compact(x: Any) -> Any:
    """Return a tensor itself, or a copy where it is a view of more memory than its own."""
    if not isinstance(x, torch.Tensor) or torch._C._functorch.is_functorch_wrapped_tensor(x):
        return x
    return x.clone() if x.untyped_storage().nbytes() > x.nbytes else x


def _dotted(path: Iterable[Any]) -> str:
    names = (getattr(e, "key", getattr(e, "idx", getattr(e, "name", None))) for e in path)
    return ".".join(str(name) for name in names)


def _join(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)


def _is_named_tuple(node: object) -> bool:
    return isinstance(node, tuple) and hasattr(node, "_fields")


def _places(node: Any) -> Iterable[Any]:
    """Return the path names of the children of a tuple or list: fields, or numbers."""
    return node._fields if _is_named_tuple(node) else range(len(node))


def _rebuild(node: Any, children: list[Any]) -> Any:
    return type(node)(*children) if _is_named_tuple(node) else type(node)(children)


def _keep(node: Tree, predicate: Predicate, path: str, constants: bool) -> Tree:
    """Return the leaves that satisfy `predicate`; `{}` stands for a subtree with none."""
    if isinstance(node, dict):
        children = {k: _keep(v, predicate, _join(path, k), constants) for k, v in node.items()}
        return {k: v for k, v in children.items() if not _is_empty(v)}
    if isinstance(node, tuple | list):
        named = zip(_places(node), node, strict=True)
        return _rebuild(node, [_keep(v, predicate, _join(path, i), constants) for i, v in named])
    if not leaves(node):
        return node if constants else {}
    return node if predicate(path, node) else {}


def _is_empty(node: Tree) -> bool:
    if isinstance(node, dict | tuple | list):
        children = node.values() if isinstance(node, dict) else node
        return all(_is_empty(child) for child in children)
    return False


def _merge(first: Tree, second: Tree, path: str) -> Tree:
    if _is_empty(first):
        return second
    if _is_empty(second):
        return first
    if isinstance(first, dict) and isinstance(second, dict):
        both = {k: _merge(v, second.get(k, {}), _join(path, k)) for k, v in first.items()}
        return both | {k: v for k, v in second.items() if k not in first}
    if (
        isinstance(first, tuple | list)
        and type(first) is type(second)
        and len(first) == len(second)
    ):
        named = zip(_places(first), first, second, strict=True)
        return _rebuild(first, [_merge(a, b, _join(path, i)) for i, a, b in named])
    raise ValueError(
        f"merge() found a leaf in both trees at {path!r}; merge halves of one partition"
    )
