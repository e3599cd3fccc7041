"""Loss scales: factors that keep small gradients of a float16 computation from becoming 0.

A step multiplies the loss by the scale before it differentiates, and divides the gradients by it
in float32. The scale is part of the state of a run, `TrainState.loss_scale`, so a run that resumes
goes on with it.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["LossScale", "LossScaleState", "dynamic", "static"]


class LossScaleState(NamedTuple):
    """A loss scale between two steps."""

    scale: Tensor  # [] float32
    good_steps: Tensor  # [] int64, steps with finite gradients since the scale changed last


class LossScale(NamedTuple):
    """A pair of pure functions: `init() -> state` and `update(state, finite) -> state`.

    `finite` is a [] bool: whether the gradients of the step were finite.
    """

    init: Callable[[], LossScaleState]
    update: Callable[[LossScaleState, Tensor], LossScaleState]


def static(value: float) -> LossScale:
    """Return a loss scale that stays the same.

    Args:
        value: the scale, above 0; 128 is usual for float16.

    Raises:
        ValueError: the value is not a finite number above 0.

    >>> scale = static(128)
    >>> scale.update(scale.init(), torch.tensor(False)).scale
    tensor(128.)
    """
    _check(value=value)
    return LossScale(lambda: _start(value), lambda state, finite: state)


def dynamic(
    initial: float = 2.0**15,
    *,
    growth_interval: int = 2000,
    factor: float = 2.0,
    minimum: float = 1.0,
) -> LossScale:
    """Return a loss scale that shrinks where gradients overflow, and grows while they do not.

    Args:
        initial: the scale of the first step.
        growth_interval: number of good steps in a row after which the scale is multiplied by
            `factor`.
        factor: by which the scale grows, and is divided after a step without finite gradients.
        minimum: below which the scale does not fall.

    Raises:
        ValueError: a number is out of range.

    >>> scale = dynamic(8.0, growth_interval=2)
    >>> state, scales = scale.init(), []
    >>> for finite in (True, True, False, True):
    ...     state = scale.update(state, torch.tensor(finite))
    ...     scales.append(state.scale.item())
    >>> scales
    [8.0, 16.0, 8.0, 8.0]

    Source: Mixed Precision Training (arXiv:1710.03740), section 3.2, as NVIDIA's apex has it.
    """
    _check(initial=initial, minimum=minimum)
    if growth_interval < 1:
        raise ValueError(f"growth_interval must be at least 1, got {growth_interval}")
    if not 1 < factor < math.inf:
        raise ValueError(f"factor must be a finite number above 1, got {factor}")

    def update(state: LossScaleState, finite: Tensor) -> LossScaleState:
        good = torch.where(finite, state.good_steps + 1, 0)
        grows = good >= growth_interval
        larger = state.scale * factor
        larger = torch.where(larger.isfinite(), larger, state.scale)
        smaller = (state.scale / factor).clamp_min(minimum)
        scale = torch.where(finite, torch.where(grows, larger, state.scale), smaller)
        return LossScaleState(scale, torch.where(grows, 0, good))

    return LossScale(lambda: _start(initial), update)


def _start(value: float) -> LossScaleState:
    return LossScaleState(torch.tensor(float(value)), torch.zeros((), dtype=torch.int64))


def _check(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be a finite number above 0, got {value}")
