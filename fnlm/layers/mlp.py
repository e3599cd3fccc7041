"""The two-layer MLP of a transformer block."""

from collections.abc import Callable

from torch import Tensor

from fnlm.layers._tap import Taps, tap
from fnlm.layers.dropout import dropout
from fnlm.layers.linear import linear

__all__ = ["mlp"]


def mlp(
    x: Tensor,
    up: dict[str, Tensor],
    down: dict[str, Tensor],
    *,
    activation: Callable[[Tensor], Tensor],
    rate: float = 0.0,
    key: Tensor | None = None,
    taps: Taps | None = None,
) -> Tensor:
    """Return linear(activation(linear(x, **up)), **down), with dropout between the layers.

    Args:
        x: [..., D].
        up: weight [D, F] and bias [F].
        down: weight [F, D] and bias [D].
        activation: elementwise.
        rate: dropout rate of the hidden layer.
        key: dropout key; None is no dropout.
        taps: of the sites "hidden" [..., F], after the activation and before dropout, and "out".

    Returns:
        [..., D].
    """
    hidden = tap(activation(linear(x, **up)), taps, "hidden")  # D -> F
    hidden = hidden if key is None else dropout(hidden, rate, key)
    return tap(linear(hidden, **down), taps, "out")  # F -> D
