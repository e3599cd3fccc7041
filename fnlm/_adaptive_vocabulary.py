"""An adaptive vocabulary: its part of a config, its parameters, its embedding and its softmax.

Tied weights are one leaf used twice: the softmax has leaves only for what it does not share with
the embedding. With `div_val` 1 all clusters are rows of one table, in `cluster_0`.
"""

import dataclasses
from collections.abc import Mapping
from itertools import accumulate, pairwise
from typing import Any, Self

from torch import Tensor

from fnlm import random
from fnlm.layers import Cluster, adaptive_embedding, adaptive_log_softmax, adaptive_nll, sampled_nll
from fnlm.layers._tap import tap
from fnlm.params.config import BaseConfig, Scale, Shapes, Size, short
from fnlm.params.spec import Spec
from fnlm.tree import Params, Tree

__all__ = [
    "AdaptiveConfig", "cutoffs_of", "embed", "embedding_clusters", "log_probs", "nll",
    "softmax_clusters", "spec", "tied_projections",
]  # fmt: skip

MOST_CLUSTERS = 1000  # bounds the leaves that a damaged file can ask for


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptiveConfig(BaseConfig):
    """The fields of a config that describe an adaptive vocabulary.

    `tie_projs` None follows `proj_share_all_but_first`; with `proj_same_dim` False (lm1b),
    embeddings as wide as the model have no projection. A plain softmax has `cutoffs=()` and
    `div_val=1`.
    """

    n_token: Size = 267735
    cutoffs: tuple[int, ...] = (20000, 40000, 200000)
    d_model: Size = 1024
    d_embed: Size = 1024
    div_val: Size = 4
    proj_share_all_but_first: bool = True
    proj_same_dim: bool = True
    tie_projs: tuple[bool, ...] | None = None
    tie_weight: bool = True
    proj_init_std: Scale = 0.01
    sample_softmax: int = -1

    def __post_init__(self) -> None:
        """Validate the fields, each alone and together."""
        super().__post_init__()
        for shared in (True, False):  # normalize `tie_projs` that a flag expresses
            if self.tie_projs == (False, *[shared] * len(self.cutoffs)):
                object.__setattr__(self, "proj_share_all_but_first", shared)
                object.__setattr__(self, "tie_projs", None)
        _check(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any], shapes: Shapes | None = None) -> Self:
        """Make a config from a config.json, with its cutoffs or those of its file's tables."""
        if shapes and "cutoffs" not in values:
            values = {**values, "cutoffs": cutoffs_of(shapes)}
        return super().from_dict(values, shapes)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the file's unknown keys, as pytorch-pretrained-bert reads them."""
        ties = list(tied_projections(self))
        return super().to_dict() | {"cutoffs": list(self.cutoffs), "tie_projs": ties}


def _check(config: AdaptiveConfig) -> None:
    """Validate the fields of the vocabulary; raise ValueError that names the field."""
    clusters = len(config.cutoffs) + 1
    bounds = (0, *config.cutoffs, config.n_token)
    if any(stop <= start for start, stop in pairwise(bounds)):
        raise ValueError(
            f"cutoffs={short(config.cutoffs)} must rise, above 0 and below n_token={config.n_token}"
        )
    if clusters > MOST_CLUSTERS:
        raise ValueError(f"cutoffs make {clusters} clusters, more than {MOST_CLUSTERS}")
    if config.d_embed // config.div_val ** (clusters - 1) < 1:
        raise ValueError(
            f"d_embed={config.d_embed} leaves no width for the last of {clusters} clusters, each "
            f"narrower by div_val={config.div_val}: lower div_val"
        )
    if config.tie_projs is not None and len(config.tie_projs) != clusters:
        raise ValueError(
            f"tie_projs={short(config.tie_projs)} must say so of each of {clusters} clusters"
        )
    if config.sample_softmax > 0 and clusters > 1:
        raise ValueError(
            f"sample_softmax={config.sample_softmax} needs one softmax over all words: set "
            "cutoffs=() and div_val=1, or sample_softmax=-1"
        )


def cutoffs_of(shapes: Mapping[str, tuple[int, ...]]) -> list[int]:
    """Return the cutoffs that the shapes of a file's embedding tables imply.

    Args:
        shapes: of the leaves, by path.

    Raises:
        ValueError: the clusters share one table, so the cutoffs are unknown.

    >>> cutoffs_of({"embed.cluster_0.table": (20, 4), "embed.cluster_1.table": (30, 2)})
    [20]
    """
    rows: list[int] = []  # tokens of each cluster
    while shape := shapes.get(f"embed.cluster_{len(rows)}.table"):
        rows.append(shape[0])
    if len(rows) == 1 and "softmax.gates.bias" in shapes:
        raise ValueError(
            "no cutoffs, and all clusters of the file have one table, which does not tell where "
            f'it is cut: add "cutoffs" with {shapes["softmax.gates.bias"][0]} numbers, the first '
            "ids of all clusters but the first"
        )
    return list(accumulate(rows))[:-1]


def tied_projections(config: AdaptiveConfig) -> tuple[bool, ...]:
    """Return, for each cluster, whether softmax and embedding share the projection."""
    return config.tie_projs or (False, *[config.proj_share_all_but_first] * len(config.cutoffs))


def spec(config: AdaptiveConfig, weight: Any) -> tuple[Tree, Tree]:
    """Return the specs of the embedding and of the softmax.

    Args:
        config: of the family.
        weight: function from (rows, columns) to the `Spec` of a table.
    """
    sizes = [stop - start for start, stop in pairwise((0, *config.cutoffs, config.n_token))]
    widths = [_width(config, i) for i in range(len(sizes))]

    def projection(i: int) -> dict[str, Spec]:
        shape, std = (_width(config, i), config.d_model), config.proj_init_std
        return {"projection": Spec(shape, "normal", std)} if _is_projected(config, i) else {}

    embed: Tree = {}
    softmax: Tree = {}
    # Of one width, all clusters are rows of one table.
    tables = [config.n_token] if config.div_val == 1 else sizes
    for i, (rows, width) in enumerate(zip(tables, widths, strict=False)):
        table = {"table": weight(rows, width)}
        embed[f"cluster_{i}"] = table | projection(i)
        softmax[f"cluster_{i}"] = {"bias": Spec((rows,))} | ({} if config.tie_weight else table)
    # Projections follow ties of their own: one for each cluster, even of one table.
    for i, tied in enumerate(tied_projections(config)):
        if not tied and _is_projected(config, i):
            softmax[f"cluster_{i}"] = softmax.get(f"cluster_{i}", {}) | projection(i)
    if gates := len(config.cutoffs):
        softmax["gates"] = {"table": weight(gates, config.d_embed), "bias": Spec((gates,))}
    return embed, softmax


def embed(params: Params, ids: Tensor, *, sparse: bool = False) -> Tensor:
    """Return the embeddings of ids, the site "embed.token": [...] -> [..., D]."""
    x = adaptive_embedding(ids, embedding_clusters(params), sparse=sparse)
    return tap(x, params["embed"].get("taps"), "token")


def log_probs(params: Params, hidden: Tensor) -> Tensor:
    """Return the log-probability of every token, the site "logits": [..., D] -> [..., V]."""
    return tap(
        adaptive_log_softmax(hidden, *softmax_clusters(params)), params.get("taps"), "logits"
    )


def nll(
    params: Params, hidden: Tensor, targets: Tensor, *, key: Tensor | None, sparse: bool = False
) -> Tensor:
    """Return minus the log-probability of each target: [..., D] and [...] -> [...].

    With a key and `sample_softmax` > 0 it is a sampled-softmax estimate.
    """
    clusters, gates = softmax_clusters(params)
    samples = params["config"].sample_softmax
    if key is not None and samples > 0:
        return sampled_nll(hidden, targets, clusters[0], samples, key=random.fold_in(key, 0))
    return adaptive_nll(hidden, targets, clusters, gates, sparse=sparse)


def embedding_clusters(params: Tree) -> list[Cluster]:
    """Return the clusters for `adaptive_embedding`."""
    config, embed = params["config"], params["embed"]
    return [
        Cluster(embed[f"cluster_{i}"]["table"], None, _projection(config, i, embed))
        for i in range(1 if config.div_val == 1 else len(config.cutoffs) + 1)
    ]


def softmax_clusters(params: Tree) -> tuple[list[Cluster], Cluster | None]:
    """Return the clusters and gates for `adaptive_log_softmax`.

    Raises:
        KeyError: the parameters have no softmax.
    """
    if "softmax" not in params:
        raise KeyError(
            "params have no 'softmax', as the file had none: use `hidden_states`, or load a "
            "checkpoint of the whole language model"
        )
    config, embed, softmax = params["config"], params["embed"], params["softmax"]
    clusters = []
    spans = pairwise((0, *config.cutoffs, config.n_token))
    for i, ((start, stop), tied) in enumerate(zip(spans, tied_projections(config), strict=True)):
        one_table = config.div_val == 1  # the cluster is a span of its rows
        name = "cluster_0" if one_table else f"cluster_{i}"
        rows = slice(start, stop) if one_table else slice(None)
        table = (embed if config.tie_weight else softmax)[name]["table"]  # [rows, E]
        source = {f"cluster_{i}": embed[name]} if tied else softmax
        projection = _projection(config, i, source)
        clusters.append(Cluster(table[rows], softmax[name]["bias"][rows], projection))
    if not config.cutoffs:
        return clusters, None
    return clusters, Cluster(softmax["gates"]["table"], softmax["gates"]["bias"])


def _width(config: AdaptiveConfig, i: int) -> int:
    """Return the embedding width of a cluster."""
    return config.d_embed // config.div_val**i  # E, E / div_val, E / div_val^2, ...


def _is_projected(config: AdaptiveConfig, i: int) -> bool:
    same = _width(config, i) == config.d_model
    return not (same and (config.div_val == 1 or not config.proj_same_dim))


def _projection(config: AdaptiveConfig, i: int, source: Tree) -> Any:
    """Return the projection [E, D] of a cluster; None where E = D needs none."""
    return source[f"cluster_{i}"]["projection"] if _is_projected(config, i) else None
