"""What the processes of a program do together, beside computing: files, results, states.

One rank, the first, reads and writes; the others learn from it. In one process each function is
what it would be without others.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from fnlm import tree
from fnlm.distributed.groups import rank, size
from fnlm.distributed.placed import Placed
from fnlm.distributed.plans import like
from fnlm.train._processes import ALONE, Processes
from fnlm.tree import Tree

__all__ = ["collect", "distribute", "every", "on_first", "processes"]

T = TypeVar("T")
_at_work: list[Callable[[], Any]] = []  # what the first rank does at the moment, by itself


def on_first(work: Callable[[], T]) -> T:
    """Return what a function returns on the first rank, on every rank; the others don't call it.

    Args:
        work: it communicates nothing, and what it returns can be pickled.

    Raises:
        Exception: what the function raised on the first rank is raised on every rank, on the
            others with a note that says so.

    >>> on_first(list)
    []
    """
    if size() == 1 or _at_work:  # what is done there may have parts that are
        return work()
    answer: list[Any] = [None, None]  # what is returned, what is raised
    if rank() == 0:
        _at_work.append(work)
        try:
            answer[0] = work()
        except Exception as error:
            answer[1] = error
        finally:
            _at_work.clear()
    dist.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        if rank() > 0:
            answer[1].add_note("raised on rank 0")
        raise answer[1]
    return answer[0]


def every(x: T) -> list[T]:
    """Return what each rank has, in the order of the ranks; it can be pickled.

    >>> every(3)
    [3]
    """
    if size() == 1:
        return [x]
    found: list[Any] = [None] * size()
    dist.all_gather_object(found, x)
    return found


def collect(parts: Tree) -> Tree:
    """Return the tree whole on the first rank, in the memory of the CPU; {} on the others.

    It differs from `gather` in that no other rank ever holds more than one whole leaf.

    Args:
        parts: a tree with leaves that are placed by `shard`.

    >>> collect({"w": torch.ones(1)})
    {'w': tensor([1.])}
    """
    if size() == 1:
        return parts

    def whole(path: str, leaf: Any) -> Any:
        if isinstance(leaf, Placed):
            leaf = leaf.dense()
        return leaf.cpu() if rank() == 0 else ()

    with torch.no_grad():
        found = tree.map_with_path(whole, parts, whole=Placed)
    return found if rank() == 0 else {}


def distribute(whole: Tree, parts: Tree) -> Tree:
    """Return the tree that the first rank has, placed as another one: the inverse of `collect`.

    Args:
        whole: of the first rank; that of the others is not read.
        parts: a tree of the same leaves, which gives places, types and devices.

    >>> distribute({"w": torch.ones(1)}, {"w": torch.zeros(1)})
    {'w': tensor([1.])}
    """
    if size() == 1:
        return whole
    leaves = dict(tree.named_leaves(whole)) if rank() == 0 else {}

    def place(path: str, leaf: Any) -> Any:
        x = torch.empty(leaf.shape, dtype=leaf.dtype, device=leaf.device)
        if rank() == 0:
            x.copy_(leaves[path])
        dist.broadcast(x, src=0)
        return like(x, leaf)

    with torch.no_grad():
        return tree.map_with_path(place, parts, whole=Placed)


def processes() -> Processes:
    """Return what `fnlm.train.fit` must know of the processes that run it together.

    >>> processes().is_first
    True
    """
    if size() == 1:
        return ALONE
    return Processes(rank() == 0, on_first, collect, distribute, _highest)


def _highest(number: int) -> int:
    """Return the highest number of all ranks."""
    x = torch.tensor(number, device="cpu" if "cpu" in dist.get_backend_config() else "cuda")
    dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return int(x)
