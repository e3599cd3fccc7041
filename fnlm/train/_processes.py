"""What a loop must know of the processes that run it together."""

from collections.abc import Callable
from typing import Any, NamedTuple

from fnlm.tree import Tree

__all__ = ["ALONE", "Processes"]


class Processes(NamedTuple):
    """The processes of a run: the first one owns its directory, all take part in each function."""

    is_first: bool
    on_first: Callable[[Callable[[], Any]], Any]  # what a function returns there, on each
    collect: Callable[[Tree], Tree]  # the whole tree, on the first; {} on the others
    distribute: Callable[[Tree, Tree], Tree]  # the first one's whole tree, placed as another
    highest: Callable[[int], int]  # of the numbers that they have


ALONE = Processes(
    True, lambda work: work(), lambda tree: tree, lambda whole, parts: whole, lambda number: number
)
