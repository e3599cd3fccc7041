"""Adaptive input embeddings and softmax: frequent words get wide vectors, rare words narrow ones.

The vocabulary, most frequent words first, is cut into clusters of consecutive ids. The words of the
first cluster compete with each other and with one gate for each other cluster; the words of another
cluster share the probability of its gate.

Two roads compute the same numbers. The dense one has no shape that depends on data, so every
transform knows it; it scores each token in every cluster. The sparse one gathers the tokens of each
cluster, and touches no cluster that is not in use; `vmap` and whole-graph compilation refuse it.

Dimensions: T tokens, V vocabulary, D width of the model, n words of a cluster, E width of its
vectors, G gates (the clusters but one).

Sources: Grave et al. 2016, "Efficient softmax approximation for GPUs"; Baevski and Auli 2018,
"Adaptive Input Representations for Neural Language Modeling"; pytorch-pretrained-bert 0.6.2,
`modeling_transfo_xl_utilities.py`. Deviations: losses come in the order of the targets, where the
reference returns those of the first cluster first; the chance that n draws include a word of
probability p is 1 - (1 - p)^n, where the reference has 1 - (1 + p)^-n.
"""

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from fnlm import random
from fnlm.layers._inputs import readable
from fnlm.layers.embedding import check_range, lookup
from fnlm.layers.linear import linear

__all__ = [
    "Cluster", "adaptive_embedding", "adaptive_log_softmax", "adaptive_nll", "draw_words",
    "sampled_nll",
]  # fmt: skip

EXCLUDED_SCORE = -1e30  # of a sampled word that must not count


class Cluster(NamedTuple):
    """The words of consecutive ids."""

    table: Tensor  # [n, E]
    bias: Tensor | None = None  # [n]; an embedding has none
    projection: Tensor | None = None  # [E, D]; None where E = D needs no change


def adaptive_embedding(
    ids: Tensor, clusters: Sequence[Cluster], *, sparse: bool = False, name: str = "ids"
) -> Tensor:
    """Return table[id] @ projection, from the table and projection of each word's cluster.

    Args:
        ids: int64 [...], each 0 <= id < V.
        clusters: their tables have V rows together.
        sparse: which road (see above).
        name: what an error calls `ids`.

    Returns:
        [..., D].

    Raises:
        IndexError: an id is out of range (on CPU).

    >>> wide, narrow = Cluster(torch.eye(2)), Cluster(torch.ones(3, 1), None, torch.ones(1, 2))
    >>> adaptive_embedding(torch.tensor([1, 4]), [wide, narrow])
    tensor([[0., 1.],
            [1., 1.]])
    """
    _check(ids, clusters, name)
    if not ids.ndim:
        return adaptive_embedding(ids[None], clusters, sparse=sparse, name=name)[0]
    if len(clusters) == 1:
        return _projected(lookup(clusters[0].table, ids, name), clusters[0].projection)
    result: Tensor | None = None
    for cluster, start, inside in _members(ids, clusters):
        local = _local(ids, start, inside, sparse)
        found = _projected(lookup(cluster.table, local, name), cluster.projection)
        if result is None:
            result = found.new_zeros(*ids.shape, found.shape[-1])
        result = _put(result, inside, found, sparse)
    assert result is not None  # there is a cluster
    return result


def adaptive_log_softmax(
    hidden: Tensor, clusters: Sequence[Cluster], gates: Cluster | None = None
) -> Tensor:
    """Return the log-probability of every word.

    Args:
        hidden: [..., D].
        clusters: with biases; they have V words together.
        gates: one row for each cluster but the first, as wide as the first cluster's; its
            projection is that of the first cluster.

    Returns:
        [..., V].

    >>> words, rare = torch.zeros(2, 4), torch.zeros(3, 4)
    >>> clusters = [Cluster(words, torch.zeros(2)), Cluster(rare, torch.zeros(3))]
    >>> gates = Cluster(torch.zeros(1, 4), torch.zeros(1))
    >>> adaptive_log_softmax(torch.ones(4), clusters, gates).exp()
    tensor([0.3333, 0.3333, 0.1111, 0.1111, 0.1111])
    """
    words, doors = _head(hidden, clusters[0], gates)
    total = _logsumexp(words, doors)[..., None]
    open_doors = (doors - total).split(1, -1)
    tails = [_scores(hidden, cluster).log_softmax(-1) for cluster in clusters[1:]]
    return torch.cat([words - total, *map(torch.add, open_doors, tails)], -1)


def adaptive_nll(
    hidden: Tensor,
    targets: Tensor,
    clusters: Sequence[Cluster],
    gates: Cluster | None = None,
    *,
    sparse: bool = False,
) -> Tensor:
    """Return minus the log-probability of each target, one cluster in memory at a time.

    Args:
        hidden: [..., D].
        targets: int64 [...], each 0 <= target < V.
        clusters: see `adaptive_log_softmax`, as for `gates`.
        sparse: which road (see above).

    Returns:
        [...].

    Raises:
        IndexError: a target is out of range (on CPU).

    >>> words, rare = torch.zeros(2, 4), torch.zeros(3, 4)
    >>> clusters = [Cluster(words, torch.zeros(2)), Cluster(rare, torch.zeros(3))]
    >>> gates = Cluster(torch.zeros(1, 4), torch.zeros(1))
    >>> adaptive_nll(torch.ones(2, 4), torch.tensor([1, 4]), clusters, gates).exp()
    tensor([3., 9.])
    """
    _check(targets, clusters, "targets")
    if not targets.ndim:
        return adaptive_nll(hidden[None], targets[None], clusters, gates, sparse=sparse)[0]
    (_, _, first), *others = _members(targets, clusters)
    words, doors = _head(hidden, clusters[0], gates)
    chosen = _pick(words, torch.where(first, targets, 0))
    for gate, (_, _, inside) in enumerate(others):
        chosen = torch.where(inside, doors[..., gate], chosen)
    losses = _logsumexp(words, doors) - chosen
    for cluster, start, inside in others:
        local = _local(targets, start, inside, sparse)
        if not local.numel():
            continue
        scores = _scores(hidden[inside] if sparse else hidden, cluster)
        own = scores.logsumexp(-1) - _pick(scores, local)
        losses = losses + _put(torch.zeros_like(losses), inside, own, sparse)
    return losses


def draw_words(key: Tensor, count: int, vocabulary: int) -> Tensor:
    """Draw words with probability log((id + 2) / (id + 1)) / log(V + 1), with repetition.

    Args:
        key: [...] keys.
        count: how many words.
        vocabulary: V.

    Returns:
        int64 [..., count].

    >>> draw_words(random.key(0), 4, 1000).shape
    torch.Size([4])
    """
    position = random.uniform(key, (count,), torch.float64) * math.log(vocabulary + 1)
    return (position.exp() - 1).long().clamp(max=vocabulary - 1)


def sampled_nll(
    hidden: Tensor, targets: Tensor, words: Cluster, samples: int, *, key: Tensor
) -> Tensor:
    """Estimate minus the log-probability of each target against words drawn at random.

    The softmax runs over the target and the distinct words among 2 x samples draws; each score is
    lowered by the logarithm of the chance of being drawn at all, and a drawn word that is the
    target does not count.

    Args:
        hidden: [..., T, D].
        targets: int64 [..., T].
        words: the whole vocabulary, with biases.
        samples: half the number of draws, as in the reference.
        key: of the draws: one set of words for all tokens, or one for each of the leading axes.

    Returns:
        [..., T].

    >>> words = Cluster(torch.zeros(50, 4), torch.zeros(50))
    >>> sampled_nll(torch.ones(3, 4), torch.tensor([1, 2, 3]), words, 5, key=random.key(0))
    tensor([3.5156, 3.2956, 3.1545])
    """
    _check(targets, [words], "targets")
    table, bias, projection = words
    assert bias is not None  # only embeddings have none
    hidden = hidden if projection is None else hidden @ projection.mT
    drawn = draw_words(key, 2 * samples, len(table)).sort(-1).values
    repeated = torch.zeros_like(drawn[..., :1], dtype=torch.bool)
    repeated = torch.cat([repeated, drawn[..., 1:] == drawn[..., :-1]], -1)
    axes = (*key.shape, *(1,) * (targets.ndim - 1 - key.ndim), 2 * samples)
    drawn, repeated = drawn.view(axes), repeated.view(axes)[..., None, :]
    offsets = bias[drawn] - _log_chance(drawn, len(table), samples).to(bias.dtype)
    scores = hidden @ lookup(table, drawn).mT + offsets[..., None, :]
    excluded = repeated | (drawn[..., None, :] == targets[..., None])
    scores = torch.where(excluded, EXCLUDED_SCORE, scores)
    own = (hidden * lookup(table, targets, "targets")).sum(-1) + bias[targets]
    own = own - _log_chance(targets, len(table), samples).to(own.dtype)
    return torch.logaddexp(own, scores.logsumexp(-1)) - own


def _log_chance(ids: Tensor, vocabulary: int, samples: int) -> Tensor:
    """Return the logarithm of the chance that a word is among 2 x samples draws, in float64."""
    one = torch.log1p(1 / (ids + 1).double()) / math.log(vocabulary + 1)
    return (-torch.expm1(2 * samples * torch.log1p(-one))).log()


def _members(ids: Tensor, clusters: Sequence[Cluster]) -> list[tuple[Cluster, int, Tensor]]:
    """List each cluster, its first id, and which ids are its own: bool [...].

    Ids that are out of range belong to the first or the last cluster, whose tables refuse them.
    """
    starts = [0, *accumulate(len(cluster.table) for cluster in clusters)]
    result = []
    for cluster, (start, stop) in zip(clusters, pairwise(starts), strict=True):
        inside = torch.ones_like(ids, dtype=torch.bool)
        if start > 0:
            inside = inside & (ids >= start)
        if stop < starts[-1]:
            inside = inside & (ids < stop)
        result.append((cluster, start, inside))
    return result


def _local(ids: Tensor, start: int, inside: Tensor, sparse: bool) -> Tensor:
    """Number a cluster's own words from 0: those alone, or all tokens with 0 for the others."""
    return ids[inside] - start if sparse else torch.where(inside, ids - start, 0)


def _put(result: Tensor, inside: Tensor, found: Tensor, sparse: bool) -> Tensor:
    """Replace the values [..., *] of some tokens by those of a cluster."""
    if sparse:
        return result.index_put((inside,), found)
    return torch.where(inside[..., None] if result.ndim > inside.ndim else inside, found, result)


def _pick(scores: Tensor, ids: Tensor) -> Tensor:
    return scores.gather(-1, ids[..., None].long())[..., 0]


def _projected(x: Tensor, projection: Tensor | None) -> Tensor:
    return x if projection is None else x @ projection


def _scores(hidden: Tensor, cluster: Cluster) -> Tensor:
    """Score a cluster's words: [..., D] -> [..., n]."""
    if cluster.projection is not None:
        hidden = hidden @ cluster.projection.mT
    assert cluster.bias is not None  # only embeddings have none
    return linear(hidden, cluster.table.mT, cluster.bias)


def _head(hidden: Tensor, first: Cluster, gates: Cluster | None) -> tuple[Tensor, Tensor]:
    """Score the words of the first cluster and the gates: [..., n] and [..., G]."""
    if gates is None:
        words = _scores(hidden, first)
        return words, words[..., :0]
    if first.projection is not None:
        hidden = hidden @ first.projection.mT
    return _scores(hidden, first._replace(projection=None)), _scores(hidden, gates)


def _logsumexp(words: Tensor, doors: Tensor) -> Tensor:
    """Sum up the head without putting its two parts in one tensor: [...]."""
    total = words.logsumexp(-1)
    return torch.logaddexp(total, doors.logsumexp(-1)) if doors.shape[-1] else total


def _check(ids: Tensor, clusters: Sequence[Cluster], name: str) -> None:
    """Name ids that are no integers or, where reading them does not wait, out of range."""
    if ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} must be integers (torch.int64), got {ids.dtype}")
    if readable(ids):
        check_range(ids, sum(len(cluster.table) for cluster in clusters), name)
