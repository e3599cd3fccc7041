"""Masks of tokens: nonzero for real tokens, 0 for padding."""

from typing import Any

from torch import Tensor

__all__ = ["check_mask"]


def check_mask(mask: Any) -> None:
    """Refuse a mask whose type does not say that its elements are yes or no.

    A floating mask may be one of zeros and ones, or a bias for the scores of attention, in which 0
    stands for a real token: it would be read inverted.

    Args:
        mask: bool or integers, nonzero for real tokens; only its type is looked at. Or None.

    Raises:
        TypeError: it is floating, or no tensor.

    >>> import torch
    >>> check_mask(torch.tensor([0.0, -1e4]))
    Traceback (most recent call last):
    TypeError: mask must be bool or integers, nonzero for real tokens, got torch.float32: ...
    """
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a tensor of bool or integers, got {type(mask).__name__}")
    if mask.is_floating_point() or mask.is_complex():
        raise TypeError(
            f"mask must be bool or integers, nonzero for real tokens, got {mask.dtype}: of a bias "
            "that is 0 for real tokens make it by `mask = bias == 0`, of ones and zeros by "
            "`mask = mask != 0`"
        )
