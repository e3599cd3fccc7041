"""Padding masks: nonzero for real tokens, 0 for padding."""

from typing import Any

from torch import Tensor

__all__ = ["check_mask"]


def check_mask(mask: Any) -> None:
    """Validate the dtype of a padding mask.

    A floating mask is ambiguous: ones and zeros, or an additive bias in which 0 marks a real token
    and which would be read inverted.

    Args:
        mask: bool or integers, nonzero for real tokens, or None; only its type is read.

    Raises:
        TypeError: floating, or not a tensor.

    >>> import torch
    >>> check_mask(torch.tensor([0.0, -1e4]))
    Traceback (most recent call last):
    TypeError: mask must be bool or integers, nonzero for real tokens, got torch.float32: ...
    """
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise TypeError(
            f"mask must be a tensor of bool or integers, got {type(mask).__name__}: "
            "torch.as_tensor makes one of a list or an array"
        )
    if mask.is_floating_point() or mask.is_complex():
        raise TypeError(
            f"mask must be bool or integers, nonzero for real tokens, got {mask.dtype}: of a bias "
            "that is 0 for real tokens make it by `mask = bias == 0`, of ones and zeros by "
            "`mask = mask != 0`"
        )
