"""Adaptive layers: against formulas written out, one road against the other, and the sampling."""

import math
from typing import Any

import pytest
import torch
from families import TRANSFO_XL, make_params
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import ppb
from scipy import stats
from torch import Tensor
from torch.func import grad, vmap

from fnlm import _adaptive_vocabulary as vocabulary
from fnlm import random, transfo_xl, tree
from fnlm.layers.adaptive_softmax import (
    Cluster,
    adaptive_embedding,
    adaptive_log_softmax,
    adaptive_nll,
    draw_words,
    sampled_nll,
)

SIZES, WIDTHS, D = (5, 3, 4), (6, 4, 1), 6
V = sum(SIZES)


def make_clusters(dtype: torch.dtype = torch.float64) -> tuple[list[Cluster], Cluster]:
    """Three clusters, the first of the model's width and without a projection, and two gates."""
    keys = iter(random.split(random.key(1), 20))

    def draw(*shape: int) -> Tensor:
        return random.normal(next(keys), shape, dtype)

    clusters = [
        Cluster(draw(n, width), draw(n), draw(width, D) if width != D else None)
        for n, width in zip(SIZES, WIDTHS, strict=True)
    ]
    return clusters, Cluster(draw(2, WIDTHS[0]), draw(2))


def probabilities(h: list[float], clusters: list[Cluster], gates: Cluster) -> list[float]:
    """The distribution over the words after one hidden state, in plain Python."""

    def scores(cluster: Cluster, projection: Tensor | None) -> list[float]:
        assert cluster.bias is not None
        p = torch.eye(D).tolist() if projection is None else projection.tolist()
        x = [sum(a * b for a, b in zip(row, h, strict=True)) for row in p]
        rows = zip(cluster.table.tolist(), cluster.bias.tolist(), strict=True)
        return [sum(a * b for a, b in zip(row, x, strict=True)) + b for row, b in rows]

    def softmax(xs: list[float]) -> list[float]:
        total = math.fsum(math.exp(x) for x in xs)
        return [math.exp(x) / total for x in xs]

    first = clusters[0]
    head = softmax(scores(first, first.projection) + scores(gates, first.projection))
    result = head[: SIZES[0]]
    for gate, cluster in enumerate(clusters[1:]):
        inner = softmax(scores(cluster, cluster.projection))
        result += [head[SIZES[0] + gate] * p for p in inner]
    return result


def test_log_probabilities_follow_the_formula() -> None:
    clusters, gates = make_clusters()
    hidden = random.normal(random.key(2), (2, 3, D), torch.float64)
    found = adaptive_log_softmax(hidden, clusters, gates)
    assert found.shape == (2, 3, V)
    for row, h in zip(found.reshape(-1, V), hidden.reshape(-1, D), strict=True):
        expected = torch.tensor(probabilities(h.tolist(), clusters, gates), dtype=torch.float64)
        torch.testing.assert_close(row.exp(), expected, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(2, 3).double())


ids_of = st.lists(st.integers(0, V - 1), max_size=9)  # any mixture of clusters, none at all too


@settings(max_examples=60)
@given(ids_of, st.sampled_from([torch.float32, torch.float64]))
def test_losses_and_gradients_of_both_roads_are_those_of_the_log_probabilities(
    words: list[int], dtype: torch.dtype
) -> None:
    clusters, gates = make_clusters(dtype)
    ids = torch.tensor(words, dtype=torch.int64)
    hidden = random.normal(random.key(len(words)), (len(words), D), dtype)
    weights = random.normal(random.key(9), (len(words),), dtype)
    tensors = ([tuple(x for x in c if x is not None) for c in clusters], gates[:2], hidden)

    def run(which: str, leaves: Any) -> Tensor:
        rows, (table, bias), hidden = leaves
        clusters = [Cluster(*row) for row in rows]
        doors = Cluster(table, bias)
        if which == "all":
            scores = adaptive_log_softmax(hidden, clusters, doors)
            return -scores.gather(-1, ids[:, None])[:, 0]
        return adaptive_nll(hidden, ids, clusters, doors, sparse=which == "sparse")

    def total(which: str, leaves: Any) -> Tensor:
        return (run(which, leaves) * weights).sum()

    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    expected = run("all", tensors)
    gradient = grad(lambda t: total("all", t))(tensors)
    for which in ("dense", "sparse"):
        torch.testing.assert_close(run(which, tensors), expected, atol=5e-6, rtol=tolerance)
        found = grad(lambda t, which=which: total(which, t))(tensors)
        for a, b in zip(tree.leaves(found), tree.leaves(gradient), strict=True):
            scale = b.abs().max().clamp(min=1) if b.numel() else 1.0
            assert ((a - b).abs() <= 4 * tolerance * scale).all()


@settings(max_examples=60)
@given(ids_of)
def test_both_roads_of_the_embedding_are_rows_of_the_tables(words: list[int]) -> None:
    clusters, _ = make_clusters()
    ids = torch.tensor(words, dtype=torch.int64).view(1, -1)
    whole = torch.cat(
        [c.table if c.projection is None else c.table @ c.projection for c in clusters]
    )
    tables = [c.table for c in clusters]

    def embed(tables: list[Tensor], sparse: bool) -> Tensor:
        replaced = [c._replace(table=t) for c, t in zip(clusters, tables, strict=True)]
        return adaptive_embedding(ids, replaced, sparse=sparse)

    gradients = []
    for sparse in (False, True):
        torch.testing.assert_close(embed(tables, sparse), whole[ids])
        gradients.append(grad(lambda t, sparse=sparse: embed(t, sparse).sin().sum())(tables))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def test_leading_dimensions_are_any() -> None:
    clusters, gates = make_clusters()
    for lead in ((), (3,), (2, 1, 3), (0,)):
        ids = torch.randint(V, lead)
        hidden = torch.randn(*lead, D, dtype=torch.float64)
        scores = adaptive_log_softmax(hidden, clusters, gates)
        assert scores.shape == (*lead, V)
        for sparse in (False, True):
            assert adaptive_embedding(ids, clusters, sparse=sparse).shape == (*lead, D)
            losses = adaptive_nll(hidden, ids, clusters, gates, sparse=sparse)
            torch.testing.assert_close(losses, -scores.gather(-1, ids[..., None])[..., 0])


def test_the_sparse_road_touches_only_the_clusters_in_use() -> None:
    clusters, gates = make_clusters()
    poisoned = [clusters[0], Cluster(*(x * torch.nan for x in clusters[1] if x is not None))]
    poisoned.append(clusters[2])
    ids = torch.tensor([0, 9, 4, 11])  # none of the second cluster
    hidden = torch.randn(4, D, dtype=torch.float64)
    assert adaptive_embedding(ids, poisoned, sparse=True).isfinite().all()
    assert adaptive_nll(hidden, ids, poisoned, gates, sparse=True).isfinite().all()


def test_ids_are_integers_of_either_size() -> None:
    clusters, gates = make_clusters()
    ids, hidden = torch.tensor([2, 9]), torch.randn(2, D, dtype=torch.float64)
    for sparse in (False, True):
        losses = [adaptive_nll(hidden, x, clusters, gates, sparse=sparse) for x in (ids, ids.int())]
        assert losses[0].equal(losses[1])
    with pytest.raises(TypeError, match=r"targets must be integers .*float32"):
        adaptive_nll(hidden, ids.float(), clusters, gates)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("bad", [-1, V, V + 7])
def test_ids_out_of_range_are_named(bad: int, sparse: bool) -> None:
    clusters, gates = make_clusters()
    ids, hidden = torch.tensor([2, bad]), torch.zeros(2, D, dtype=torch.float64)
    with pytest.raises(IndexError, match=f"ids must be at least 0 and less than {V}; got .*{bad}"):
        adaptive_embedding(ids, clusters, sparse=sparse)
    with pytest.raises(IndexError, match=f"targets must .* less than {V}; got .*{bad}"):
        adaptive_nll(hidden, ids, clusters, gates, sparse=sparse)
    with pytest.raises((IndexError, RuntimeError)):  # values can't be read here, the kernel can
        vmap(lambda i: adaptive_embedding(i, clusters))(ids)


def test_words_are_drawn_from_the_log_uniform_distribution() -> None:
    drawn = draw_words(random.key(3), 40_000, 50)
    expected = [40_000 * math.log((k + 2) / (k + 1)) / math.log(51) for k in range(50)]
    assert stats.chisquare(drawn.bincount(minlength=50).tolist(), expected).pvalue > 1e-4
    assert draw_words(random.split(random.key(3), 6), 4, 50).shape == (6, 4)
    assert draw_words(random.key(3), 10_000, 1).eq(0).all()


def test_the_sampled_softmax_equals_pytorch_pretrained_bert_for_the_same_draws() -> None:
    """Its function is given our distinct draws, and the chances that its own words describe.

    Its sampler draws from a global generator, and has 1 - (1 + p)^-n for 1 - (1 - p)^n.
    """
    utilities = __import__(f"{ppb().__name__}.modeling_transfo_xl_utilities", fromlist=["x"])
    table, bias = torch.randn(50, 6), torch.randn(50)
    hidden, targets, key = torch.randn(2, 7, 6), torch.randint(8, (2, 7)), random.key(4)
    drawn = draw_words(key, 2 * 9, 50).unique()
    sampler = utilities.LogUniformSampler(50, 9)
    sampler.log_q = (1 - (1 - sampler.dist.double()) ** 18).log().float()
    sampler.sample = lambda labels: (sampler.log_q[labels], sampler.log_q[drawn], drawn)
    embedding = torch.nn.Embedding.from_pretrained(table)
    logits = utilities.sample_logits(embedding, bias, targets, hidden, sampler)
    assert (targets[..., None] == drawn).any(), "no target among the words drawn"
    expected = -logits.log_softmax(-1)[..., 0]
    found = sampled_nll(hidden, targets, Cluster(table, bias), 9, key=key)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_sampled_softmax_has_a_set_of_words_for_each_key() -> None:
    words = Cluster(torch.randn(50, 4), torch.randn(50), torch.randn(4, 6))
    hidden, targets = torch.randn(3, 2, 5, 6), torch.randint(50, (3, 2, 5))
    keys = random.split(random.key(5), 3)

    def run(hidden: Tensor, targets: Tensor, key: Tensor) -> Tensor:
        return sampled_nll(hidden, targets, words, 9, key=key)

    loop = [run(*row) for row in zip(hidden, targets, keys, strict=True)]
    torch.testing.assert_close(run(hidden, targets, keys), torch.stack(loop))
    torch.testing.assert_close(vmap(run)(hidden, targets, keys), torch.stack(loop))


def test_training_with_sampled_words_lowers_the_exact_loss() -> None:
    config = transfo_xl.Config(
        n_token=41, cutoffs=(), div_val=1, d_model=12, d_embed=12, n_head=2, d_head=5, d_inner=9,
        n_layer=1, mem_len=4, sample_softmax=8, dropout=0.0, init_std=0.1,
    )  # fmt: skip
    params = transfo_xl.init(config, random.key(0))
    ids = random.categorical(random.key(1), -torch.arange(41.0).expand(4, 13, 41) / 8)

    def loss(params: Any, key: Tensor | None) -> Tensor:
        nll = transfo_xl.negative_log_likelihood
        return nll(params, ids[:, :-1], ids[:, 1:], key=key)[0].mean()

    before = loss(params, None)
    scores, _ = transfo_xl.apply(params, ids[:, :-1])
    exact = -scores.gather(-1, ids[:, 1:, None]).mean()
    torch.testing.assert_close(before, exact)
    assert loss(params, random.key(2)) != before
    for key in random.split(random.key(3), 30).unbind(0):
        gradient = grad(loss)(params, key)
        params = tree.map(lambda x, g: x - 0.3 * g, params, gradient)
    assert loss(params, None) < before - 0.3


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("div_val", [1, 2])
def test_ties_are_leaves_used_twice(div_val: int, tied: bool) -> None:
    """A tied table has no copy, and its gradient sums both uses."""
    values = TRANSFO_XL.config.to_dict() | {
        "div_val": div_val, "tie_weight": tied, "tie_projs": [tied] * 3,
    }  # fmt: skip
    config = transfo_xl.Config.from_dict(values)
    params = make_params(TRANSFO_XL._replace(config=config))
    names = {path for path, _ in tree.named_leaves(params)}
    assert ("softmax.cluster_0.table" in names) is not tied
    assert ("softmax.cluster_2.projection" in names) is not tied
    words = vocabulary.embedding_clusters(params)
    clusters, _ = vocabulary.softmax_clusters(params)
    assert [len(c.table) for c in clusters] == [11, 13, 17]
    if tied:
        home = words[0] if div_val == 1 else words[2]
        assert clusters[2].projection is home.projection


def test_vectors_as_wide_as_the_model_may_go_without_projection() -> None:
    """As in the release lm1b: `proj_same_dim` False."""
    values = TRANSFO_XL.config.to_dict() | {"d_embed": 36, "proj_same_dim": False}
    params = make_params(TRANSFO_XL._replace(config=transfo_xl.Config.from_dict(values)))
    assert list(params["embed"]["cluster_0"]) == ["table"]
    assert "projection" in params["embed"]["cluster_1"]
    scores, _ = transfo_xl.apply(params, torch.tensor([[1, 20, 40]]))
    torch.testing.assert_close(scores.exp().sum(-1), torch.ones(1, 3))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cutoffs": (24, 11)}, ["cutoffs", "rise"]),
        ({"cutoffs": (11, 41)}, ["cutoffs", "n_token=41"]),
        ({"div_val": 5}, ["d_embed=20", "div_val"]),
        ({"div_val": 0}, ["div_val", "0"]),
        ({"tie_projs": (True, False)}, ["tie_projs", "3 clusters"]),
        ({"sample_softmax": 5}, ["sample_softmax", "cutoffs=()"]),
    ],
)
def test_vocabularies_that_cannot_be_are_named(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        transfo_xl.Config.from_dict(TRANSFO_XL.config.to_dict() | changes)
    assert all(word in str(caught.value) for word in words)
