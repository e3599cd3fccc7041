"""Adaptive input embeddings and adaptive softmax: rare tokens get narrower embeddings.

The vocabulary, most frequent tokens first, is cut into clusters of consecutive ids. The head is a
softmax over the tokens of the first cluster and one gate for each other (tail) cluster; a softmax
over the tokens of a tail cluster is multiplied by the probability of its gate.

Two equivalent implementations, dense and sparse. The dense one scores each position in every
cluster; no shape depends on data, so it works under every transform. The sparse one gathers the
positions of each cluster and skips unused clusters; `vmap` and `fullgraph` compilation reject it.

Dimensions: T positions, V vocabulary, D width of the model, n tokens of a cluster, E width of its
embeddings, G gates (the clusters but one).

Sources: Grave et al. 2016, "Efficient softmax approximation for GPUs"; Baevski and Auli 2018,
"Adaptive Input Representations for Neural Language Modeling"; pytorch-pretrained-bert 0.6.2,
`modeling_transfo_xl_utilities.py`. Deviations: losses come in the order of the targets, where the
reference returns those of the first cluster first; n draws include a token of probability p with
probability 1 - (1 - p)^n, where the reference has 1 - (1 + p)^-n.
"""

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from fnlm import random
from fnlm.layers.embedding import check_range, lookup
from fnlm.layers.linear import linear

__all__ = [
    "Cluster", "adaptive_embedding", "adaptive_log_softmax", "adaptive_nll", "draw_words",
    "sampled_nll",
]  # fmt: skip

EXCLUDED_SCORE = -1e30  # logit of a masked-out sample; finite, so that derivatives are


class Cluster(NamedTuple):
    """The tokens of consecutive ids: a table of embeddings, biases and a projection."""

    table: Tensor  # [n, E]
    bias: Tensor | None = None  # [n]; an embedding has none
    projection: Tensor | None = None  # [E, D]; None where E = D needs no change


def adaptive_embedding(
    ids: Tensor, clusters: Sequence[Cluster], *, sparse: bool = False, name: str = "ids"
) -> Tensor:
    """Return table[id] @ projection, by the table and projection of each token's cluster.

    Args:
        ids: int64 [...], each 0 <= id < V.
        clusters: their tables have V rows in total.
        sparse: which implementation (see above).
        name: of `ids`, for errors.

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
        x = _projected(lookup(cluster.table, local, name), cluster.projection)  # [..., D]
        if result is None:
            result = x.new_zeros(*ids.shape, x.shape[-1])
        result = _put(result, inside, x, sparse)
    assert result is not None  # there is a cluster
    return result


def adaptive_log_softmax(
    hidden: Tensor, clusters: Sequence[Cluster], gates: Cluster | None = None
) -> Tensor:
    """Return the log-probability of every token of the vocabulary.

    Args:
        hidden: [..., D].
        clusters: with biases; they have V tokens in total.
        gates: table [G, E] and bias [G], one row for each tail cluster; E and the projection are
            those of the first cluster.

    Returns:
        [..., V].

    >>> head, tail = torch.zeros(2, 4), torch.zeros(3, 4)
    >>> clusters = [Cluster(head, torch.zeros(2)), Cluster(tail, torch.zeros(3))]
    >>> gates = Cluster(torch.zeros(1, 4), torch.zeros(1))
    >>> adaptive_log_softmax(torch.ones(4), clusters, gates).exp()
    tensor([0.3333, 0.3333, 0.1111, 0.1111, 0.1111])
    """
    token_logits, gate_logits = _head(hidden, clusters[0], gates)  # [..., n], [..., G]
    total = _logsumexp(token_logits, gate_logits)[..., None]  # [..., 1]
    gate_log_probs = (gate_logits - total).split(1, -1)  # G of [..., 1]
    tails = [_logits(hidden, cluster).log_softmax(-1) for cluster in clusters[1:]]
    # log p(token) = log p(gate) + log p(token | gate)
    return torch.cat([token_logits - total, *map(torch.add, gate_log_probs, tails)], -1)  # [..., V]


def adaptive_nll(
    hidden: Tensor,
    targets: Tensor,
    clusters: Sequence[Cluster],
    gates: Cluster | None = None,
    *,
    sparse: bool = False,
) -> Tensor:
    """Return minus the log-probability of each target, holding one cluster's logits at a time.

    Args:
        hidden: [..., D].
        targets: int64 [...], each 0 <= target < V.
        clusters: see `adaptive_log_softmax`, as for `gates`.
        sparse: which implementation (see above).

    Returns:
        [...].

    Raises:
        IndexError: a target is out of range (on CPU).

    >>> head, tail = torch.zeros(2, 4), torch.zeros(3, 4)
    >>> clusters = [Cluster(head, torch.zeros(2)), Cluster(tail, torch.zeros(3))]
    >>> gates = Cluster(torch.zeros(1, 4), torch.zeros(1))
    >>> adaptive_nll(torch.ones(2, 4), torch.tensor([1, 4]), clusters, gates).exp()
    tensor([3., 9.])
    """
    _check(targets, clusters, "targets")
    if not targets.ndim:
        return adaptive_nll(hidden[None], targets[None], clusters, gates, sparse=sparse)[0]
    (_, _, in_head), *tails = _members(targets, clusters)
    token_logits, gate_logits = _head(hidden, clusters[0], gates)  # [..., n], [..., G]
    # In the head, the target itself or the gate of its cluster.
    head_logit = _pick(token_logits, torch.where(in_head, targets, 0))
    for gate, (_, _, inside) in enumerate(tails):
        head_logit = torch.where(inside, gate_logits[..., gate], head_logit)
    losses = _logsumexp(token_logits, gate_logits) - head_logit  # [...]
    # Targets of a tail cluster add their loss within it.
    for cluster, start, inside in tails:
        local = _local(targets, start, inside, sparse)
        if not local.numel():
            continue
        logits = _logits(hidden[inside] if sparse else hidden, cluster)  # [..., n]
        tail_losses = logits.logsumexp(-1) - _pick(logits, local)
        losses = losses + _put(torch.zeros_like(losses), inside, tail_losses, sparse)
    return losses


def draw_words(key: Tensor, count: int, vocabulary: int) -> Tensor:
    """Sample token ids log-uniformly: P(id) = log((id + 2) / (id + 1)) / log(V + 1).

    Args:
        key: [...] keys.
        count: number of samples, with replacement.
        vocabulary: V.

    Returns:
        int64 [..., count].

    >>> draw_words(random.key(0), 4, 1000).shape
    torch.Size([4])
    """
    # The inverse of the cumulative distribution log(id + 1) / log(V + 1), at uniform numbers.
    log_id = random.uniform(key, (count,), torch.float64) * math.log(vocabulary + 1)
    return (log_id.exp() - 1).long().clamp(max=vocabulary - 1)


def sampled_nll(
    hidden: Tensor, targets: Tensor, words: Cluster, samples: int, *, key: Tensor
) -> Tensor:
    """Return a sampled-softmax estimate of minus the log-probability of each target.

    The softmax is over the target and the distinct tokens among 2 x samples log-uniform draws.
    Each logit is corrected by minus the log of the token's inclusion probability; draws that equal
    the target (accidental hits) are excluded.

    Args:
        hidden: [..., T, D].
        targets: int64 [..., T].
        words: the whole vocabulary, with biases.
        samples: half the number of draws, as in the reference.
        key: one set of samples for all positions, or one for each of the key's leading axes.

    Returns:
        [..., T].

    >>> words = Cluster(torch.zeros(50, 4), torch.zeros(50))
    >>> sampled_nll(torch.ones(3, 4), torch.tensor([1, 2, 3]), words, 5, key=random.key(0))
    tensor([3.5156, 3.2956, 3.1545])
    """
    _check(targets, [words], "targets")
    table, bias, projection = words
    assert bias is not None  # only embeddings have none
    hidden = hidden if projection is None else linear(hidden, projection.mT, None)
    sampled = draw_words(key, 2 * samples, len(table)).sort(-1).values  # [..., 2 samples]
    # Sorted, so a duplicate equals its left neighbour.
    duplicate = torch.zeros_like(sampled[..., :1], dtype=torch.bool)
    duplicate = torch.cat([duplicate, sampled[..., 1:] == sampled[..., :-1]], -1)
    axes = (*key.shape, *(1,) * (targets.ndim - 1 - key.ndim), 2 * samples)
    sampled, duplicate = sampled.view(axes), duplicate.view(axes)[..., None, :]
    offsets = bias[sampled] - _log_inclusion(sampled, len(table), samples).to(bias.dtype)
    logits = hidden @ lookup(table, sampled).mT + offsets[..., None, :]  # [..., T, 2 samples]
    excluded = duplicate | (sampled[..., None, :] == targets[..., None])
    logits = torch.where(excluded, EXCLUDED_SCORE, logits)
    target_logit = (hidden * lookup(table, targets, "targets")).sum(-1) + bias[targets]  # [..., T]
    log_inclusion = _log_inclusion(targets, len(table), samples)
    target_logit = target_logit - log_inclusion.to(target_logit.dtype)
    return torch.logaddexp(target_logit, logits.logsumexp(-1)) - target_logit


def _log_inclusion(ids: Tensor, vocabulary: int, samples: int) -> Tensor:
    """Return the log-probability that each id is among 2 x samples draws, in float64."""
    p = torch.log1p(1 / (ids + 1).double()) / math.log(vocabulary + 1)  # of one draw
    return (-torch.expm1(2 * samples * torch.log1p(-p))).log()  # log(1 - (1 - p)^(2 samples))


def _members(ids: Tensor, clusters: Sequence[Cluster]) -> list[tuple[Cluster, int, Tensor]]:
    """Return each cluster, its first id, and the mask of the ids that it holds: bool [...].

    Ids out of range go to the first or the last cluster, where the lookup raises.
    """
    bounds = [0, *accumulate(len(cluster.table) for cluster in clusters)]
    result = []
    for cluster, (start, stop) in zip(clusters, pairwise(bounds), strict=True):
        inside = torch.ones_like(ids, dtype=torch.bool)
        if start > 0:
            inside = inside & (ids >= start)
        if stop < bounds[-1]:
            inside = inside & (ids < stop)
        result.append((cluster, start, inside))
    return result


def _local(ids: Tensor, start: int, inside: Tensor, sparse: bool) -> Tensor:
    """Return ids relative to the cluster: gathered if sparse, else 0 outside of it."""
    return ids[inside] - start if sparse else torch.where(inside, ids - start, 0)


def _put(result: Tensor, inside: Tensor, values: Tensor, sparse: bool) -> Tensor:
    """Return `result` with the values of a cluster at its positions: [..., D] or [...]."""
    if sparse:
        return result.index_put((inside,), values)
    return torch.where(inside[..., None] if result.ndim > inside.ndim else inside, values, result)


def _pick(logits: Tensor, ids: Tensor) -> Tensor:
    return logits.gather(-1, ids[..., None].long())[..., 0]


def _projected(x: Tensor, projection: Tensor | None) -> Tensor:
    return x if projection is None else linear(x, projection, None)


def _logits(hidden: Tensor, cluster: Cluster) -> Tensor:
    """Return the logits of a cluster's tokens: [..., D] -> [..., n]."""
    if cluster.projection is not None:
        hidden = linear(hidden, cluster.projection.mT, None)
    assert cluster.bias is not None  # only embeddings have none
    return linear(hidden, cluster.table.mT, cluster.bias)


def _head(hidden: Tensor, first: Cluster, gates: Cluster | None) -> tuple[Tensor, Tensor]:
    """Return the logits of the first cluster's tokens and of the gates: [..., n] and [..., G]."""
    if gates is None:
        token_logits = _logits(hidden, first)
        return token_logits, token_logits[..., :0]
    if first.projection is not None:
        hidden = linear(hidden, first.projection.mT, None)
    return _logits(hidden, first._replace(projection=None)), _logits(hidden, gates)


def _logsumexp(tokens: Tensor, gates: Tensor) -> Tensor:
    """Return the log normalizer of the head, without concatenating its logits: [...]."""
    total = tokens.logsumexp(-1)
    return torch.logaddexp(total, gates.logsumexp(-1)) if gates.shape[-1] else total


def _check(ids: Tensor, clusters: Sequence[Cluster], name: str) -> None:
    """Validate dtype and, where values can be read at once, range of ids."""
    if ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} must be integers (torch.int64), got {ids.dtype}")
    check_range(ids, sum(len(cluster.table) for cluster in clusters), name)
