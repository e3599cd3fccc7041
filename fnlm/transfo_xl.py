"""Transformer-XL: relative positions, and a memory of the hidden states of earlier segments.

Dimensions: B batch (any leading axes), T new tokens, M remembered tokens, S = M + T, V vocabulary,
D width, E width of the widest embeddings, H heads, Dh width of a head, F inner width, L layers.

Sources: Dai et al. 2019, "Transformer-XL: Attentive Language Models Beyond a Fixed-Length Context"
(arXiv:1901.02860); kimiyoung/transformer-xl, `tf/model.py`; pytorch-pretrained-bert 0.6.2,
`modeling_transfo_xl.py`. Deviations: dropout is on when a key is given; batch first; with
`ext_len`, memory is cut as in the paper's code (pytorch-pretrained-bert swaps two lengths).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from fnlm import _adaptive_vocabulary as vocabulary
from fnlm import random
from fnlm.layers import adaptive_softmax as adaptive
from fnlm.layers import memory
from fnlm.layers import relative_attention as relative
from fnlm.layers._inputs import check_ids, check_same_shape
from fnlm.layers.attention import merge_heads, split_heads
from fnlm.layers.dropout import dropout, dropout_keys
from fnlm.layers.linear import linear
from fnlm.layers.memory import Mems, reset_mems
from fnlm.layers.norm import layer_norm
from fnlm.params import io
from fnlm.params import spec as describe
from fnlm.params._check import checked, config_of
from fnlm.params.config import BaseConfig, Count, Rate, Scale, Shapes, Size, one_of
from fnlm.params.names import transfo_xl as names
from fnlm.params.spec import Spec
from fnlm.tree import Tree, register_constant

__all__ = [
    "HEADS", "Config", "Mems", "apply", "hidden_states", "init", "init_mems", "load",
    "negative_log_likelihood", "reset_mems", "save", "spec",
]  # fmt: skip

HEADS: tuple[str, ...] = ()
Params = dict[str, Any]
Keys = Sequence[Tensor | None]  # dropout keys; None is no dropout
_OTHER_ATTENTION = "no published model has another, and others fail or change their memory"


@register_constant
@dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """The fields of a published config.json; the defaults are those of transfo-xl-wt103.

    `mem_len`, `ext_len`, `clamp_len` and `same_length` may be changed for a trained model:
    `params | {"config": dataclasses.replace(params["config"], mem_len=400)}`. `tie_projs` None
    follows `proj_share_all_but_first`; with `proj_same_dim` False (lm1b), embeddings as wide as the
    model have no projection. `tgt_len` and `adaptive` only go into the file: a plain softmax has
    `cutoffs=()` and `div_val=1`.
    """

    n_token: Size = 267735
    cutoffs: tuple[int, ...] = (20000, 40000, 200000)
    d_model: Size = 1024
    d_embed: Size = 1024
    n_head: Size = 16
    d_head: Size = 64
    d_inner: Size = 4096
    div_val: Size = 4
    pre_lnorm: bool = False
    n_layer: Size = 18
    tgt_len: Count = 128
    ext_len: Count = 0
    mem_len: Count = 1600
    clamp_len: int = 1000
    same_length: bool = True
    proj_share_all_but_first: bool = True
    proj_same_dim: bool = True
    tie_projs: tuple[bool, ...] | None = None
    attn_type: int = 0
    sample_softmax: int = -1
    adaptive: bool = True
    tie_weight: bool = True
    dropout: Rate = 0.1
    dropatt: Rate = 0.0
    untie_r: bool = True
    init: str = "normal"
    init_range: Scale = 0.01
    proj_init_std: Scale = 0.01
    init_std: Scale = 0.02
    layer_norm_epsilon: Scale = 1e-12
    aliases: ClassVar[Mapping[str, str]] = names.ALIASES

    def __post_init__(self) -> None:
        """Validate the fields, each alone and together."""
        super().__post_init__()
        for shared in (True, False):  # normalize `tie_projs` that a flag expresses
            if self.tie_projs == (False, *[shared] * len(self.cutoffs)):
                object.__setattr__(self, "proj_share_all_but_first", shared)
                object.__setattr__(self, "tie_projs", None)
        vocabulary.check(self)
        one_of("init", self.init, ("normal", "uniform"))
        if self.d_model % 2:
            raise ValueError(f"d_model must be even, for sines and cosines, got {self.d_model}")
        if self.attn_type:
            raise ValueError(f"attn_type={self.attn_type} is not 0: {_OTHER_ATTENTION}")

    @classmethod
    def from_dict(cls, values: dict[str, Any], shapes: Shapes | None = None) -> Self:
        """Make a config from a config.json, with its cutoffs or those of its file's tables."""
        if shapes and "cutoffs" not in values:
            values = {**values, "cutoffs": vocabulary.cutoffs_of(shapes)}
        return super().from_dict(values, shapes)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the file's unknown keys, as pytorch-pretrained-bert reads them."""
        ties = list(vocabulary.tied_projections(self))
        return super().to_dict() | {"cutoffs": list(self.cutoffs), "tie_projs": ties}


def init_mems(params: Params, batch: int | Sequence[int], *, empty: bool = False) -> Mems:
    """Return the memory at the start of a text.

    Args:
        params: only shapes and types are read.
        batch: B, or all leading axes.
        empty: False gives `mem_len` zeros that are attended to, as in both reference
            implementations; `mems=None` means the same. True masks them, so that a text cut in
            segments has the hidden states of the whole text, if `mem_len` covers it.

    >>> config = Config(n_token=50, cutoffs=(9,), d_model=8, d_embed=8, n_layer=2, mem_len=6)
    >>> init_mems(init(config, random.key(0)), 3).hidden[1].shape
    torch.Size([3, 6, 8])
    """
    config, like = config_of(params, Config), params["embed"]["cluster_0"]["table"]
    lead = (batch,) if isinstance(batch, int) else batch
    shape = (*lead, config.mem_len, config.d_model)
    return memory.zero_mems(like, len(params["blocks"]), shape, empty=empty)


def spec(config: Config, heads: Sequence[str] = ()) -> Tree:
    """Return the parameters' shapes, dtypes and initializers; `heads` must be empty."""
    describe.heads_among(heads, HEADS)

    def weight(*shape: int) -> Spec:
        if config.init == "uniform":
            return Spec(shape, "uniform", config.init_range)
        return Spec(shape, "normal", config.init_std)

    width, inner, heads_width = config.d_model, config.d_inner, config.n_head * config.d_head
    bias = weight(config.n_head, config.d_head)
    biases = {"content_bias": bias, "position_bias": bias}
    block = {
        "attention": {
            "qkv": weight(width, 3 * heads_width),
            "relative": weight(width, heads_width),
            "out": weight(heads_width, width),
            **(biases if config.untie_r else {}),
        },
        "norm_1": describe.norm(width),
        "mlp": {
            "up": {"weight": weight(width, inner), "bias": Spec((inner,))},
            "down": {"weight": weight(inner, width), "bias": Spec((width,))},
        },
        "norm_2": describe.norm(width),
    }
    embed, softmax = vocabulary.spec(config, weight)
    return {
        "config": config,
        "embed": embed,
        "blocks": (block,) * config.n_layer,
        **({} if config.untie_r else {"shared": biases}),
        "softmax": softmax,
    }


def init(config: Config, key: Tensor, heads: Sequence[str] = ()) -> Params:
    """Initialize parameters: weights by `config.init`, projections normal, biases 0, scales 1.

    >>> config = Config(n_token=50, cutoffs=(9,), d_model=8, d_embed=8, n_layer=2, mem_len=6)
    >>> init(config, random.key(0))["embed"]["cluster_1"]["table"].shape
    torch.Size([41, 2])
    """
    return describe.init(spec(config, heads), key)


def _attention(
    context: Tensor, positions: Tensor, mask: Tensor, weights: Tree, config: Config, keys: Keys
) -> Tensor:
    """Relative attention of the new tokens to memory and themselves: [..., S, D] -> [..., T, D]."""
    qkv, width = weights["qkv"], config.n_head * config.d_head  # [D, 3 H Dh]
    new = context[..., context.shape[-2] - mask.shape[-2] :, :]  # [..., T, D]
    q = split_heads(new @ qkv[:, :width], config.n_head)[0]  # [..., H, T, Dh]
    k, v = split_heads(context @ qkv[:, width:], config.n_head, parts=2)  # [..., H, S, Dh] each
    r = split_heads(positions @ weights["relative"], config.n_head)[0]  # [..., H, S + 1, Dh]
    biases = {name: weights[name] for name in ("content_bias", "position_bias")}
    out = relative.attend_relative(q, k, v, r, mask, **biases, rate=config.dropatt, key=keys[0])
    return dropout(merge_heads(out) @ weights["out"], config.dropout, keys[1])  # [..., T, D]


def _mlp(x: Tensor, up: Tree, down: Tree, rate: float, keys: Keys) -> Tensor:
    """Two-layer MLP with dropout after each layer: [..., D] -> [..., D]."""
    return dropout(linear(dropout(F.relu(linear(x, **up)), rate, keys[0]), **down), rate, keys[1])


def _block(
    context: Tensor, positions: Tensor, mask: Tensor, block: Tree, config: Config, keys: Keys
) -> Tensor:
    """Post-norm transformer block: memory and new tokens [..., S, D] -> new tokens [..., T, D]."""
    x = context[..., context.shape[-2] - mask.shape[-2] :, :]  # [..., T, D]
    x = x + _attention(context, positions, mask, block["attention"], config, keys[:2])
    x = layer_norm(x, **block["norm_1"], eps=config.layer_norm_epsilon)
    x = x + _mlp(x, **block["mlp"], rate=config.dropout, keys=keys[2:])
    return layer_norm(x, **block["norm_2"], eps=config.layer_norm_epsilon)


def _pre_norm_block(
    context: Tensor, positions: Tensor, mask: Tensor, block: Tree, config: Config, keys: Keys
) -> Tensor:
    """Pre-norm transformer block: memory and new tokens [..., S, D] -> new tokens [..., T, D]."""
    x = context[..., context.shape[-2] - mask.shape[-2] :, :]  # [..., T, D]
    context = layer_norm(context, **block["norm_1"], eps=config.layer_norm_epsilon)
    x = x + _attention(context, positions, mask, block["attention"], config, keys[:2])
    normed = layer_norm(x, **block["norm_2"], eps=config.layer_norm_epsilon)
    return x + _mlp(normed, **block["mlp"], rate=config.dropout, keys=keys[2:])


@checked(Config, spec)
def hidden_states(
    params: Params,
    ids: Tensor,
    mems: Mems | None = None,
    *,
    key: Tensor | None = None,
    detach: bool = True,
    sparse: bool = False,
) -> tuple[Tensor, Mems]:
    """Return the last hidden states, without the softmax: arguments of `apply`.

    Returns:
        hidden states after the last block [..., T, D], and the memory with the new tokens.
    """
    config: Config = params["config"]
    _check(params, ids, mems)
    mems = init_mems(params, ids.shape[:-1]) if mems is None else mems
    embed_key, position_key, last_key, *keys = dropout_keys(key, 3 + 4 * len(params["blocks"]))
    x = adaptive.adaptive_embedding(ids, vocabulary.embedding_clusters(params), sparse=sparse)
    x = dropout(x * config.d_model**0.5, config.dropout, embed_key)  # [..., T, D]
    new, total = ids.shape[-1], mems.valid.shape[-1] + ids.shape[-1]
    positions = relative.sinusoids(total + 1, config.d_model, config.clamp_len, x.dtype, x.device)
    if position_key is not None:  # each key has its own mask: [S + 1, D] -> [..., S + 1, D]
        lead = (*position_key.shape, *(1,) * (ids.ndim - 1 - position_key.ndim))
        positions = dropout(positions.expand(*lead, -1, -1), config.dropout, position_key)
    valid = torch.cat([mems.valid, torch.ones_like(ids, dtype=torch.bool)], -1)  # [..., S]
    window = config.mem_len if config.same_length else None
    causal = relative.causal_window_mask(new, total, window, x.device)  # [T, S]
    mask = relative.attention_bias(causal & valid[..., None, None, :], x.dtype)  # [..., 1, T, S]
    block_fn = _pre_norm_block if config.pre_lnorm else _block
    shared, contexts = params.get("shared"), []  # u and v of all layers; inputs of the blocks
    for layer, (block, past) in enumerate(zip(params["blocks"], mems.hidden, strict=True)):
        weights = block | {"attention": block["attention"] | shared} if shared else block
        contexts.append(torch.cat([past, x], -2))  # [..., S, D]
        layer_keys = keys[4 * layer : 4 * layer + 4]
        x = block_fn(contexts[-1], positions, mask, weights, config, layer_keys)  # [..., T, D]
    mems, ext_len = Mems(tuple(contexts), valid), config.ext_len  # of S tokens
    new_mems = memory.update_mems(mems, new, config.mem_len, ext_len=ext_len, detach=detach)
    return dropout(x, config.dropout, last_key), new_mems


def apply(
    params: Params,
    ids: Tensor,
    mems: Mems | None = None,
    *,
    key: Tensor | None = None,
    detach: bool = True,
    sparse: bool = False,
) -> tuple[Tensor, Mems]:
    """Return the log-probabilities of the next token at every position.

    Args:
        params: from `init` or `load`.
        ids: int64 [..., T], each 0 <= id < V.
        mems: of the tokens before `ids`, from an earlier call; None starts a text (`init_mems`).
        key: turns dropout on; one key, or keys for the leading axes of `ids`.
        detach: stop gradients through the new memory.
        sparse: use the sparse adaptive embedding, whose shapes depend on data.

    Returns:
        log-probabilities [..., T, V], and the memory of the last `mem_len` tokens (without the
        last `ext_len` new ones).

    Raises:
        ValueError: a memory that does not fit; `same_length` without a memory.
        IndexError: ids out of range.

    >>> config = Config(n_token=50, cutoffs=(9,), d_model=8, d_embed=8, n_layer=2, mem_len=6)
    >>> params = init(config, random.key(0))
    >>> ids = torch.tensor([[3, 1, 4, 1, 5]])
    >>> whole, _ = apply(params, ids)
    >>> first, mems = apply(params, ids[:, :3])
    >>> second, mems = apply(params, ids[:, 3:], mems)
    >>> torch.allclose(whole, torch.cat([first, second], 1), atol=1e-5)
    True
    """
    hidden, new_mems = hidden_states(params, ids, mems, key=key, detach=detach, sparse=sparse)
    clusters, gates = _softmax(params)
    return adaptive.adaptive_log_softmax(hidden, clusters, gates), new_mems


def negative_log_likelihood(
    params: Params,
    ids: Tensor,
    targets: Tensor,
    mems: Mems | None = None,
    *,
    key: Tensor | None = None,
    detach: bool = True,
    sparse: bool = False,
) -> tuple[Tensor, Mems]:
    """Return minus the log-probability of each target, without a tensor [..., T, V].

    With a key and `sample_softmax` > 0 it is a sampled-softmax estimate.

    Args:
        params: see `apply`, as for the other arguments.
        ids: int64 [..., T].
        targets: int64 [..., T], the token that follows each of `ids`.
        sparse: compute only the clusters in use; much faster for a large vocabulary.

    Returns:
        [..., T] in the order of the targets, and the memory.

    Raises:
        ValueError: targets of another shape than ids; see `apply`.
        IndexError: ids or targets out of range.
    """
    config_of(params, Config)
    check_ids(ids)
    check_same_shape(ids.shape, targets=targets)
    hidden, new_mems = hidden_states(params, ids, mems, key=key, detach=detach, sparse=sparse)
    clusters, gates = _softmax(params)
    samples = params["config"].sample_softmax
    if key is not None and samples > 0:
        key = random.fold_in(key, 0)
        return adaptive.sampled_nll(hidden, targets, clusters[0], samples, key=key), new_mems
    return adaptive.adaptive_nll(hidden, targets, clusters, gates, sparse=sparse), new_mems


_softmax = checked(Config, spec)(vocabulary.softmax_clusters)


def _check(params: Params, ids: Tensor, mems: Mems | None) -> None:
    """Validate shapes; no value is read, so it works under every transform."""
    check_ids(ids)
    config: Config = params["config"]
    if config.same_length and not config.mem_len:
        raise ValueError(
            "same_length=True with mem_len=0 leaves nothing to attend to (pytorch-pretrained-bert "
            "then averages over the segment, later tokens included): set same_length=False"
        )
    if mems is not None:
        like = params["embed"]["cluster_0"]["table"]
        memory.check(mems, like, len(params["blocks"]), ids.shape[:-1], config.d_model)


def load(
    name_or_path: io.NameOrPath, *, heads: Sequence[str] | None = None, key: Tensor | None = None,
    ignore: Sequence[str] | None = (),
) -> Params:  # fmt: skip
    """Load parameters from a directory, a file or the hub.

    Args:
        name_or_path: a directory, a file that `fnlm.params.io.read` knows, a hub name, a `Source`.
        heads: None or (); Transformer-XL has none.
        key: unused, as there are no heads.
        ignore: shell patterns of tensor names in the file that are left out.

    Raises:
        FileNotFoundError: no such model.
        ValueError: a tensor is missing, unexpected, of another shape, or unlike the one that the
            config ties it to; another family's config; a damaged file.
    """
    return io.load(name_or_path, names.FAMILY, Config, spec, heads=heads, key=key, ignore=ignore)


def save(params: Params, directory: str | Path, *, dialect: str = "transformers") -> None:
    """Write weights and config.json, with the tensor names of pytorch-pretrained-bert.

    Args:
        params: from `init`, `load` or training.
        directory: created if missing; a model in it is replaced atomically.
        dialect: "transformers", or "pytorch-pretrained-bert" for a file that library reads, too.

    Raises:
        ValueError: no such dialect, or a leaf that does not fit the config.
    """
    config_of(params, Config)
    io.save(params, directory, names.FAMILY, spec, dialect)
