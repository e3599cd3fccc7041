"""Optimizers on half precision leaves: each step is the float64 step, rounded once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_optimizers import OPTIMIZERS, assert_equal_trees, copy
from torch import Tensor

from fnlm import random, tree
from fnlm.train import (
    AdamState,
    Optimizer,
    adamw,
    add_decayed_weights,
    bert_adam,
    chain,
    clip_by_global_norm,
    clip_per_tensor,
    correct_bias,
    decay_updated_weights,
    openai_adam,
    scale_by_adam,
    scale_by_schedule,
)
from fnlm.tree import Tree

HALF = (torch.float16, torch.bfloat16)
MAKE: dict[str, Callable[..., Optimizer]] = {
    "bert_adam": lambda **kwargs: bert_adam(1e-2, **kwargs),
    "openai_adam": lambda **kwargs: openai_adam(1e-2, **kwargs),
    "adamw": lambda **kwargs: adamw(1e-2, **kwargs),
    "chain": lambda weight_decay, max_grad_norm: chain(
        clip_by_global_norm(max_grad_norm),
        scale_by_adam(0.9, 0.99, 1e-8),
        scale_by_schedule(lambda step: 1e-2),
        decay_updated_weights(weight_decay, lambda step: 1e-2),
    ),
}


def leaves(seed: int, dtype: torch.dtype, scale: float = 1.0) -> Tree:
    """A matrix, a vector, a number and a float32 leaf; a quarter of the elements are 0."""
    keys = random.split(random.key(seed), 8)

    def make(i: int, shape: tuple[int, ...]) -> Tensor:
        wide = (scale * random.normal(keys[i], shape)).clamp(-6e4, 6e4)
        return torch.where(random.bernoulli(keys[i + 4], 0.25, shape), 0.0, wide)

    small = {"weight": make(0, (5, 3)), "bias": make(1, (7,)), "scale": make(2, ())}
    return tree.cast(small, dtype) | {"single": make(3, (4,))}


def assert_rounded(found: Tensor, exact: Tensor) -> None:
    """`found` is `exact` in its own type, or its neighbour where float32 rounded first."""
    target = exact.to(found.dtype)
    gap = torch.finfo(found.dtype).eps * target.double().abs().clamp_min(
        torch.finfo(found.dtype).smallest_normal
    )
    assert ((found.double() - target.double()).abs() <= gap + 1e-7).all(), (found, target)
    # Rounding twice is rare: what is off by a bit is not what is computed in the half type.
    if found.dtype in HALF:
        assert (found != target).sum() <= 1


@pytest.mark.parametrize("donate", [False, True], ids=["pure", "donated"])
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", MAKE)
@settings(max_examples=15)
@given(
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([1e-7, 1e-4, 1e-2, 1.0, 300.0, 2e4]),
    weight_decay=st.sampled_from([0.0, 0.1]),
    max_grad_norm=st.sampled_from([-1.0, 0.5]),
)
def test_a_step_is_that_of_float64_rounded_once(
    name: str,
    dtype: torch.dtype,
    donate: bool,
    seed: int,
    scale: float,
    weight_decay: float,
    max_grad_norm: float,
) -> None:
    """From the same state, three times: gradients of every size that a half type has, and 0."""
    optimizer = MAKE[name](weight_decay=weight_decay, max_grad_norm=max_grad_norm)
    params = leaves(seed, dtype)
    state = optimizer.init(params)
    for step in range(3):
        grads = leaves(seed + 1 + step, dtype, scale)
        exact, exact_state = optimizer.update(
            *(tree.cast(x, torch.float64) for x in (grads, state, params))
        )
        params, state = optimizer.update(grads, state, params, donate=donate)
        assert [x.dtype for x in tree.leaves(params)] == [dtype] * 3 + [torch.float32]
        for found, wanted in zip(tree.leaves(params), tree.leaves(exact), strict=True):
            if found.dtype == torch.float32:
                torch.testing.assert_close(found, wanted.float(), rtol=1e-6, atol=1e-6)
            else:
                assert_rounded(found, wanted)
        for (path, found), wanted in zip(
            tree.named_leaves(state), tree.leaves(exact_state), strict=True
        ):
            if found.is_floating_point():
                near = 1e-6 * scale if ".mu." in path else 0.0  # terms of a sum may cancel
                assert found.dtype == torch.float32
                torch.testing.assert_close(found.double(), wanted, rtol=3e-6, atol=near)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_donated_equals_pure_in_half_precision_and_uses_the_same_memory(
    name: str, dtype: torch.dtype
) -> None:
    optimizer = OPTIMIZERS[name](0.01)
    params, donated = leaves(0, dtype), leaves(0, dtype)
    state, donated_state = optimizer.init(params), optimizer.init(donated)
    for step in range(20):
        before = [leaf.data_ptr() for leaf in tree.leaves((donated, donated_state))]
        grads = leaves(step + 1, dtype, 0.1)
        params, state = optimizer.update(grads, state, params)
        donated, donated_state = optimizer.update(copy(grads), donated_state, donated, donate=True)
        assert [leaf.data_ptr() for leaf in tree.leaves((donated, donated_state))] == before
    assert_equal_trees(donated, params, torch.finfo(dtype).eps)
    assert_equal_trees(donated_state, state, 1e-5)


@pytest.mark.parametrize("make", [bert_adam, openai_adam, adamw])
def test_without_eps_the_two_ways_agree(make: Any) -> None:
    """0 / 0 is 0: an unused row moves in neither; nor does full decay get lost in one of them."""
    for kwargs in ({"eps": 0.0, "weight_decay": 0.0}, {"weight_decay": 2.0}):
        optimizer, params = make(0.5, **kwargs), {"w": torch.ones(2, 2)}
        grads = {"w": torch.tensor([[0.0, 0.5], [0.0, -0.5]])}
        pure, _ = optimizer.update(grads, optimizer.init(params), params)
        donated, _ = optimizer.update(
            copy(grads), optimizer.init(params), copy(params), donate=True
        )
        assert torch.isfinite(pure["w"]).all()
        assert_equal_trees(donated, pure, 1e-6)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_norms_and_clips_are_those_of_float32(dtype: torch.dtype) -> None:
    """Also where the sum of squares, or the norm, is past the largest number of the type."""
    grads = {"a": torch.full((4,), 4e4, dtype=dtype), "b": torch.full((9,), 1e-4, dtype=dtype)}
    wide = tree.cast(grads, torch.float32)
    assert torch.equal(tree.norm(grads), tree.norm(wide))
    count = torch.tensor(0)
    for link in (clip_by_global_norm(0.5), clip_per_tensor(0.5), correct_bias(0.9, 0.999)):
        found, expected = (link.update(g, (), {}, count)[0] for g in (grads, wide))
        for a, b in zip(tree.leaves(found), tree.leaves(expected), strict=True):
            torch.testing.assert_close(a.float(), b, rtol=2 * torch.finfo(dtype).eps, atol=1e-7)
    assert (
        torch.linalg.vector_norm(clip_by_global_norm(0.5).update(wide, (), {}, count)[0]["a"])
        == 0.5
    )


WRONG: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: adamw(float("nan")), ValueError, "lr must be a finite number, got nan"),
    (lambda: adamw(float("inf")), ValueError, "lr must be a finite number, got inf"),
    (lambda: bert_adam(0.1, weight_decay=-1.0), ValueError, "weight_decay must not be negative"),
    (lambda: adamw(0.1, weight_decay=float("nan")), ValueError, "weight_decay must be a finite"),
    (lambda: openai_adam(0.1, weight_decay=-1), ValueError, "weight_decay must not be negative"),
    (lambda: adamw(0.1, eps=float("nan")), ValueError, "eps must be a finite number"),
    (lambda: adamw(0.1, b1=float("nan")), ValueError, r"b1 must be in \[0, 1\), got nan"),
    (lambda: adamw(0.1, max_grad_norm=float("nan")), ValueError, "max_grad_norm must be a number"),
    (lambda: clip_by_global_norm(float("nan")), ValueError, "max_norm must be a number"),
    (lambda: clip_per_tensor(float("nan")), ValueError, "max_norm must be a number"),
    (lambda: scale_by_adam(1.0), ValueError, r"b1 must be in \[0, 1\), got 1.0"),
    (lambda: scale_by_adam(eps=-1.0), ValueError, "eps must not be negative"),
    (lambda: correct_bias(0.9, 1.5), ValueError, r"b2 must be in \[0, 1\), got 1.5"),
    (lambda: add_decayed_weights(-0.1), ValueError, "weight_decay must not be negative"),
    (lambda: decay_updated_weights(float("inf"), lambda step: 0.1), ValueError, "weight_decay"),
]


@pytest.mark.parametrize(("make", "error", "message"), WRONG)
def test_rates_without_meaning_are_named(
    make: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("donate", [False, True], ids=["pure", "donated"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_invalid_gradients_and_states_are_named(name: str, donate: bool) -> None:
    optimizer: Any = OPTIMIZERS[name](0.1)
    params = {"used": torch.ones(2), "unused": torch.ones(2)}
    state = optimizer.init(params)
    for wrong in (None, 0.0):
        with pytest.raises(TypeError, match=rf"{wrong} at 'unused'.*give zeros.*partition"):
            optimizer.update({"used": torch.ones(2), "unused": wrong}, state, params, donate=donate)
    with pytest.raises(TypeError, match=r"state must be what .*got dict; the order is"):
        optimizer.update(params, params, state, donate=donate)


def test_states_of_half_precision_start_in_float32() -> None:
    params = {"w": torch.zeros(2, 3, dtype=torch.float16).T}
    for name in ("bert_adam", "openai_adam", "adamw"):
        state = OPTIMIZERS[name](0.1).init(params)
        adam = next(link for link in state.links if isinstance(link, AdamState))
        assert adam.mu["w"].dtype == adam.nu["w"].dtype == torch.float32
        assert adam.mu["w"].stride() == params["w"].stride()
