"""Dropout with an explicit key: a key turns it on, None turns it off."""

from torch import Tensor

from fnlm import random

__all__ = ["apply_mask", "dropout", "dropout_keys", "keep_mask"]


def dropout(x: Tensor, rate: float, key: Tensor | None) -> Tensor:
    """Zero each element with probability `rate`, and divide the others by 1 - rate.

    Args:
        x: [..., D].
        rate: 0 <= rate <= 1; 1 gives zeros, with a derivative of 0.
        key: None returns x unchanged. One key masks the whole of x; keys of shape x.shape[:n] mask
            each row with its own, equal to `vmap` over rows and keys.

    Returns:
        [..., D].

    Raises:
        ValueError: a rate out of range or NaN, with or without a key; a key of another shape.

    >>> import torch
    >>> dropout(torch.ones(8), 0.5, random.key(0)).unique()
    tensor([0., 2.])
    """
    keep = keep_mask(x.shape, rate, key)
    return x if keep is None else apply_mask(x, keep, rate)


def keep_mask(shape: tuple[int, ...], rate: float, key: Tensor | None) -> Tensor | None:
    """Sample the mask of elements that dropout keeps: bool [shape], or None to keep all.

    >>> keep_mask((2, 3), 0.0, random.key(0)) is None
    True
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate of dropout must be from 0 to 1, got {rate}")
    if key is None or rate == 0:
        return None
    if key.shape != shape[: key.ndim]:
        raise ValueError(
            f"key of shape {list(key.shape)} does not lead x of shape {list(shape)}: "
            "give one key, or one key for each row of the leading axes"
        )
    return random.bernoulli(key, 1 - rate, shape[key.ndim :])


def apply_mask(x: Tensor, keep: Tensor, rate: float) -> Tensor:
    """Return x * keep / (1 - rate); zeros at rate 1.

    >>> import torch
    >>> apply_mask(torch.ones(3), torch.tensor([True, False, True]), 0.5)
    tensor([2., 0., 2.])
    """
    if keep.device != x.device:
        raise ValueError(
            f"key is on {keep.device}, the parameters on {x.device}: key.to({str(x.device)!r})"
        )
    return x * keep.to(x.dtype).mul_(1 / (1 - rate) if rate < 1 else 0.0)


def dropout_keys(key: Tensor | None, count: int) -> tuple[Tensor | None, ...]:
    """Split a key into one per dropout layer; all None if `key` is None.

    >>> dropout_keys(None, 2)
    (None, None)
    """
    return (None,) * count if key is None else random.split(key, count).unbind(-1)
