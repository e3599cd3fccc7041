"""What `torchrun` tells the processes that it starts, by their environment."""

import os
from typing import NamedTuple

__all__ = ["Environment", "environment"]


class Environment(NamedTuple):
    """The place of this process among those of a `torchrun`; alone without one."""

    rank: int  # of this process
    size: int  # of all processes
    here: int  # processes on this machine


def environment() -> Environment:
    """Return the place of this process, before it has joined the others.

    >>> environment()
    Environment(rank=0, size=1, here=1)
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Environment(0, 1, 1)
    rank, size, here = (
        int(os.environ.get(name, default))
        for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_WORLD_SIZE", "1"))
    )
    return Environment(rank, size, here)
