"""Schedules equal their formulas, and pytorch-pretrained-bert's, at every step and beyond the last one."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from peers import ppb
from torch.func import vmap

from fnlm.train import schedules

T_TOTAL = 37  # a prime, so that progress is never a round number
STEPS = range(2 * T_TOTAL + 5)

# name: (factory of warmup and t_total, name of pytorch-pretrained-bert's class, its further arguments)
CASES: dict[str, tuple[Callable[..., schedules.Schedule], str, dict[str, float]]] = {
    "constant": (schedules.constant, "ConstantLR", {}),
    "warmup_constant": (schedules.warmup_constant, "WarmupConstantSchedule", {}),
    "warmup_linear": (schedules.warmup_linear, "WarmupLinearSchedule", {}),
    "warmup_cosine": (schedules.warmup_cosine, "WarmupCosineSchedule", {}),
    "warmup_cosine_2_cycles": (
        partial(schedules.warmup_cosine, cycles=2.0),
        "WarmupCosineSchedule",
        {"cycles": 2.0},
    ),
    "hard_restarts": (
        schedules.warmup_cosine_with_hard_restarts,
        "WarmupCosineWithHardRestartsSchedule",
        {},
    ),
    "hard_restarts_3_cycles": (
        partial(schedules.warmup_cosine_with_hard_restarts, cycles=3.0),
        "WarmupCosineWithHardRestartsSchedule",
        {"cycles": 3.0},
    ),
    "warmup_restarts": (
        schedules.warmup_cosine_with_warmup_restarts,
        "WarmupCosineWithWarmupRestartsSchedule",
        {},
    ),
    "warmup_restarts_2.5_cycles": (
        partial(schedules.warmup_cosine_with_warmup_restarts, cycles=2.5),
        "WarmupCosineWithWarmupRestartsSchedule",
        {"cycles": 2.5},
    ),
}
each_case = pytest.mark.parametrize("name", CASES)
each_warmup = pytest.mark.parametrize("warmup", [-1, 0.0, 0.1, 0.3])


def by_formula(name: str, warmup: float, cycles: float) -> list[float]:
    """The multiplier at STEPS, written for arrays of whole steps rather than shares of the run."""
    step = np.arange(len(STEPS), dtype=float)
    rise = max(warmup, 0.0) * T_TOTAL  # steps that warm up
    if name.startswith("warmup_restarts"):
        length = T_TOTAL / cycles
        step = step - length * np.floor(step / length * (1 + 1e-15))
        step = np.where(step < 0, 0, step)
        after = np.cos(np.pi / 2 * (step - rise) / (length - rise)) ** 2
    else:
        left = (T_TOTAL - step) / (T_TOTAL - rise)
        done = 1 - left
        if name.startswith("hard"):
            after = np.cos(np.pi / 2 * np.modf(cycles * done)[0]) ** 2
        elif name.startswith("warmup_cosine"):
            after = np.cos(np.pi * cycles * done) ** 2
        else:
            after = np.maximum(left, 0) if name == "warmup_linear" else np.ones_like(step)
    if name == "constant" or rise == 0:
        return list(after)
    return list(np.where(step < rise, step / rise, after))


@each_case
@each_warmup
def test_equals_the_formula_at_every_step(name: str, warmup: float) -> None:
    factory, _, kwargs = CASES[name]
    schedule = factory(warmup, T_TOTAL)
    default = 0.5 if name.startswith("warmup_cosine") else 1.0
    expected = by_formula(name, warmup, kwargs.get("cycles", default))
    np.testing.assert_allclose([schedule(step) for step in STEPS], expected, rtol=0, atol=1e-12)


@each_case
@each_warmup
def test_equals_pytorch_pretrained_bert_at_every_step(name: str, warmup: float) -> None:
    factory, peer_name, kwargs = CASES[name]
    schedule = factory(warmup, T_TOTAL)
    peer = getattr(ppb().optimization, peer_name)(warmup=warmup, t_total=T_TOTAL, **kwargs)
    assert [schedule(step) for step in STEPS] == [peer.get_lr(step, nowarn=True) for step in STEPS]


@each_case
def test_tensors_give_what_numbers_give(name: str) -> None:
    schedule = CASES[name][0](0.1, T_TOTAL)
    numbers = torch.tensor([schedule(step) for step in STEPS], dtype=torch.float64)
    tensors = [schedule(torch.tensor(step)) for step in STEPS]
    assert all(value.shape == () and value.dtype == torch.float64 for value in tensors)
    torch.testing.assert_close(torch.stack(tensors), numbers, rtol=0, atol=1e-12)
    mapped = vmap(schedule)(torch.tensor(list(STEPS)))
    torch.testing.assert_close(mapped, numbers, rtol=0, atol=1e-12)


def test_compiles_without_a_break() -> None:
    schedule = schedules.warmup_cosine_with_warmup_restarts(0.1, T_TOTAL, cycles=2)
    compiled: Any = torch.compile(schedule, fullgraph=True, backend="eager")
    for step in (0, 1, 20, 40):
        torch.testing.assert_close(compiled(torch.tensor(step)), schedule(torch.tensor(step)))


@each_case
def test_an_unknown_length_leaves_the_rate_alone(name: str) -> None:
    schedule = CASES[name][0](0.1)
    assert [schedule(step) for step in STEPS] == [1.0] * len(STEPS)
    assert schedule(torch.tensor(5)).item() == 1.0


def test_refuses_what_has_no_meaning() -> None:
    with pytest.raises(ValueError, match=r"warmup must be a share .* got 1.0"):
        schedules.warmup_linear(1.0, 10)
    with pytest.raises(ValueError, match=r"warmup must be .* got -0.5"):
        schedules.warmup_constant(-0.5, 10)
    with pytest.raises(ValueError, match=r"t_total must be positive"):
        schedules.warmup_cosine(0.1, 0)
    with pytest.raises(ValueError, match=r"cycles must be at least 1, got 0.5"):
        schedules.warmup_cosine_with_hard_restarts(0.1, 10, cycles=0.5)
    with pytest.raises(ValueError, match=r"warmup \* cycles must be below 1, got 0.4 \* 3"):
        schedules.warmup_cosine_with_warmup_restarts(0.4, 10, cycles=3)
