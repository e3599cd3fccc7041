"""What is communicated, and who listens."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch.distributed as dist
from torch import Tensor

from fnlm.distributed.groups import process_group, size

__all__ = ["Message", "all_reduce_", "messages", "note"]


class Message(NamedTuple):
    """One collective, as `messages` notes it."""

    kind: str  # "all_reduce", "all_gather" or "reduce_scatter"
    nbytes: int  # of the whole tensor: of the sum, of what was gathered, of what was scattered
    ranks: int  # of the group

    @property
    def sent(self) -> float:
        """Bytes that each rank must send: no algorithm needs fewer."""
        share = self.nbytes * (self.ranks - 1) / self.ranks
        return 2 * share if self.kind == "all_reduce" else share


_listening: list[list[Message]] = []
_lock = threading.Lock()


@contextmanager
def messages() -> Iterator[list[Message]]:
    """Collect what this process communicates in the block, backward passes included.

    >>> import torch
    >>> from fnlm import distributed
    >>> with messages() as sent:
    ...     _ = distributed.sum(torch.ones(3))
    >>> sent  # one process sends nothing
    []
    """
    found: list[Message] = []
    with _lock:
        _listening.append(found)
    try:
        yield found
    finally:
        with _lock:
            _listening[:] = [other for other in _listening if other is not found]


def note(kind: str, whole: Tensor, group: str) -> None:
    """Tell who listens of a collective: what it is called, and the whole tensor."""
    for found in _listening:
        found.append(Message(kind, whole.nbytes, size(group)))


def all_reduce_(x: Tensor, group: str) -> Tensor:
    """Sum a contiguous tensor over ranks, in place, without a derivative."""
    dist.all_reduce(x, group=process_group(group))
    note("all_reduce", x, group)
    return x
