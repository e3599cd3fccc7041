"""torch's autocast, which no step reads."""

import torch
from torch import Tensor

from fnlm import tree
from fnlm.tree import Tree

__all__ = ["without_autocast"]


def without_autocast(values: Tree) -> torch.autocast:
    """Return a context that turns torch's autocast off, for the device of the first tensor.

    >>> with torch.autocast("cpu", torch.bfloat16), without_autocast(torch.ones(1)):
    ...     torch.is_autocast_enabled("cpu")
    False
    """
    devices = (leaf.device.type for leaf in tree.leaves(values) if isinstance(leaf, Tensor))
    return torch.autocast(next((name for name in devices if name != "meta"), "cpu"), enabled=False)
