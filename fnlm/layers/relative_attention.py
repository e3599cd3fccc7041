"""Attention by content and by distance, the attention of Transformer-XL.

The score of a key k for a query q is::

    score = ((q + u) . k + (q + v) . r[distance]) / sqrt(Dh)

with a learned content bias u and a learned position bias v for each head, and a key r for every
distance between a token and what it looks at.

Source: Dai et al. 2019, "Transformer-XL: Attentive Language Models Beyond a Fixed-Length Context"
(arXiv:1901.02860), section 3.3 and appendix B.
"""

import math
from typing import Any

import torch
from torch import Tensor

from fnlm.layers.dropout import dropout

__all__ = ["attend_relative", "attention_bias", "causal_window_mask", "relative_shift", "sinusoids"]


def sinusoids(
    distances: int,
    width: int,
    clamp: int = 0,
    dtype: torch.dtype = torch.float32,
    device: Any = None,
) -> Tensor:
    """Encode the distances n - 1, ..., 1, 0 as [sin(d / 10000^(i / D)), cos(d / 10000^(i / D))].

    Args:
        distances: n.
        width: D, even; i = 0, 2, ..., D - 2.
        clamp: larger distances are encoded like this one; 0 or less encodes each as it is.
        dtype: of the result. As in the reference, angles are rounded to it and frequencies to
            float32; half types are rounded at the end.
        device: of the result.

    Returns:
        [n, D].

    >>> sinusoids(2, 4)
    tensor([[0.8415, 0.0100, 0.5403, 0.9999],
            [0.0000, 0.0000, 1.0000, 1.0000]])
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    frequencies = (1 / (10000 ** (torch.arange(0.0, width, 2.0) / width))).to(device, wide)
    numbers = torch.arange(distances - 1, -1, -1, dtype=wide, device=device)
    numbers = numbers.clamp(max=clamp) if clamp > 0 else numbers
    angles = numbers[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1).to(dtype)


def causal_window_mask(
    new: int, total: int, window: int | None = None, device: Any = None
) -> Tensor:
    """Say which keys each new token may attend to: itself and those before, at most `window`.

    Args:
        new: T.
        total: S, with the keys of the new tokens last.
        window: the number of keys, the token's own included; None sets no limit.
        device: of the result.

    Returns:
        bool [T, S].

    >>> causal_window_mask(2, 4, window=2).int()
    tensor([[0, 1, 1, 0],
            [0, 0, 1, 1]], dtype=torch.int32)
    """
    keys = torch.arange(total, device=device)
    distance = keys[total - new :, None] - keys
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def attention_bias(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to scores: 0 where attention is allowed, else minus infinity.

    >>> attention_bias(torch.tensor([True, False]), torch.float32)
    tensor([0., -inf])
    """
    return torch.where(allowed, 0.0, -math.inf).to(dtype)


def relative_shift(x: Tensor) -> Tensor:
    """Move each row so that column j holds key j, where it held distance S - j.

    Args:
        x: [..., T, S + 1], scores of the distances S, ..., 1, 0.

    Returns:
        [..., T, S]; a key after the token itself gets a score that means nothing.

    >>> relative_shift(torch.tensor([[3, 2, 1, 0], [3, 2, 1, 0]]))
    tensor([[1, 0, 3],
            [2, 1, 0]])
    """
    *lead, new, distances = x.shape
    return x.reshape(*lead, distances, new)[..., 1:, :].reshape(*lead, new, distances - 1)


def attend_relative(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    r: Tensor,
    mask: Tensor,
    *,
    content_bias: Tensor,
    position_bias: Tensor,
    rate: float = 0.0,
    key: Tensor | None = None,
) -> Tensor:
    """Return softmax(score + mask) v, with the score of the module's first lines.

    Args:
        q: [..., H, T, Dh].
        k: [..., H, S, Dh], the keys of the new tokens last.
        v: likewise.
        r: keys of the distances S, ..., 1, 0: [H, S + 1, Dh], or with leading axes like q's.
        mask: broadcastable to [..., H, T, S], added to the scores: see `attention_bias`. At
            least one key of each token must be free.
        content_bias: [H, Dh].
        position_bias: [H, Dh].
        rate: of the dropout on the attention weights.
        key: of that dropout.

    Returns:
        [..., H, T, Dh].

    >>> x, bias = torch.ones(2, 3, 4), torch.zeros(2, 4)
    >>> biases = {"content_bias": bias, "position_bias": bias}
    >>> mask = attention_bias(causal_window_mask(3, 3), x.dtype)
    >>> attend_relative(x, x, x, torch.ones(2, 4, 4), mask, **biases).shape
    torch.Size([2, 3, 4])
    """
    scale = 1 / math.sqrt(q.shape[-1])
    by_content = ((q + content_bias[:, None]) * scale) @ k.mT
    by_distance = relative_shift(((q + position_bias[:, None]) * scale) @ r.mT)
    weights = (by_content + by_distance + mask).softmax(-1)
    return dropout(weights, rate, key) @ v
