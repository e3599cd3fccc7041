"""Sites: named places in a model at which `fnlm.taps` reads and writes.

A sub-tree of parameters may have an entry "taps", which the functions of layers take as the
argument of that name. It is there while `fnlm.taps.read` or `write` runs a model, and no longer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from fnlm.tree import register_constant

__all__ = ["Level", "Taps", "Visitor", "is_read", "is_wanted", "tap"]


@register_constant
@dataclass(frozen=True)
class Visitor:
    """What one call of `fnlm.taps.read` or `write` does at the sites of a sub-tree."""

    prefix: str  # of the names of these sites, such as "blocks.3.attention."
    visit: Callable[[str, Tensor, Tensor | None], Tensor]  # (site, x, written) -> what goes on
    wants: Callable[[str], bool]  # whether it reads or writes a site
    reads: bool  # whether it only reads


class Level(NamedTuple):
    """One call of `fnlm.taps.read` or `write`."""

    visitor: Visitor
    tensors: dict[str, Tensor]  # those to be written, by the name of the site in the sub-tree


Taps = tuple[Level, ...]  # innermost call first; those that read after those that write


def tap(x: Tensor, taps: Taps | None, name: str) -> Tensor:
    """Return x, or what is written at the site.

    Args:
        x: what the model computed there.
        taps: of the sub-tree that the site belongs to; None where nobody reads or writes.
        name: of the site, without that of the sub-tree.

    >>> import torch
    >>> x = torch.zeros(2)
    >>> tap(x, None, "out") is x
    True
    >>> double = Visitor("mlp.", lambda site, x, written: 2 * written, lambda site: True, False)
    >>> tap(x, (Level(double, {"out": torch.ones(2)}),), "out")
    tensor([2., 2.])
    """
    if taps is None:
        return x
    for visitor, tensors in taps:
        x = visitor.visit(visitor.prefix + name, x, tensors.get(name))
    return x


def is_wanted(taps: Taps | None, name: str) -> bool:
    """Return whether a site is read or written: what a faster way would not compute.

    >>> is_wanted(None, "weights")
    False
    """
    if taps is None:
        return False
    wanted = [visitor.wants(visitor.prefix + name) for visitor, _ in taps]  # each is to know
    return any(wanted)


def is_read(*args: Any) -> bool:
    """Return whether parameters among the arguments carry what reads their sites.

    What is read leaves a function beside its result. So one that runs on other tensors than it was
    given, such as detached ones, has to make an exception.

    >>> is_read({"weight": 0.0})
    False
    """
    levels = [level for arg in args if isinstance(arg, dict) for level in arg.get("taps", ())]
    return any(visitor.reads for visitor, _ in levels)
