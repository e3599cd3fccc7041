"""Groups of ranks, and the session in which they can be reached."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup, distributed_c10d
from torch.distributed.device_mesh import DeviceMesh

__all__ = ["Group", "name_of", "process_group", "rank", "session", "size"]

# A process group, a mesh of one dimension, the name of a group, or None for all ranks.
Group = ProcessGroup | DeviceMesh | str | None


def name_of(group: Group) -> str:
    """Return the name of a group, by which a leaf knows it; "" for all ranks.

    >>> name_of(None)
    ''
    """
    if group is None or isinstance(group, str):
        return group or ""
    if isinstance(group, DeviceMesh):
        if group.ndim != 1:
            raise ValueError(
                f"group must be one dimension of a mesh, got {group.ndim}: name one, mesh['data']"
            )
        group = group.get_group()
    return "" if group is dist.group.WORLD else str(group.group_name)


def process_group(name: str) -> ProcessGroup | None:
    """Return the process group of a name; None, which torch takes for all ranks, for "".

    >>> process_group("") is None
    True
    """
    resolve: Any = distributed_c10d._resolve_process_group  # type: ignore[attr-defined]
    return resolve(name) if name else None


def rank(group: Group = None) -> int:
    """Return the number of this process in a group, from 0; 0 where there is one process alone.

    >>> rank()
    0
    """
    return dist.get_rank(process_group(name_of(group))) if dist.is_initialized() else 0


def size(group: Group = None) -> int:
    """Return the number of ranks of a group; 1 where there is one process alone.

    >>> size()
    1
    """
    return dist.get_world_size(process_group(name_of(group))) if dist.is_initialized() else 1


@contextmanager
def session(
    *, backend: str | None = None, timeout: float = 60.0, **options: Any
) -> Iterator[torch.device]:
    """Join the other processes of a `torchrun` for the block; without `torchrun`, run alone.

    Args:
        backend: as for torch; by default gloo, and nccl for CUDA where there is CUDA.
        timeout: seconds; a collective that takes longer is an error on every rank, so a rank that
            was killed or hangs ends the others.
        options: more arguments of `torch.distributed.init_process_group`; with a `rank` and a
            `world_size` among them, no `torchrun` is needed.

    Yields:
        the device of this rank: a GPU of its own, or the CPU.

    Raises:
        ValueError: the timeout is not positive.

    >>> with session() as device:
    ...     rank(), size()
    (0, 1)
    """
    if not timeout > 0:
        raise ValueError(f"timeout must be positive, in seconds, got {timeout}")
    launched = "world_size" in options or "TORCHELASTIC_RUN_ID" in os.environ
    backend = backend or ("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    device = torch.device("cpu")
    if "nccl" in backend:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if not launched:
        yield device
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout), **options)
    try:
        yield device
    finally:
        dist.destroy_process_group()
