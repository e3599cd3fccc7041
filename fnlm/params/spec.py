"""Abstract parameter trees: shape, dtype and initializer of every leaf.

A family's `spec(config)` is a tree with a `Spec` at every leaf. Initialising, counting, checking a
checkpoint and making a tree without memory are maps over it.
"""

import math
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

import torch
from torch import Tensor

from fnlm import random, tree
from fnlm.tree import Tree

__all__ = [
    "Spec", "check", "heads_among", "initialize", "linear_spec", "listed", "meta", "norm_spec",
    "size",
]  # fmt: skip


@dataclass(frozen=True)
class Spec:
    """One abstract leaf: shape, initializer and dtype.

    `std` is the standard deviation of "normal"; for "uniform", draws are from -std to std.
    """

    shape: tuple[int, ...]
    start: Literal["zeros", "ones", "normal", "uniform"] = "zeros"
    std: float = 0.0
    dtype: torch.dtype = torch.float32


def linear_spec(inputs: int, outputs: int, std: float) -> dict[str, Spec]:
    """Return specs of x @ weight + bias: normal weight [inputs, outputs], zero bias [outputs]."""
    return {"weight": Spec((inputs, outputs), "normal", std), "bias": Spec((outputs,))}


def norm_spec(width: int) -> dict[str, Spec]:
    """Return the specs of a layer norm [width]: scale of ones, bias of zeros."""
    return {"scale": Spec((width,), "ones"), "bias": Spec((width,))}


def initialize(spec: Tree, key: Tensor) -> Tree:
    """Initialize the leaves of an abstract tree.

    Args:
        spec: tree of `Spec`.
        key: the key of each leaf is folded from it and the leaf's path, so that adding a head
            changes no other leaf.

    >>> initialize({"weight": Spec((2, 3), "normal", 0.02)}, random.key(0))["weight"].shape
    torch.Size([2, 3])
    """

    def leaf(path: str, s: Spec) -> Tensor:
        leaf_key = random.fold_in(key, zlib.crc32(path.encode()))
        if s.start == "normal":
            return (random.normal(leaf_key, s.shape) * s.std).to(s.dtype)
        if s.start == "uniform":
            return ((random.uniform(leaf_key, s.shape) * 2 - 1) * s.std).to(s.dtype)
        return torch.full(s.shape, float(s.start == "ones"), dtype=s.dtype, device=key.device)

    return tree.map_with_path(leaf, spec)


def heads_among(heads: str | Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Return the requested heads in the order of the family.

    Args:
        heads: names; one name is the only head.
        known: all heads of the family.

    Raises:
        ValueError: a head is not among them.

    >>> heads_among("choice", ["spans", "choice"]), heads_among((), ["spans"])
    (('choice',), ())
    """
    requested = (heads,) if isinstance(heads, str) else tuple(heads)
    if unknown := sorted({*map(str, requested)} - {*known}):
        raise ValueError(f"heads={requested}: {unknown} not among {tuple(known)}")
    return tuple(head for head in known if head in requested)


def meta(spec: Tree) -> Tree:
    """Return the tree on the meta device: shapes and dtypes, no memory.

    >>> meta({"weight": Spec((2, 3))})["weight"].device.type
    'meta'
    """
    return tree.map(lambda s: torch.empty(s.shape, dtype=s.dtype, device="meta"), spec)


def size(spec: Tree) -> int:
    """Return the number of parameters of an abstract tree.

    >>> size(linear_spec(3, 4, std=0.02))
    16
    """
    return sum(math.prod(s.shape) for s in tree.leaves(spec))


def check(
    spec: Tree, params: Tree, source: str = "params", names: Mapping[str, str] | None = None
) -> None:
    """Check a tree of tensors against its spec, leaf by leaf.

    Args:
        spec: tree of `Spec`.
        params: tree of tensors of any floating type, the same for all.
        source: what the error calls the tree.
        names: what a file calls our paths, to be named first.

    Raises:
        ValueError: lists missing, unexpected (with the nearest missing name) and mismatched leaves
            (both shapes or types).

    >>> check({"w": Spec((2,))}, {"w": torch.zeros(3)}, "file.bin")
    Traceback (most recent call last):
    ValueError: file.bin does not fit: w has shape [3], expected [2]
    """
    expected, actual = dict(tree.named_leaves(spec)), dict(tree.named_leaves(params))
    labels = {path: f"{name} ({path})" for path, name in (names or {}).items()}
    dtypes = Counter(x.dtype for x in actual.values() if x.is_floating_point())
    # One floating type for all leaves: the most frequent one is taken for the intended.
    usual = max(dtypes, key=dtypes.__getitem__, default=torch.float32)
    missing = [path for path in expected if path not in actual]
    problems = [f"missing {labels.get(p, p)} {list(expected[p].shape)}" for p in missing]
    for path, leaf in actual.items():
        label = labels.get(path, path)
        if path not in expected:
            near = get_close_matches(path, missing, 1)
            hint = f" (nearest missing: {near[0]})" if near else ""
            problems.append(f"unexpected {path} {list(leaf.shape)}{hint}")
        elif tuple(leaf.shape) != expected[path].shape:
            problems.append(
                f"{label} has shape {list(leaf.shape)}, expected {list(expected[path].shape)}"
            )
        elif leaf.dtype != usual:
            hint = " as the others have: fnlm convert --dtype casts" if len(dtypes) > 1 else ""
            problems.append(f"{label} has type {leaf.dtype}, expected {usual}{hint}")
    if problems:
        raise ValueError(f"{source} does not fit: {listed(problems)}")


def listed(problems: list[str]) -> str:
    """Join problems in one line, the first eight of a long list.

    >>> listed([f"no {i}" for i in range(99)])
    'no 0; no 1; no 2; no 3; no 4; no 5; no 6; no 7; and 91 more'
    """
    more = f"; and {len(problems) - 8} more" if len(problems) > 9 else ""
    return "; ".join(problems[: 8 if more else 9]) + more
