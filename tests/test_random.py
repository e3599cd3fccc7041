"""Keys: the same bits however they are batched, and numbers that pass for random."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.func import vmap

from fnlm import random
from fnlm.layers.dropout import dropout

N = 1 << 17


def draws(n: int = N, seed: int = 0) -> np.ndarray:
    return random.uniform(random.key(seed), (n,)).numpy().astype(np.float64)


@pytest.mark.parametrize(
    "draw",
    [
        lambda k: random.uniform(k, (3, 5)),
        lambda k: random.uniform(k, (3, 5), torch.float64),
        lambda k: random.normal(k, (3, 5)),
        lambda k: random.bernoulli(k, 0.3, (3, 5)),
        lambda k: random.gumbel(k, (7,)),
        lambda k: random.split(k, 4),
        lambda k: random.fold_in(k, 3),
        lambda k: dropout(torch.ones(*k.shape, 4, 3), 0.5, k),
    ],
)
def test_same_bits_in_a_loop_under_vmap_in_chunks_and_batched(
    draw: Callable[[Tensor], Tensor],
) -> None:
    keys = random.split(random.key(1), 6)
    loop = torch.stack([draw(k) for k in keys])
    assert vmap(draw)(keys).equal(loop)
    assert vmap(draw, chunk_size=4)(keys).equal(loop)
    assert draw(keys).equal(loop)
    assert draw(keys.view(2, 3)).equal(loop.view(2, 3, *loop.shape[1:]))


def test_a_shared_key_under_vmap_gives_every_row_the_same_mask() -> None:
    x, key = torch.ones(5, 4, 3), random.key(0)
    rows = vmap(lambda x: dropout(x, 0.5, key))(x)
    assert rows.equal(dropout(x[0], 0.5, key).expand(5, 4, 3))


def test_bits_are_pinned() -> None:
    """Saved runs resume only while these stay: changing them is a breaking change."""
    key = random.key(42)
    assert key.item() == -4767286540954276203
    assert random.split(key, 2).tolist() == [-4204815582636234286, 7040222520599051659]
    assert random.fold_in(key, 7).item() == 8969934389308427748
    assert (random.uniform(key, (3,)) * 2**24).tolist() == [11170724.0, 692684.0, 16323040.0]


def test_more_keys_do_not_change_the_first_ones() -> None:
    assert random.split(random.key(0), 3).equal(random.split(random.key(0), 9)[:3])


def test_derived_keys_never_meet() -> None:
    keys = [random.split(random.key(s), 4096) for s in range(8)]
    folded = [random.fold_in(random.key(s), torch.arange(4096)) for s in range(8)]
    seeds = [torch.stack([random.key(s) for s in range(4096)])]
    everything = torch.cat([*keys, *folded, *seeds])
    assert everything.unique().numel() == everything.numel()


def test_uniform_is_uniform() -> None:
    for seed in range(4):
        u = draws(seed=seed)
        assert 0 <= u.min() and u.max() < 1
        assert stats.kstest(u, "uniform").pvalue > 1e-4
        counts = np.histogram(u, 1024, (0, 1))[0]
        assert stats.chisquare(counts).pvalue > 1e-4


def test_every_bit_is_fair_and_independent_of_its_neighbours() -> None:
    words = (draws() * 2**24).astype(np.int64)
    bits = (words[:, None] >> np.arange(24)) & 1
    z = (bits.mean(0) - 0.5) * 2 * np.sqrt(len(words))
    assert np.abs(z).max() < 5
    correlations = np.corrcoef(bits.T)[np.triu_indices(24, 1)] * np.sqrt(len(words))
    assert np.abs(correlations).max() < 5


def test_neighbouring_counters_are_independent() -> None:
    u = draws() - 0.5
    for lag in (1, 2, 3, 4, 64, 768, 1024):
        z = (u[:-lag] * u[lag:]).mean() * 12 * np.sqrt(len(u) - lag)
        assert abs(z) < 5, lag
    pairs = np.histogram2d(u[:-1:2], u[1::2], 32)[0].ravel()
    assert stats.chisquare(pairs).pvalue > 1e-4


def test_neighbouring_keys_are_independent() -> None:
    families = [
        [random.key(s) for s in range(9)],
        list(random.split(random.key(0), 9)),
        [random.fold_in(random.key(0), i) for i in range(9)],
        [torch.tensor(5), torch.tensor(6), torch.tensor(5 + (1 << 32)), torch.tensor(4)],
    ]
    for keys in families:
        for a, b in pairwise(keys):
            x, y = (random.uniform(k, (N,)).numpy() - 0.5 for k in (a, b))
            assert abs((x * y).mean() * 12 * np.sqrt(N)) < 5
            for lag in (1, 2):  # one stream is no shifted copy of the other
                assert abs((x[lag:] * y[:-lag]).mean() * 12 * np.sqrt(N)) < 5


def test_a_number_does_not_depend_on_the_size_of_the_draw() -> None:
    assert random.uniform(random.key(0), (100,))[:10].equal(random.uniform(random.key(0), (10,)))


def test_large_draws_are_hashed_in_blocks_that_change_no_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys, size = random.split(random.key(1), 2), 2 * random._BLOCK + 77
    draws = random.uniform(keys, (size,)), vmap(lambda k: random.uniform(k, (size,)))(keys)
    monkeypatch.setattr(random, "_BLOCK", size)
    assert all(draw.equal(random.uniform(keys, (size,))) for draw in draws)


def test_normal_is_normal() -> None:
    for dtype in (torch.float32, torch.float64):
        x = random.normal(random.key(2), (N,), dtype)
        assert x.dtype == dtype
        assert stats.kstest(x.double().numpy(), "norm").pvalue > 1e-4
        assert stats.kurtosistest(x.double().numpy()).pvalue > 1e-4


def test_float64_draws_use_all_53_bits() -> None:
    u = random.uniform(random.key(0), (4096,), torch.float64)
    assert ((u * 2**53) % 2 == 1).float().mean().sub(0.5).abs() < 0.05
    assert 0 <= u.min() and u.max() < 1


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_bernoulli_has_its_probability(p: float) -> None:
    hits = int(random.bernoulli(random.key(3), p, (N,)).sum())
    if p in (0.0, 1.0):
        assert hits == N * p
    else:
        assert stats.binomtest(hits, N, p).pvalue > 1e-4


def test_categorical_follows_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, -2.0, -torch.inf, 3.0])
    picks = random.categorical(random.split(random.key(4), N), logits.expand(N, 5))
    counts = picks.bincount(minlength=5).numpy()
    assert counts[3] == 0
    expected = logits.softmax(0).numpy().astype(np.float64)
    keep = expected > 0
    expected = expected[keep] / expected[keep].sum() * N
    assert stats.chisquare(counts[keep], expected).pvalue > 1e-4


def test_dropout_keeps_the_mean_and_the_rate() -> None:
    x = torch.ones(N)
    y = dropout(x, 0.3, random.key(5))
    assert stats.binomtest(int((y == 0).sum()), N, 0.3).pvalue > 1e-4
    torch.testing.assert_close(y.unique(), torch.tensor([0, 1 / 0.7]))
    assert dropout(x, 0.3, None) is x


def test_global_generators_are_neither_read_nor_written() -> None:
    state = torch.get_rng_state()
    first = random.normal(random.key(0), (5,))
    assert torch.get_rng_state().equal(state)
    torch.manual_seed(123)
    assert random.normal(random.key(0), (5,)).equal(first)


def test_misuse_is_named() -> None:
    with pytest.raises(TypeError, match="key must be .* got 3"):
        random.uniform(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="float32"):
        random.uniform(torch.zeros(()))
    with pytest.raises(ValueError, match="64 signed bits"):
        random.key(1 << 63)
    with pytest.raises(ValueError, match="probability, got 1.5"):
        random.bernoulli(random.key(0), 1.5)
    with pytest.raises(ValueError, match=r"\[3\].*\[2, 5\]"):
        random.categorical(random.split(random.key(0), 3), torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"\[3\].*\[2, 5\]"):
        dropout(torch.zeros(2, 5), 0.5, random.split(random.key(0), 3))
