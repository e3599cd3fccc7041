"""Learning-rate schedules: functions from a step to a multiplier of the learning rate.

Every factory here returns a function `schedule(step)`. For a step that is a Python number the
multiplier is a `float`; for a 0-d tensor it is a float64 0-d tensor, and the schedule works under
`vmap` and `compile`. Both evaluate one formula over the progress x = step / t_total::

    constant                            1
    warmup_constant                     1                           after the warm-up
    warmup_linear                       max((1 - x) / (1 - w), 0)   after the warm-up
    warmup_cosine                       (1 + cos(2 pi c y)) / 2     after the warm-up
    warmup_cosine_with_hard_restarts    (1 + cos(pi frac(c y))) / 2 after the warm-up
    warmup_cosine_with_warmup_restarts  warm-up and half a cosine, over each 1 / c of the steps

with w the fraction of the steps in the warm-up (there the multiplier is x / w), c the number of
cycles and y = (x - w) / (1 - w). A negative `t_total` means that the length is unknown: the
multiplier is 1 at every step.

Source: the schedules of pytorch-pretrained-bert 0.6.2, equal at every step, beyond `t_total` too.
Deviation: no warning is logged for a step beyond `t_total`, as schedules are pure functions.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol, SupportsFloat

import torch
from torch import Tensor

from fnlm import _former

__all__ = [
    "Schedule",
    "constant",
    "warmup_constant",
    "warmup_cosine",
    "warmup_cosine_with_hard_restarts",
    "warmup_cosine_with_warmup_restarts",
    "warmup_linear",
]

_explain = _former.explain_names(__name__)


class Schedule(Protocol):
    """A function from a step (a number or a 0-d tensor) to a number or a 0-d tensor."""

    def __call__(self, step: Any, /) -> Any: ...


def constant(warmup: float = -1, t_total: float = -1) -> Schedule:
    """Return 1 at every step; the arguments, shared by all schedules, have no effect.

    >>> constant()(1000)
    1.0
    """
    return _schedule(warmup, t_total, lambda x, warmup: _like(x, 1.0))


def warmup_constant(warmup: float = 0.002, t_total: float = -1) -> Schedule:
    """Rise linearly from 0 to 1 over the first `warmup * t_total` steps, then stay at 1.

    >>> [warmup_constant(0.5, 4)(step) for step in range(5)]
    [0.0, 0.5, 1.0, 1.0, 1.0]
    """
    return _schedule(warmup, t_total, lambda x, warmup: _warm_up(x, warmup, _like(x, 1.0)))


def warmup_linear(warmup: float = 0.002, t_total: float = -1) -> Schedule:
    """Rise linearly to 1 over the first `warmup * t_total` steps, then fall linearly to 0.

    The multiplier is 0 from `t_total` on.

    >>> [warmup_linear(0.5, 4)(step) for step in range(6)]
    [0.0, 0.5, 1.0, 0.5, 0.0, 0.0]
    """

    def multiplier(x: Any, warmup: float) -> Any:
        return _warm_up(x, warmup, _at_least_zero((x - 1.0) / (warmup - 1.0)))

    return _schedule(warmup, t_total, multiplier)


def warmup_cosine(warmup: float = 0.002, t_total: float = -1, cycles: float = 0.5) -> Schedule:
    """Rise linearly from 0 to 1, then follow `cycles` periods of a cosine between 1 and 0.

    The default half period ends at 0; beyond `t_total` the cosine goes on, and rises again.

    Raises:
        ValueError: `cycles` is negative.

    >>> [round(warmup_cosine(0.0, 4)(step), 3) for step in range(5)]
    [1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if not cycles >= 0:
        raise ValueError(f"cycles must be at least 0, got {cycles}: 0.5 goes from 1 to 0 once")

    def multiplier(x: Any, warmup: float) -> Any:
        y = (x - warmup) / (1 - warmup)  # progress after the warm-up: 1 at t_total
        return _warm_up(x, warmup, 0.5 * (1.0 + _cos(math.pi * cycles * 2 * y)))

    return _schedule(warmup, t_total, multiplier)


def warmup_cosine_with_hard_restarts(
    warmup: float = 0.002, t_total: float = -1, cycles: float = 1.0
) -> Schedule:
    """Rise linearly from 0 to 1, then decay along half a cosine `cycles` times, each time from 1.

    Raises:
        ValueError: `cycles` is below 1.

    >>> [round(warmup_cosine_with_hard_restarts(0.0, 4, cycles=2)(step), 3) for step in range(5)]
    [1.0, 0.5, 1.0, 0.5, 1.0]
    """
    _check_cycles(cycles)

    def multiplier(x: Any, warmup: float) -> Any:
        y = (x - warmup) / (1 - warmup)  # progress after the warm-up: 1 at t_total
        return _warm_up(x, warmup, 0.5 * (1.0 + _cos(math.pi * ((cycles * y) % 1))))

    return _schedule(warmup, t_total, multiplier)


def warmup_cosine_with_warmup_restarts(
    warmup: float = 0.002, t_total: float = -1, cycles: float = 1.0
) -> Schedule:
    """In each of `cycles` equal parts, rise linearly from 0 to 1, then decay along half a cosine.

    `warmup` is a fraction of all steps, and the length of the warm-up of every part.

    Raises:
        ValueError: `cycles` is below 1, or the warm-ups together are not below 1.

    >>> [round(warmup_cosine_with_warmup_restarts(0.25, 8, cycles=2)(step), 3) for step in range(5)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    _check_cycles(cycles)
    if warmup * cycles >= 1:
        raise ValueError(
            f"warmup * cycles must be below 1, got {warmup} * {cycles}: each cycle has a warmup"
        )

    def multiplier(x: Any, warmup: float) -> Any:
        within = x * cycles % 1.0  # progress within the cycle
        y = (within - warmup) / (1 - warmup)
        return _warm_up(within, warmup, 0.5 * (1.0 + _cos(math.pi * y)))

    # The warm-up, a fraction of all steps, is `cycles` times that fraction of a cycle.
    return _schedule(warmup * cycles if warmup >= 0 else warmup, t_total, multiplier)


def _schedule(warmup: float, t_total: float, multiplier: Callable[[Any, float], Any]) -> Schedule:
    """Return the schedule of a formula `multiplier(progress, warmup)`."""
    for name, value in (("warmup", warmup), ("t_total", t_total)):
        if isinstance(value, str | Tensor) or not isinstance(value, SupportsFloat):
            raise TypeError(f"{name} must be a number, got {value!r:.60}: give {name}=-1 for none")
    if warmup != -1 and not 0 <= warmup < 1:
        raise ValueError(
            f"warmup must be a share in [0, 1), or -1 for none, got {warmup}: of a number of "
            "steps it is warmup / t_total"
        )
    if t_total <= 0 and t_total != -1:
        raise ValueError(
            f"t_total must be positive, or -1 for a multiplier that is always 1, got {t_total}: "
            "give the number of updates of the run"
        )
    fraction = max(float(warmup), 0.0)

    def schedule(step: Any, /) -> Any:
        if isinstance(step, int | float) and step < 0:
            raise ValueError(f"step must be at least 0, got {step}: the first update is step 0")
        # float64 in both cases, so that tensors and numbers give the same multiplier.
        step = step.to(torch.float64) if isinstance(step, Tensor) else float(step)
        return _like(step, 1.0) if t_total < 0 else multiplier(step / float(t_total), fraction)

    return schedule


def _check_cycles(cycles: float) -> None:
    if not cycles >= 1:
        raise ValueError(f"cycles must be at least 1, got {cycles}: 1 is no restart")


def _warm_up(x: Any, warmup: float, after: Any) -> Any:
    """Return x / warmup during the warm-up, `after` from its end on."""
    if warmup == 0:
        return after
    if isinstance(x, Tensor):
        return torch.where(x < warmup, x / warmup, after)
    return x / warmup if x < warmup else after


def _like(x: Any, value: float) -> Any:
    return torch.full_like(x, value) if isinstance(x, Tensor) else value


def _cos(x: Any) -> Any:
    return torch.cos(x) if isinstance(x, Tensor) else math.cos(x)


def _at_least_zero(x: Any) -> Any:
    return x.clamp_min(0.0) if isinstance(x, Tensor) else max(x, 0.0)
