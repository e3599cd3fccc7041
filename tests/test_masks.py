"""What a mask forbids has no say, however large the scores are, in any precision and derivative."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from allocations import peak_bytes
from families import FAMILIES, Family, make_batch, make_params
from torch import Tensor
from torch.func import grad, jvp

from fnlm import random, tree
from fnlm.layers.attention import attend, causal_mask, padding_bias
from fnlm.layers.relative_attention import attend_relative, attention_bias, causal_window_mask

# How large scores get: in float16 they end at 65504.
SIZES = {torch.float16: 5e4, torch.bfloat16: 1e9, torch.float32: 1e9, torch.float64: 1e40}
each_type = pytest.mark.parametrize("dtype", SIZES, ids=str)
HEADS, TOKENS, WIDTH = 2, 5, 4
REAL = torch.tensor([True, False, True, True, False])
NONE = torch.zeros(TOKENS, dtype=torch.bool)


def causal(q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
    """Let the token before the last attend: the last one is its future."""
    return attend(q, (k,), (v,), causal_mask(real, 2)[:, :1])


def padded(q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
    return attend(q, (k,), (v,), padding_bias(real, q.dtype))


def relative(q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
    """Let the last token attend to the last three, whatever is real."""
    r, zeros = (torch.zeros(HEADS, n, WIDTH, dtype=q.dtype) for n in (TOKENS + 1, 1))
    biases: dict[str, Any] = dict.fromkeys(("content_bias", "position_bias"), zeros[:, 0])
    return attend_relative(
        q, k, v, r, attention_bias(causal_window_mask(1, TOKENS, 3), q.dtype), **biases
    )


KINDS: dict[str, tuple[Callable[..., Tensor], list[int]]] = {  # and which keys are allowed
    "causal": (causal, [0, 2, 3]),
    "padding": (padded, [0, 2, 3]),
    "relative": (relative, [2, 3, 4]),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def drawn(size: float, allowed: list[int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """A query whose scores are -size for the keys that are allowed, and size for the others."""
    level = torch.ones(TOKENS, dtype=torch.float64)
    level[allowed] = -1
    q = torch.full((HEADS, 1, WIDTH), (size / WIDTH**0.5) ** 0.5, dtype=torch.float64)
    v = random.normal(random.key(0), (HEADS, TOKENS, WIDTH), torch.float64)
    return q.to(dtype), (level[:, None] * q).to(dtype), v.to(dtype)


@each_type
@each_kind
def test_keys_that_are_forbidden_have_no_weight(kind: str, dtype: torch.dtype) -> None:
    attention, allowed = KINDS[kind]
    q, k, v = drawn(SIZES[dtype], allowed, dtype)
    assert (q @ k.mT / WIDTH**0.5).abs().min() > 1e4
    expected = v[:, allowed].mean(1, keepdim=True)
    torch.testing.assert_close(attention(q, k, v, REAL), expected)


@each_type
@each_kind
@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("real", [REAL, NONE], ids=["some", "none"])
def test_derivatives_are_finite(kind: str, dtype: torch.dtype, size: str, real: Tensor) -> None:
    attention, allowed = KINDS[kind]
    x = drawn(SIZES[dtype] if size == "large" else 1.0, allowed, dtype)

    def loss(x: Any) -> Tensor:
        return attention(*x, real).sin().sum()

    def along(h: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda x: jvp(h, (x,), (tree.map(torch.ones_like, x),))[1]

    def slope(h: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda x: sum(part.sum() for part in grad(h)(x))

    for result in (
        loss(x), grad(loss)(x), along(loss)(x), along(grad(loss))(x), grad(along(loss))(x),
        along(along(loss))(x), grad(slope(loss))(x), along(grad(slope(loss)))(x),
    ):  # fmt: skip
        assert all(leaf.isfinite().all() for leaf in tree.leaves(result))


@pytest.mark.parametrize("kind", ["causal", "padding"])
@each_type
def test_without_an_allowed_key_all_count(kind: str, dtype: torch.dtype) -> None:
    """The weights of a causal row are equal then; padding alone is as if nothing were masked."""
    attention, allowed = KINDS[kind]
    q, k, v = drawn(1.0, allowed, dtype)
    weights = (q @ k.mT / WIDTH**0.5).softmax(-1) if kind == "padding" else torch.full_like(
        k[..., :1].mT, 1 / TOKENS
    )  # fmt: skip
    torch.testing.assert_close(attention(q, k, v, NONE), weights @ v)


SCALED = {"qkv", "q", "k"}  # the leaves, or their parents, that make scores


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_models_with_large_weights_do_not_look_ahead(family: Family) -> None:
    """Nor at padding: other ids there change nothing, bit for bit."""
    params = tree.map_with_path(
        lambda path, x: 1e3 * x if SCALED & set(path.split(".")) else x, make_params(family)
    )
    ids, _ = make_batch(family, rows=2)
    other = torch.cat([ids[:, :4], (ids[:, 4:] + 1) % 41], 1)
    mask = torch.arange(ids.shape[1]).expand(ids.shape) < 4
    task = family.tasks["hidden_states" if family.starts else "layers"]
    masked = None if family.starts else mask
    found, again = (tree.leaves(task(params, x, masked))[-1] for x in (ids, other))
    assert found[:, :4].equal(again[:, :4])
    assert not found[:, 4:].equal(again[:, 4:])


def test_a_mask_of_a_long_text_stays_one_of_bits() -> None:
    """Through two layers and back, in the fused kernel: no [T, S] floats where one bool serves all.

    The numbers that are added to the scores are made of a chunk of queries at a time.
    """
    tokens = 1024
    q, k, v = random.normal(random.key(0), (3, 1, 1, tokens, 4))
    mask = causal_mask(torch.ones(1, tokens, dtype=torch.bool), tokens)

    def loss(q: Tensor) -> Tensor:
        for _ in range(2):
            q = attend(q, (k,), (v,), mask, causal=True)
        return q.square().sum()

    assert peak_bytes(lambda: grad(loss)(q)) < 4 * tokens**2
