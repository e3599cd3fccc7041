"""Layers against formulas written out in numpy, in float64, for any leading dimensions."""

import math
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from torch import Tensor
from torch.func import grad, jvp, vmap

from fnlm import _causal as causal
from fnlm import heads, random
from fnlm.layers import attention
from fnlm.layers.activation import ACTIVATIONS, gelu_erf, gelu_tanh
from fnlm.layers.attention import (
    attend,
    causal_mask,
    merge_heads,
    padding_bias,
    split_heads,
)
from fnlm.layers.dropout import apply_mask, dropout
from fnlm.layers.embedding import check_range, lookup
from fnlm.layers.linear import linear
from fnlm.layers.mlp import mlp
from fnlm.layers.norm import layer_norm

LEADS: list[tuple[int, ...]] = [(), (3,), (2, 1, 3), (0,)]
any_lead = pytest.mark.parametrize("lead", LEADS, ids=str)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return random.normal(random.key(seed), shape, torch.float64)


def equal(found: Tensor, expected: Any, tolerance: float = 1e-12) -> None:
    assert tuple(found.shape) == np.shape(expected)
    np.testing.assert_allclose(found.numpy(), expected, atol=tolerance, rtol=tolerance)


@any_lead
def test_linear(lead: tuple[int, ...]) -> None:
    x, weight, bias = draw(*lead, 5), draw(5, 7, seed=1), draw(7, seed=2)
    expected = np.einsum("...i,io->...o", x.numpy(), weight.numpy()) + bias.numpy()
    equal(linear(x, weight, bias), expected)
    equal(linear(x, weight.mT.contiguous().mT, bias), expected)  # the other memory order


@any_lead
@pytest.mark.parametrize("eps", [1e-12, 1e-5, 0.1])
def test_layer_norm(lead: tuple[int, ...], eps: float) -> None:
    x, scale, bias = 3 * draw(*lead, 7) + 5, draw(7, seed=1), draw(7, seed=2)
    a = x.numpy()
    centred = a - a.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    expected = centred / deviation * scale.numpy() + bias.numpy()
    equal(layer_norm(x, scale, bias, eps=eps), expected, 1e-10)


def test_layer_norm_of_a_constant_row_is_the_bias() -> None:
    bias = draw(7)
    equal(layer_norm(torch.full((7,), 3.0).double(), draw(7), bias, eps=1e-5), bias)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_layer_norm_of_half_types_is_computed_in_float32(dtype: torch.dtype) -> None:
    """Where sums of squares leave the range of float16, the result is right to its last digits."""
    x, ones = (300 + 40 * draw(5, 64)).to(dtype), torch.ones(64, dtype=dtype)
    found = layer_norm(x, ones, 0 * ones, eps=1e-5)
    wide = layer_norm(x.float(), ones.float(), 0 * ones.float(), eps=1e-5)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), wide, atol=1e-3, rtol=2 * torch.finfo(dtype).eps)


def test_gelus_follow_their_formulas() -> None:
    x = torch.linspace(-9, 9, 1001, dtype=torch.float64)
    a = x.numpy()
    equal(gelu_erf(x), a * (1 + special.erf(a / math.sqrt(2))) / 2)
    inner = math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)
    equal(gelu_tanh(x), a * (1 + np.tanh(inner)) / 2)
    assert 1e-4 < (gelu_erf(x) - gelu_tanh(x)).abs().max() < 1e-3  # they are not the same


FORMULAS: dict[str, Callable[[Any], Any]] = {
    "gelu": lambda a: a * special.ndtr(a),
    "gelu_new": lambda a: a * special.expit(2 * math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)),
    "gelu_pytorch_tanh": lambda a: a * special.expit(1.5957691216057308 * (a + 0.044715 * a**3)),
    "relu": lambda a: np.maximum(a, 0),
    "silu": lambda a: a * special.expit(a),
    "swish": lambda a: a * special.expit(a),
    "tanh": np.tanh,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_named_activation_follows_its_formula(name: str) -> None:
    x = 3 * draw(200)
    equal(ACTIVATIONS[name](x), FORMULAS[name](x.numpy()))


@any_lead
def test_mlp(lead: tuple[int, ...]) -> None:
    x = draw(*lead, 5)
    up = {"weight": draw(5, 8, seed=1), "bias": draw(8, seed=2)}
    down = {"weight": draw(8, 5, seed=3), "bias": draw(5, seed=4)}
    inner = np.tanh(x.numpy() @ up["weight"].numpy() + up["bias"].numpy())
    expected = inner @ down["weight"].numpy() + down["bias"].numpy()
    equal(mlp(x, up, down, activation=torch.tanh), expected)


# Attention


@any_lead
@pytest.mark.parametrize("parts", [1, 3])
def test_heads_are_cut_side_by_side(lead: tuple[int, ...], parts: int) -> None:
    count, tokens, width = 3, 4, 2
    x = draw(*lead, tokens, parts * count * width)
    cut = split_heads(x, count, parts)
    assert cut.shape == (parts, *lead, count, tokens, width)
    for part in range(parts):
        for head in range(count):
            start = (part * count + head) * width
            assert cut[part][..., head, :, :].equal(x[..., start : start + width])
    for part, whole in zip(cut, x.chunk(parts, -1), strict=True):
        assert merge_heads(part).equal(whole)


@any_lead
@pytest.mark.parametrize("new", [0, 1, 3, 5])
def test_causal_mask_by_definition(lead: tuple[int, ...], new: int) -> None:
    valid = draw(*lead, 5) > -0.5
    found = causal_mask(valid, new)
    assert found.shape == (*lead, 1, new, 5) and found.dtype == torch.bool
    for t in range(new):
        for s in range(5):
            assert found[..., 0, t, s].equal(valid[..., s] & (s <= 5 - new + t))


def by_hand(q: Any, k: Any, v: Any, allowed: Any) -> Any:
    """Attention, with the scores that are not allowed at the lowest number."""
    scores = np.einsum("...td,...sd->...ts", q, k) / math.sqrt(q.shape[-1])
    scores = np.where(allowed, scores, np.finfo(np.float64).min)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("...ts,...sd->...td", weights, v)


@any_lead
def test_attend(lead: tuple[int, ...]) -> None:
    q, k, v = draw(*lead, 3, 4, 2), draw(*lead, 3, 6, 2, seed=1), draw(*lead, 3, 6, 2, seed=2)
    allowed = causal_mask(draw(*lead, 6, seed=3) > -0.5, 4)
    equal(attend(q, (k,), (v,), allowed), by_hand(*(x.numpy() for x in (q, k, v, allowed))))


@settings(max_examples=40)
@given(st.lists(st.integers(0, 9), max_size=4).map(sorted), st.integers(0, 3))
def test_pieces_of_any_sizes_equal_the_whole(cuts: list[int], seed: int) -> None:
    q, k, v = draw(2, 3, 4, 5), draw(2, 3, 9, 5, seed=seed + 1), draw(2, 3, 9, 5, seed=seed + 5)
    allowed = causal_mask(draw(2, 9, seed=seed) > -0.5, 4)
    bounds = list(pairwise([0, *cuts, 9]))
    keys, values = (tuple(x[..., a:b, :] for a, b in bounds) for x in (k, v))
    equal(attend(q, keys, values, allowed), attend(q, (k,), (v,), allowed).numpy())
    key = random.key(seed)
    found = attend(q, keys, values, allowed, rate=0.4, key=key)
    equal(found, attend(q, (k,), (v,), allowed, rate=0.4, key=key).numpy())


def test_a_row_without_any_allowed_key_stays_finite() -> None:
    """As in the reference, it takes the plain mean of all values."""
    q, k, v = draw(1, 2, 3), draw(1, 4, 3, seed=1), draw(1, 4, 3, seed=2)
    nothing = torch.zeros(1, 2, 4, dtype=torch.bool)
    equal(attend(q, (k,), (v,), nothing)[0], np.broadcast_to(v[0].mean(0).numpy(), (2, 3)))
    gradient = grad(lambda q: attend(q, (k,), (v,), nothing).sum())(q)
    assert gradient.eq(0).all()
    half = attend(q.half(), (k.half(),), (v.half(),), nothing)
    assert half.isfinite().all()


def test_masked_keys_change_nothing() -> None:
    q, k, v = draw(2, 4, 3), draw(2, 4, 3, seed=1), draw(2, 4, 3, seed=2)
    allowed = causal_mask(torch.tensor([True, False, True, True]), 4)
    before = attend(q, (k,), (v,), allowed)
    other = torch.where(torch.tensor([0, 1, 0, 0]).bool()[:, None], 50 * draw(2, 4, 3), k)
    assert attend(q, (other,), (v,), allowed).equal(before)
    later = v.clone()
    later[:, 3] = 9
    assert attend(q, (k,), (later,), allowed)[:, :3].equal(before[:, :3])


def test_attention_dropout_drops_weights_and_not_results() -> None:
    v = torch.eye(400).double()[None]  # so that the result is the matrix of weights
    q = torch.zeros(1, 3, 400).double()
    found = attend(q, (v,), (v,), torch.tensor(True), rate=0.25, key=random.key(0))
    values = found.unique()
    torch.testing.assert_close(values, torch.tensor([0, 1 / (400 * 0.75)]).double())
    assert found.eq(0).double().mean().item() == pytest.approx(0.25, abs=0.05)


# Slices of queries


@settings(max_examples=30)
@given(st.integers(1, 9), st.sampled_from([0, 3]), st.booleans(), st.integers(0, 9))
def test_causal_slices_equal_the_whole(size: int, cached: int, drops: bool, seed: int) -> None:
    """Values, gradients and their derivatives; dropout has the same bits in any slices."""
    x, direction = draw(2, 8, 6, seed=seed), draw(2, 8, 6, seed=seed + 1)
    valid = draw(2, cached + 8, seed=seed + 2) > -0.5
    valid[:, 0] = True  # so that every token sees something
    past = tuple((draw(2, 3, cached, 2, seed=s),) if cached else () for s in (1, 2))
    config = SimpleNamespace(n_head=3, attn_pdrop=0.3, resid_pdrop=0.0)
    params = {
        "qkv": {"weight": draw(6, 18, seed=7), "bias": draw(18, seed=8)},
        "out": {"weight": draw(6, 6, seed=9), "bias": draw(6)},
    }
    keys = (random.key(seed) if drops else None, None)

    def run(x: Tensor) -> Tensor:
        allowed = causal_mask(valid, x.shape[-2])
        return causal.attention(x, cast(Any, past), allowed, params, cast(Any, config), keys)[0]

    def number(x: Tensor) -> Tensor:
        return run(x).sin().sum()

    def second(x: Tensor) -> Tensor:
        return jvp(grad(number), (x,), (direction,))[1]

    whole, whole_second = run(x), second(x)
    with mock.patch.object(attention, "SLICE", size):
        equal(run(x), whole.numpy())
        equal(second(x), whole_second.numpy(), 1e-10)


@any_lead
@pytest.mark.parametrize("kind", ["none", "bias", "bool", "one for all"])
def test_slices_equal_the_whole_under_any_mask(lead: tuple[int, ...], kind: str) -> None:
    q, k, v = draw(*lead, 3, 7, 2), draw(*lead, 3, 6, 2, seed=1), draw(*lead, 3, 6, 2, seed=2)
    real = draw(*lead, 6, seed=3) > -0.5
    masks = {
        "none": None,
        "bias": padding_bias(real, torch.float64),
        "bool": real[..., None, None, :],
        "one for all": torch.tensor(True),
    }
    mask, key = masks[kind], random.key(0).expand(lead)
    whole = attend(q, (k,), (v,), mask, rate=0.3, key=key)
    with mock.patch.object(attention, "SLICE", 3):
        equal(attend(q, (k,), (v,), mask, rate=0.3, key=key), whole.numpy())
        first, second = ((x[..., :2, :], x[..., 2:, :]) for x in (k, v))
        equal(attend(q, first, second, mask, rate=0.3, key=key), whole.numpy())


def test_slices_under_vmap_equal_the_loop() -> None:
    x, keys = draw(4, 3, 6, 2), random.split(random.key(3), 4)
    mask = causal_mask(torch.ones(6).bool(), 6)

    def run(x: Tensor, key: Tensor) -> Tensor:
        return attend(x, (x,), (x,), mask, causal=True, rate=0.3, key=key)

    with mock.patch.object(attention, "SLICE", 2):
        together = vmap(run)(x, keys)
        rows = [run(*row) for row in zip(x, keys, strict=True)]
        equal(run(x, keys), together.numpy())
    equal(together, torch.stack(rows).numpy())


# Embeddings, dropout, heads


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3, 4)], ids=str)
def test_lookup_returns_rows(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    table = draw(9, 4)
    ids = torch.randint(9, shape).to(dtype)
    equal(lookup(table, ids), table.numpy()[ids.numpy()])


def test_lookup_names_what_is_out_of_range() -> None:
    table = draw(9, 4)
    for ids, low, high in ((torch.tensor([3, 9]), 3, 9), (torch.tensor([[-1, 4]]), -1, 4)):
        message = f"tokens must be at least 0 and less than 9.*from {low} to {high}"
        with pytest.raises(IndexError, match=message):
            lookup(table, ids, "tokens")
        with pytest.raises(IndexError, match=message):
            check_range(ids, 9, "tokens")
    with pytest.raises(TypeError, match=r"ids must be integers \(torch.int64\), got torch.float32"):
        lookup(table, torch.ones(2))
    check_range(torch.tensor([0, 8]), 9)
    check_range(torch.zeros(0, dtype=torch.int64), 9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_follows_the_bits_of_bernoulli(dtype: torch.dtype, rate: float) -> None:
    x, key = draw(40, 30).to(dtype), random.key(4)
    kept = random.bernoulli(key, 1 - rate, (40, 30))
    expected = np.where(kept.numpy(), x.double().numpy() / (1 - rate), 0)
    found = dropout(x, rate, key)
    assert found.dtype == dtype
    torch.testing.assert_close(found, torch.from_numpy(expected).to(dtype), atol=0, rtol=1e-2)
    if dtype == torch.float64:
        equal(found, expected)
    slope = grad(lambda x: dropout(x, rate, key).sum())(x)
    assert slope.ne(0).equal(kept)


def test_dropout_without_key_or_rate_is_the_identity() -> None:
    x = draw(3, 4)
    assert dropout(x, 0.5, None) is x and dropout(x, 0.0, random.key(0)) is x


def test_dropout_of_everything_is_zero_with_a_derivative_of_zero() -> None:
    """As torch's at rate 1, of what `dropout`, `kept` and `drop` give, and inside of attention."""
    x, key = torch.randn(4, 3), random.key(0)
    assert dropout(x, 1.0, key).equal(torch.nn.functional.dropout(x, 1.0))
    assert vmap(lambda x, key: dropout(x, 1, key))(x, random.split(key, 4)).equal(torch.zeros(4, 3))
    assert grad(lambda x: dropout(x, 1.0, key).sum())(x).equal(torch.zeros(4, 3))
    assert apply_mask(x, torch.zeros(4, 3, dtype=torch.bool), 1.0).equal(torch.zeros(4, 3))
    slope = grad(lambda x: attend(x, (x,), (x,), rate=1.0, key=key).sum())(x[None])
    assert slope.equal(torch.zeros(1, 4, 3))


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan"), float("inf")])
def test_rates_of_dropout_are_probabilities(rate: float) -> None:
    for key in (None, random.key(0)):
        with pytest.raises(ValueError, match=f"rate of dropout must be from 0 to 1, got {rate}"):
            dropout(torch.ones(3), rate, key)
        with pytest.raises(ValueError, match="rate of dropout"):
            attend(
                *(torch.ones(1, 2, 3), (torch.ones(1, 2, 3),), (torch.ones(1, 2, 3),)),
                rate=rate,
                key=key,
            )


def test_dropout_of_rows_with_their_own_keys() -> None:
    x, keys = draw(3, 4, 5), random.split(random.key(1), 3)
    loop = torch.stack([dropout(row, 0.5, key) for row, key in zip(x, keys, strict=True)])
    assert dropout(x, 0.5, keys).equal(loop)
    assert vmap(lambda x, key: dropout(x, 0.5, key))(x, keys).equal(loop)
    with pytest.raises(ValueError, match=r"\[4\] does not lead x of shape \[3, 4, 5\].*one key"):
        dropout(x, 0.5, random.split(keys[0], 4))


@any_lead
def test_tied_logits(lead: tuple[int, ...]) -> None:
    hidden, table = draw(*lead, 4, 5), draw(7, 5, seed=1)
    equal(heads.tied_logits(hidden, table), hidden.numpy() @ table.numpy().T)


@any_lead
def test_choice_logits_read_one_position_a_choice(lead: tuple[int, ...]) -> None:
    hidden, weight, bias = draw(*lead, 2, 6, 5), draw(5, 1, seed=1), draw(1, seed=2)
    positions = torch.randint(6, (*lead, 2))
    picked = np.take_along_axis(hidden.numpy(), positions.numpy()[..., None, None], -2)[..., 0, :]
    expected = picked @ weight.numpy()[:, 0] + bias.numpy()
    equal(heads.choice_logits(hidden, positions, weight, bias), expected)
