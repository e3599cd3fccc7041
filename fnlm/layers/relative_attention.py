"""Multi-head attention with relative positions, as in Transformer-XL.

The score of a key k for a query q is::

    score = ((q + u) . k + (q + v) . r[distance]) / sqrt(Dh)

with a learned content bias u and position bias v for each head, and r the projected sinusoid of the
distance from query to key.

Dimensions: H heads, T queries, S keys (memory, then the queries' own), Dh width of a head.

Source: Dai et al. 2019, "Transformer-XL: Attentive Language Models Beyond a Fixed-Length Context"
(arXiv:1901.02860), section 3.3 and appendix B.
"""

import math
from typing import Any

import torch
from torch import Tensor

from fnlm.layers._tap import Taps, tap
from fnlm.layers.dropout import dropout

__all__ = ["attend_relative", "attention_bias", "causal_window_mask", "relative_shift", "sinusoids"]


def sinusoids(
    distances: int,
    width: int,
    clamp: int = 0,
    dtype: torch.dtype = torch.float32,
    device: Any = None,
) -> Tensor:
    """Sinusoids of the distances n - 1, ..., 0: [sin(d / 10000^(i / D)), cos(d / 10000^(i / D))].

    Args:
        distances: n.
        width: D, even; i = 0, 2, ..., D - 2.
        clamp: larger distances are clamped to it; 0 or less clamps none.
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
    distance = torch.arange(distances - 1, -1, -1, dtype=wide, device=device)  # [n]
    distance = distance.clamp(max=clamp) if clamp > 0 else distance
    angles = distance[:, None] * frequencies  # [n, D / 2]
    return torch.cat([angles.sin(), angles.cos()], -1).to(dtype)  # [n, D]


def causal_window_mask(
    new: int, total: int, window: int | None = None, device: Any = None
) -> Tensor:
    """Causal sliding-window mask: each query attends to itself and to at most `window` - 1 before.

    Args:
        new: T.
        total: S, with the keys of the new tokens last.
        window: number of keys a query, its own included; None is no limit.
        device: of the result.

    Returns:
        bool [T, S].

    >>> causal_window_mask(2, 4, window=2).int()
    tensor([[0, 1, 1, 0],
            [0, 0, 1, 1]], dtype=torch.int32)
    """
    keys = torch.arange(total, device=device)
    distance = keys[total - new :, None] - keys  # [T, S], of query minus key
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def attention_bias(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive attention mask: 0 where attention is allowed, else minus infinity.

    >>> attention_bias(torch.tensor([True, False]), torch.float32)
    tensor([0., -inf])
    """
    return torch.where(allowed, 0.0, -math.inf).to(dtype)


def relative_shift(x: Tensor) -> Tensor:
    """Shift each row from columns by distance, S - j, to columns by key, j.

    Args:
        x: [..., T, S + 1], scores of the distances S, ..., 1, 0.

    Returns:
        [..., T, S]; scores of future keys are meaningless, and must be masked.

    >>> relative_shift(torch.tensor([[3, 2, 1, 0], [3, 2, 1, 0]]))
    tensor([[1, 0, 3],
            [2, 1, 0]])
    """
    # Without the first T numbers and in rows of S, row i starts at its former column T - i, which
    # holds the distance S - T + i from query i to key 0.
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
    taps: Taps | None = None,
) -> Tensor:
    """Relative attention: softmax(score + mask) v, with the score given at the top.

    Args:
        q: [..., H, T, Dh].
        k: [..., H, S, Dh], the keys of the new tokens last.
        v: likewise.
        r: keys of the distances S, ..., 1, 0: [H, S + 1, Dh], or with leading axes like q's.
        mask: additive, broadcastable to [..., H, T, S]: see `attention_bias`. At least one key of
            each query must be unmasked.
        content_bias: [H, Dh].
        position_bias: [H, Dh].
        rate: dropout rate of the attention weights.
        key: dropout key; None is no dropout.
        taps: of the sites "q", "k", "v", "weights" [..., H, T, S], after the softmax and before
            dropout, and "heads", the result.

    Returns:
        [..., H, T, Dh].

    >>> x, bias = torch.ones(2, 3, 4), torch.zeros(2, 4)
    >>> biases = {"content_bias": bias, "position_bias": bias}
    >>> mask = attention_bias(causal_window_mask(3, 3), x.dtype)
    >>> attend_relative(x, x, x, torch.ones(2, 4, 4), mask, **biases).shape
    torch.Size([2, 3, 4])
    """
    q, k, v = tap(q, taps, "q"), tap(k, taps, "k"), tap(v, taps, "v")
    scale = 1 / math.sqrt(q.shape[-1])
    content_scores = ((q + content_bias[:, None]) * scale) @ k.mT  # [..., H, T, S]
    distance_scores = ((q + position_bias[:, None]) * scale) @ r.mT  # [..., H, T, S + 1]
    scores = content_scores + relative_shift(distance_scores) + mask  # [..., H, T, S]
    weights = tap(scores.softmax(-1), taps, "weights")
    return tap(dropout(weights, rate, key) @ v, taps, "heads")  # [..., H, T, Dh]
