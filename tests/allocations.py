"""Memory by counted allocations: what tensors hold at most, whatever the C library keeps."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fnlm import tree


class Counter(TorchDispatchMode):
    """Counts the bytes of storages, from when an operation makes them until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        for x in tree.leaves(made):
            if isinstance(x, torch.Tensor):
                self._count(x.untyped_storage())
        return made

    def _count(self, storage: Any) -> None:
        if (name := storage._cdata) not in self.sizes:
            self.sizes[name] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, name)

    def _free(self, name: int) -> None:
        self.now -= self.sizes.pop(name, 0)


def peak_bytes(call: Callable[[], object]) -> int:
    """Return the most bytes that tensors made by a call hold at one time."""
    with Counter() as counter:
        call()
    return counter.peak
