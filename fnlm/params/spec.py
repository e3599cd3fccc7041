"""A tree described before it exists: shape, dtype and initialiser of every leaf, as data.

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

__all__ = ["Spec", "check", "heads_among", "init", "linear", "listed", "meta", "norm", "size"]


@dataclass(frozen=True)
class Spec:
    """Describe one leaf: its shape, how it starts, and its type.

    `std` is the standard deviation of "normal"; for "uniform", draws are from -std to std.
    """

    shape: tuple[int, ...]
    start: Literal["zeros", "ones", "normal", "uniform"] = "zeros"
    std: float = 0.0
    dtype: torch.dtype = torch.float32


def linear(inputs: int, outputs: int, std: float) -> dict[str, Spec]:
    """Describe y = x @ weight + bias: a normal weight [inputs, outputs], a zero bias [outputs]."""
    return {"weight": Spec((inputs, outputs), "normal", std), "bias": Spec((outputs,))}


def norm(width: int) -> dict[str, Spec]:
    """Describe a layer norm that starts as the plain normalisation."""
    return {"scale": Spec((width,), "ones"), "bias": Spec((width,))}


def init(spec: Tree, key: Tensor) -> Tree:
    """Make the tree that a spec describes.

    Args:
        spec: tree of `Spec`.
        key: the key of each leaf is folded from it and the leaf's path, so that adding a head
            changes no other leaf.

    >>> init({"weight": Spec((2, 3), "normal", 0.02)}, random.key(0))["weight"].shape
    torch.Size([2, 3])
    """

    def leaf(path: str, s: Spec) -> Tensor:
        own = random.fold_in(key, zlib.crc32(path.encode()))
        if s.start == "normal":
            return (random.normal(own, s.shape) * s.std).to(s.dtype)
        if s.start == "uniform":
            return ((random.uniform(own, s.shape) * 2 - 1) * s.std).to(s.dtype)
        return torch.full(s.shape, float(s.start == "ones"), dtype=s.dtype, device=key.device)

    return tree.map_with_path(leaf, spec)


def heads_among(heads: str | Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Return the heads that are asked for, in the order in which a family knows them.

    Args:
        heads: names; one name is the only head.
        known: those of the family.

    Raises:
        ValueError: a head is not known.

    >>> heads_among("choice", ["spans", "choice"]), heads_among((), ["spans"])
    (('choice',), ())
    """
    wanted = (heads,) if isinstance(heads, str) else tuple(heads)
    if unknown := sorted({*map(str, wanted)} - {*known}):
        raise ValueError(f"heads={wanted}: {unknown} not among {tuple(known)}")
    return tuple(head for head in known if head in wanted)


def meta(spec: Tree) -> Tree:
    """Make the tree on the meta device: shapes and types, no memory.

    >>> meta({"weight": Spec((2, 3))})["weight"].device.type
    'meta'
    """
    return tree.map(lambda s: torch.empty(s.shape, dtype=s.dtype, device="meta"), spec)


def size(spec: Tree) -> int:
    """Count the numbers that the tree would hold.

    >>> size(linear(3, 4, std=0.02))
    16
    """
    return sum(math.prod(s.shape) for s in tree.leaves(spec))


def check(
    spec: Tree, params: Tree, source: str = "params", names: Mapping[str, str] | None = None
) -> None:
    """Compare a tree with its description, leaf by leaf.

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
    wanted, found = dict(tree.named_leaves(spec)), dict(tree.named_leaves(params))
    labels = {path: f"{name} ({path})" for path, name in (names or {}).items()}
    types = Counter(x.dtype for x in found.values() if x.is_floating_point())
    usual = max(types, key=types.__getitem__, default=torch.float32)
    missing = [name for name in wanted if name not in found]
    problems = [f"missing {labels.get(n, n)} {list(wanted[n].shape)}" for n in missing]
    for name, leaf in found.items():
        label = labels.get(name, name)
        if name not in wanted:
            near = get_close_matches(name, missing, 1)
            hint = f" (nearest missing: {near[0]})" if near else ""
            problems.append(f"unexpected {name} {list(leaf.shape)}{hint}")
        elif tuple(leaf.shape) != wanted[name].shape:
            problems.append(
                f"{label} has shape {list(leaf.shape)}, expected {list(wanted[name].shape)}"
            )
        elif leaf.dtype != usual:
            hint = " as the others have: fnlm convert --dtype casts" if len(types) > 1 else ""
            problems.append(f"{label} has type {leaf.dtype}, expected {usual}{hint}")
    if problems:
        raise ValueError(f"{source} does not fit: {listed(problems)}")


def listed(problems: list[str]) -> str:
    """Join what is wrong in one line, without end where all is wrong.

    >>> listed([f"no {i}" for i in range(99)])
    'no 0; no 1; no 2; no 3; no 4; no 5; no 6; no 7; and 91 more'
    """
    more = f"; and {len(problems) - 8} more" if len(problems) > 9 else ""
    return "; ".join(problems[: 8 if more else 9]) + more
