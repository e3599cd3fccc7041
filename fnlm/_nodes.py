"""The nodes of trees: telling torch about new kinds, and walking through all kinds by path.

`fnlm.tree` has the public names of this module.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch.utils import _pytree as pytree

Tree = Any
Params = dict[str, Any]  # the parameters of a model
Predicate = Callable[[str, Any], bool]
C = TypeVar("C", bound=type)

__all__ = [
    "Params", "Predicate", "Tree", "check_alike", "dotted", "is_typed", "keep", "plain",
    "register_constant", "register_leaf", "register_value", "table", "union",
]  # fmt: skip

_TYPED: set[type] = set()  # the classes of typed leaves
_SAME: Any = pytree.GetAttrKey("")  # the key of a child whose path is that of its leaf


def register_constant(cls: C) -> C:
    """Return a frozen dataclass, registered as a tree node without leaves; usable as a decorator.

    `torch.load` then reads what `torch.save` wrote of it, and so does `torch.export.load`, as long
    as its fields can be written as JSON.

    >>> @register_constant
    ... @dataclasses.dataclass(frozen=True)
    ... class Width:
    ...     size: int = 4
    >>> from fnlm.tree import leaves
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


def register_leaf(cls: C) -> C:
    """Return a class, registered as a typed leaf; usable as a decorator.

    It has `__init__` with one argument for each of its `__slots__`, and two methods::

        tree_flatten(self) -> (children, frame)           children: a dict by name, in order
        tree_unflatten(cls, children, frame) -> cls       children: their values alone

    where `frame` is the rest of it, which no transform sees: tuples, strings and numbers.
    A child of the name "" has the path of the leaf itself.
    `tree_unflatten` takes anything for a child, as the children of a half of a `partition` are
    `{}`. Pickles, `torch.load` and `torch.export` know the class, whose own `__reduce__` is kept.

    >>> @register_leaf
    ... class Scaled:
    ...     __slots__ = ("base", "factor")
    ...
    ...     def __init__(self, base, factor):
    ...         self.base, self.factor = base, factor
    ...
    ...     def tree_flatten(self):
    ...         return {"base": self.base}, self.factor
    ...
    ...     @classmethod
    ...     def tree_unflatten(cls, children, frame):
    ...         return cls(*children, frame)
    >>> from fnlm.tree import named_leaves
    >>> named_leaves({"weight": Scaled(1.0, 3)})
    [('weight.base', 1.0)]
    """

    def with_keys(node: Any) -> tuple[list[tuple[Any, Any]], Any]:
        children, frame = node.tree_flatten()
        keys = [pytree.MappingKey(name) if name else _SAME for name in children]
        return list(zip(keys, children.values(), strict=True)), frame

    def flatten(node: Any) -> tuple[list[Any], Any]:
        children, frame = node.tree_flatten()
        return list(children.values()), frame

    def unflatten(children: Iterable[Any], frame: Any) -> Any:
        return cls.tree_unflatten(list(children), frame)  # type: ignore[attr-defined]

    pytree.register_pytree_node(
        cls,
        flatten,
        unflatten,
        serialized_type_name=_name_in_files(cls),
        flatten_with_keys_fn=with_keys,
        to_dumpable_context=lambda frame: frame,
        from_dumpable_context=_tuples,
    )
    _TYPED.add(cls)
    if "__reduce__" not in vars(cls):
        cls.__reduce__ = _reduce_leaf  # type: ignore[assignment, method-assign]
    return cls


def _tuples(frame: Any) -> Any:
    """Return what JSON has made lists of as tuples again."""
    return tuple(_tuples(x) for x in frame) if isinstance(frame, list | tuple) else frame


def _name_in_files(cls: type) -> str:
    """Return the name of a class in files, after allowing it to `torch.load`."""
    torch.serialization.add_safe_globals([cls])
    return f"{cls.__module__}.{cls.__qualname__}"


def is_typed(node: Any) -> bool:
    """Return whether a node is a typed leaf."""
    return type(node) in _TYPED


def _reduce_leaf(leaf: Any) -> tuple[Any, ...]:
    return type(leaf), tuple(pytree.tree_map(_compact, getattr(leaf, x)) for x in leaf.__slots__)


def _reduce(value: Any) -> tuple[Any, ...]:
    return type(value), tuple(pytree.tree_map(_compact, part) for part in value)


def _compact(x: Any) -> Any:
    """Return a tensor itself, or a copy where it is a view of more memory than its own."""
    if not isinstance(x, torch.Tensor) or torch._C._functorch.is_functorch_wrapped_tensor(x):
        return x
    return x.clone() if x.untyped_storage().nbytes() > x.nbytes else x


def plain(x: torch.Tensor) -> torch.Tensor:
    """Return a tensor, unless it is in an order that torch only multiplies by."""
    if x.layout == torch._mkldnn:  # type: ignore[attr-defined]
        raise TypeError("packed weights have one type and place: give fnlm.leaves.merge(params)")
    return x


def dotted(path: Iterable[Any], seen: set[str] | None = None) -> str:
    """Return the keys of a path, joined by dots.

    Args:
        path: as torch gives it.
        seen: the paths of the tree so far, to which this one is added.

    Raises:
        ValueError: another leaf has the path, so that it says nothing.
    """
    names = (getattr(e, "key", getattr(e, "idx", getattr(e, "name", None)))
             for e in path if e is not _SAME)  # fmt: skip
    joined = ".".join(map(str, names))
    if seen is not None:
        if joined in seen:
            raise ValueError(
                f"two leaves have the path {joined!r}, as a dict has a key with a dot in it, or "
                "both 1 and '1': give one of them another name"
            )
        seen.add(joined)
    return joined


def _join(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)


def _is_named_tuple(node: object) -> bool:
    return isinstance(node, tuple) and hasattr(node, "_fields")


def _places(node: Any) -> Iterable[Any]:
    """Return the path names of the children of a tuple or list: fields, or numbers."""
    return node._fields if _is_named_tuple(node) else range(len(node))


def _rebuild(node: Any, children: list[Any]) -> Any:
    return type(node)(*children) if _is_named_tuple(node) else type(node)(children)


def keep(node: Tree, predicate: Predicate, path: str, constants: bool) -> Tree:
    """Return the leaves that satisfy `predicate`; `{}` stands for a subtree with none."""
    if isinstance(node, dict):
        children = {k: keep(v, predicate, _join(path, k), constants) for k, v in node.items()}
        return {k: v for k, v in children.items() if not _is_empty(v)}
    if isinstance(node, tuple | list):
        named = zip(_places(node), node, strict=True)
        return _rebuild(node, [keep(v, predicate, _join(path, i), constants) for i, v in named])
    if is_typed(node):
        parts, frame = node.tree_flatten()
        kept = [
            keep(v, predicate, _join(path, k) if k else path, constants) for k, v in parts.items()
        ]
        return {} if all(_is_empty(x) for x in kept) else type(node).tree_unflatten(kept, frame)
    if not pytree.tree_leaves(node):
        return node if constants else {}
    return node if predicate(path, node) else {}


def check_alike(tree: Tree, others: Iterable[Tree]) -> None:
    """Raise ValueError, naming a path, unless other trees have the structure of a tree."""
    structure = pytree.tree_structure(tree)
    for number, other in enumerate(others, 2):
        try:
            structure.flatten_up_to(other)
        except ValueError as error:
            first, second = (
                {dotted(path) for path, _ in pytree.tree_flatten_with_path(x)[0]}
                for x in (tree, other)
            )
            where = "they have the same leaves in different containers, or different configs"
            if differing := sorted(first ^ second):
                where = f"only one of them has {differing[0]!r}"
            raise ValueError(
                f"tree 1 and tree {number} differ in structure: {where}; give trees that were made "
                "of the same parameters"
            ) from error


def _is_empty(node: Tree) -> bool:
    if isinstance(node, dict | tuple | list):
        children = node.values() if isinstance(node, dict) else node
        return all(_is_empty(child) for child in children)
    return False


def union(first: Tree, second: Tree, path: str) -> Tree:
    """Return the tree with the leaves of both, `{}` standing for what one of them lacks."""
    if _is_empty(first):
        return second
    if _is_empty(second):
        return first
    if isinstance(first, dict) and isinstance(second, dict):
        both = {k: union(v, second.get(k, {}), _join(path, k)) for k, v in first.items()}
        return both | {k: v for k, v in second.items() if k not in first}
    if (
        isinstance(first, tuple | list)
        and type(first) is type(second)
        and len(first) == len(second)
    ):
        named = zip(_places(first), first, second, strict=True)
        return _rebuild(first, [union(a, b, _join(path, i)) for i, a, b in named])
    if is_typed(first) and type(first) is type(second):
        (parts, frame), (others, frame_2) = first.tree_flatten(), second.tree_flatten()
        if frame == frame_2 and parts.keys() == others.keys():
            joined = [
                union(a, others[name], _join(path, name) if name else path)
                for name, a in parts.items()
            ]
            return type(first).tree_unflatten(joined, frame)
        raise ValueError(
            f"merge() found halves of different leaves at {path!r}, {list(parts)} with {frame} and "
            f"{list(others)} with {frame_2}: merge halves of one partition"
        )
    raise ValueError(
        f"merge() found a leaf in both trees at {path!r}; merge halves of one partition"
    )


def table(leaves: Iterable[tuple[str, Any]]) -> str:
    """Return the lines of `fnlm.tree.describe`, of tensors with their paths."""
    counts: dict[tuple[str, str, str], list[int]] = {}  # path, shape, type -> elements of each leaf
    for path, leaf in leaves:
        pattern = ".".join("*" if part.isdigit() else part for part in path.split("."))
        row = pattern, str(list(leaf.shape)), str(leaf.dtype).removeprefix("torch.")
        counts.setdefault(row, []).append(leaf.numel())
    cells = [
        (path, f"x{len(sizes)}" if len(sizes) > 1 else "", shape, dtype, f"{sum(sizes):,}")
        for (path, shape, dtype), sizes in counts.items()
    ]
    cells.append(("in all", "", "", "", f"{sum(map(sum, counts.values())):,}"))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join([*map(str.ljust, row[:-1], widths), row[-1].rjust(widths[-1])]) for row in cells
    )
