"""The two-layer MLP of a transformer block."""

from collections.abc import Callable

from torch import Tensor

from fnlm.layers.linear import linear

__all__ = ["mlp"]


def mlp(
    x: Tensor,
    up: dict[str, Tensor],
    down: dict[str, Tensor],
    *,
    activation: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return linear(activation(linear(x, **up)), **down).

    Args:
        x: [..., D].
        up: weight [D, F] and bias [F].
        down: weight [F, D] and bias [D].
        activation: elementwise.

    Returns:
        [..., D].
    """
    return linear(activation(linear(x, **up)), **down)  # D -> F -> D
