"""The base of typed leaves: what stands where a tensor stands, and what functions get of it.

A leaf answers the few functions that a model asks of a weight in a way of its own. Every other
function gets the tensor that it stands for, made anew, so its answer is never a wrong one.
"""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from fnlm import tree

__all__ = ["Leaf", "check_predicate", "dense", "is_table", "none_selected"]


def is_table(path: str) -> bool:
    """Return whether the leaf of this path is a table [N, D], whose rows are looked up.

    >>> is_table("embed.token"), is_table("blocks.0.mlp.up.weight")
    (True, False)
    """
    return path.startswith("embed.") or path.endswith(".table")


def check_predicate(where: Any) -> None:
    """Raise TypeError unless a predicate is a function.

    >>> check_predicate("attention")
    Traceback (most recent call last):
    TypeError: where must be a function of path and leaf, got 'attention': such as lambda ...
    """
    if not callable(where):
        raise TypeError(
            f"where must be a function of path and leaf, got {where!r:.60}: such as "
            "lambda path, leaf: 'attention' in path"
        )


def none_selected(params: Any) -> str:
    """Return the error of a predicate that selects nothing, with some of the paths."""
    paths = [path for path, _ in tree.named_leaves(params, whole=Leaf)]
    some = ", ".join([path for path in paths if path.endswith("weight")][:3] or paths[:3])
    return (
        f"where selects no leaf of params, whose paths are such as {some}: "
        "fnlm.tree.named_leaves lists all of them"
    )


def dense(x: Any) -> Any:
    """Return a tensor for a leaf, also within lists, tuples and dicts; other things as they are.

    >>> dense((torch.ones(()), 2))
    (tensor(1.), 2)
    """
    if isinstance(x, Leaf):
        return x.dense()
    if isinstance(x, dict):
        return {name: dense(value) for name, value in x.items()}
    return type(x)(map(dense, x)) if type(x) in (list, tuple) else x


def _by_dense(name: str) -> Callable[..., Any]:
    """Return the method of this name that works on the tensor that the leaf stands for."""

    def method(self: "Leaf", *args: Any) -> Any:
        return getattr(self.dense(), name)(*dense(args))

    method.__name__ = name
    return method


class Leaf:
    """The base class of typed leaves.

    A subclass is registered by `fnlm.tree.register_leaf`. It defines `dense`, `shape`, `dtype` and
    `device`; `linear`, `rows`, `mT`, `@` and `[...]` are there to be defined better than by
    `dense`. Nothing changes a leaf: what works in place is an error.
    """

    __slots__ = ()

    def dense(self) -> Tensor:
        """Return the tensor that the leaf stands for."""
        raise NotImplementedError

    @property
    def shape(self) -> torch.Size:
        """Its shape."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """Its type."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Its device."""
        raise NotImplementedError

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return `F.linear(x, self, bias)` for a leaf [outputs, inputs]."""
        return F.linear(x, self.dense(), bias)

    def rows(self, ids: Tensor) -> Tensor:
        """Return `F.embedding(ids, self)`: rows of a leaf [N, D]."""
        return F.embedding(ids, self.dense())

    @property
    def mT(self) -> "Tensor | Leaf":
        """The matrix transposed."""
        return self.dense().mT

    def __matmul__(self, other: Any) -> Any:
        return self.dense() @ dense(other)

    def __rmatmul__(self, other: Any) -> Any:
        return dense(other) @ self.dense()

    def __getitem__(self, index: Any) -> Any:
        return self.dense()[dense(index)]

    @property
    def ndim(self) -> int:
        """The number of its dimensions."""
        return len(self.shape)

    @property
    def is_meta(self) -> bool:
        """Whether it has shapes and types without numbers."""
        return self.device.type == "meta"

    def dim(self) -> int:
        """Return the number of dimensions."""
        return len(self.shape)

    def size(self, axis: int | None = None) -> Any:
        """Return the shape, or the length of one axis."""
        return self.shape if axis is None else self.shape[axis]

    def numel(self) -> int:
        """Return the number of elements of the tensor that the leaf stands for."""
        return self.shape.numel()

    def is_floating_point(self) -> bool:
        """Return whether its type is a floating one."""
        return self.dtype.is_floating_point

    def new_zeros(self, *size: Any, **kwargs: Any) -> Tensor:
        """Return zeros of a shape, of the type and on the device of the leaf."""
        return torch.empty((), dtype=self.dtype, device=self.device).new_zeros(*size, **kwargs)

    def __len__(self) -> int:
        return self.shape[0]

    def __bool__(self) -> bool:
        return bool(self.dense())

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.dense().__array__(*args, **kwargs)

    __hash__ = object.__hash__
    __iter__ = _by_dense("__iter__")
    __contains__ = _by_dense("__contains__")
    __neg__, __abs__ = _by_dense("__neg__"), _by_dense("__abs__")
    __add__, __radd__ = _by_dense("__add__"), _by_dense("__radd__")
    __sub__, __rsub__ = _by_dense("__sub__"), _by_dense("__rsub__")
    __mul__, __rmul__ = _by_dense("__mul__"), _by_dense("__rmul__")
    __truediv__, __rtruediv__ = _by_dense("__truediv__"), _by_dense("__rtruediv__")
    __floordiv__, __mod__ = _by_dense("__floordiv__"), _by_dense("__mod__")
    __pow__, __rpow__ = _by_dense("__pow__"), _by_dense("__rpow__")
    __lt__, __le__ = _by_dense("__lt__"), _by_dense("__le__")
    __gt__, __ge__ = _by_dense("__gt__"), _by_dense("__ge__")
    __eq__, __ne__ = _by_dense("__eq__"), _by_dense("__ne__")

    def __getattr__(self, name: str) -> Any:
        """Any other attribute is that of the tensor that the leaf stands for."""
        if name.startswith("_") or name in type(self).__slots__:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        if name.endswith("_"):
            _refuse(name)
        return getattr(self.dense(), name)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            return _linear(*args, **kwargs)
        if func is F.embedding:
            return _embedding(*args, **kwargs)
        if func in _PRODUCTS and not kwargs:
            return _product(func, *args)
        if not torch.compiler.is_compiling():
            _check_pure(func, args, kwargs)
        return func(*dense(args), **dense(kwargs))

    def __repr__(self) -> str:
        kind = type(self).__name__
        try:
            return f"{kind}({list(self.shape)}, {self._kind()}{self.dtype})"
        except (AttributeError, ValueError):  # a half of a partition, or no leaf of tensors
            children, _ = self.tree_flatten()
            return f"{kind}({', '.join(children)})"

    def _kind(self) -> str:
        """Return what tells this leaf from others of its class, for its repr, and a comma."""
        return ""

    def tree_flatten(self) -> tuple[dict[str, Any], Any]:
        """Return the children by name, and what else there is: see `fnlm.tree.register_leaf`."""
        raise NotImplementedError

    @classmethod
    def tree_unflatten(cls, children: list[Any], frame: Any) -> Self:
        """Return a leaf of what `tree_flatten` returned."""
        raise NotImplementedError


_PRODUCTS = {Tensor.__matmul__, Tensor.matmul, torch.matmul, Tensor.mm, torch.mm}


def _check_pure(func: Callable[..., Any], args: Any, kwargs: Any) -> None:
    """Raise TypeError for a function that would write into a leaf."""
    name = getattr(func, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__")
    writes = in_place and not (args and isinstance(args[0], Tensor))
    if writes or isinstance(kwargs.get("out"), Leaf) or kwargs.get("inplace"):
        _refuse(name)


def _refuse(name: str) -> None:
    raise TypeError(
        f"{name} would change a leaf in place, which stands for a tensor that is made anew for "
        "each call: change its parts (fnlm.tree.map), or fnlm.leaves.merge the parameters first"
    )


def _linear(input: Any, weight: Any, bias: Any = None) -> Any:
    if isinstance(weight, Leaf) and weight.ndim == 2:
        return weight.linear(dense(input), dense(bias))
    return F.linear(dense(input), dense(weight), dense(bias))


def _embedding(input: Any, weight: Any, padding_idx: int | None = None, **kwargs: Any) -> Any:
    plain = padding_idx is None and kwargs.get("max_norm") is None
    plain = plain and not kwargs.get("scale_grad_by_freq") and not kwargs.get("sparse")
    if plain and isinstance(weight, Leaf) and weight.ndim == 2:
        return weight.rows(dense(input))
    if kwargs.get("max_norm") is not None and isinstance(weight, Leaf):
        _refuse("embedding with max_norm")
    return F.embedding(dense(input), dense(weight), padding_idx, **kwargs)


def _product(func: Callable[..., Any], x: Any, y: Any) -> Any:
    if x.ndim == y.ndim == 2 or func not in (Tensor.mm, torch.mm):  # mm takes matrices alone
        return x.__matmul__(y) if isinstance(x, Leaf) else y.__rmatmul__(x)
    return func(dense(x), dense(y))
