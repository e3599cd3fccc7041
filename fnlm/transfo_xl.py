"""Transformer-XL: relative positions, and a memory of the hidden states of earlier segments.

Dimensions: B batch (any leading axes), T new tokens, M remembered tokens, S = M + T, V vocabulary,
D width, E width of the widest embeddings, H heads, Dh width of a head, F inner width, L layers.

Sources: Dai et al. 2019, "Transformer-XL: Attentive Language Models Beyond a Fixed-Length Context"
(arXiv:1901.02860); kimiyoung/transformer-xl, `tf/model.py`; pytorch-pretrained-bert 0.6.2,
`modeling_transfo_xl.py`. Deviations: dropout is on when a key is given; batch first; with
`ext_len`, memory is cut as in the paper's code (pytorch-pretrained-bert swaps two lengths).
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fnlm import _adaptive_vocabulary as vocabulary
from fnlm.layers import attention, dropout, dropout_keys, layer_norm, linear, mlp, sinusoids, tap
from fnlm.layers._inputs import check_ids, check_same_shape
from fnlm.layers.memory import Mems, check_mems, reset_mems, update_mems, zero_mems
from fnlm.layers.relative_attention import attend_relative, attention_bias, causal_window_mask
from fnlm.params import check_config, config_of, io, register_functions
from fnlm.params.config import Count, Rate, Scale, Size, one_of
from fnlm.params.names import transfo_xl as names
from fnlm.params.spec import Spec, heads_among, initialize, norm_spec
from fnlm.transforms import recompute
from fnlm.tree import Params, Tree, register_constant

__all__ = [
    "HEADS", "Config", "Mems", "Params", "apply", "hidden_states", "init", "init_mems", "layers",
    "load", "negative_log_likelihood", "reset_mems", "save", "spec",
]  # fmt: skip

HEADS: tuple[str, ...] = ()
Keys = Sequence[Tensor | None]  # dropout keys; None is no dropout


@register_constant
@dataclass(frozen=True, kw_only=True)
class Config(vocabulary.AdaptiveConfig):
    """The fields of a published config.json; the defaults are those of transfo-xl-wt103.

    `mem_len`, `ext_len`, `clamp_len` and `same_length` may be changed for a trained model, by
    `dataclasses.replace`. `tgt_len` and `adaptive` only go into the file.
    """

    n_head: Size = 16
    d_head: Size = 64
    d_inner: Size = 4096
    pre_lnorm: bool = False
    n_layer: Size = 18
    tgt_len: Count = 128
    ext_len: Count = 0
    mem_len: Count = 1600
    clamp_len: int = 1000
    same_length: bool = True
    attn_type: int = 0
    adaptive: bool = True
    dropout: Rate = 0.1
    dropatt: Rate = 0.0
    untie_r: bool = True
    init: str = "normal"
    init_range: Scale = 0.01
    init_std: Scale = 0.02
    layer_norm_epsilon: Scale = 1e-12
    aliases = names.ALIASES

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("init", self.init, ("normal", "uniform"))
        if self.d_model % 2:
            raise ValueError(f"d_model must be even, for sines and cosines, got {self.d_model}")
        if self.attn_type:
            raise ValueError(f"attn_type={self.attn_type} is not 0: others change their memory")


def init_mems(params: Params, batch: int | Sequence[int], *, empty: bool = False) -> Mems:
    """Return the memory at the start of a text.

    Args:
        params: only shapes and types are read.
        batch: B, or all leading axes.
        empty: False gives `mem_len` zeros that are attended to, as in both reference
            implementations; `mems=None` means the same. True masks them, so that a text cut in
            segments has the hidden states of the whole text, if `mem_len` covers it.

    >>> from fnlm import random
    >>> config = Config(n_token=50, cutoffs=(9,), d_model=8, d_embed=8, n_layer=2, mem_len=6)
    >>> init_mems(init(config, random.key(0)), 3).hidden[1].shape
    torch.Size([3, 6, 8])
    """
    config, like = config_of(params, Config), params["embed"]["cluster_0"]["table"]
    lead = (batch,) if isinstance(batch, int) else batch
    shape = (*lead, config.mem_len, config.d_model)  # [..., M, D]
    return zero_mems(like, len(params["blocks"]), shape, empty=empty)


def spec(config: Config, heads: Sequence[str] = ()) -> Tree:
    """Return the parameters' shapes, dtypes and initializers; `heads` must be empty."""
    check_config(config, Config)
    heads_among(heads, HEADS)

    def weight(*shape: int) -> Spec:
        if config.init == "uniform":
            return Spec(shape, "uniform", config.init_range)
        return Spec(shape, "normal", config.init_std)

    width, inner, heads_width = config.d_model, config.d_inner, config.n_head * config.d_head
    biases = dict.fromkeys(("content_bias", "position_bias"), weight(config.n_head, config.d_head))
    attention = {
        "qkv": weight(width, 3 * heads_width), "relative": weight(width, heads_width),
        "out": weight(heads_width, width),
    }  # fmt: skip
    block = {
        "attention": attention | (biases if config.untie_r else {}),
        "norm_1": norm_spec(width),
        "mlp": {
            "up": {"weight": weight(width, inner), "bias": Spec((inner,))},
            "down": {"weight": weight(inner, width), "bias": Spec((width,))},
        },
        "norm_2": norm_spec(width),
    }
    embed, softmax = vocabulary.spec(config, weight)
    tree = {"config": config, "embed": embed, "blocks": (block,) * config.n_layer}
    return tree | ({} if config.untie_r else {"shared": biases}) | {"softmax": softmax}


def init(config: Config, key: Tensor, heads: Sequence[str] = ()) -> Params:
    """Initialize parameters: weights by `config.init`, projections normal, biases 0, scales 1."""
    return initialize(spec(config, heads), key)


def _attention(
    inputs: Tensor, positions: Tensor, mask: Tensor, weights: Tree, config: Config, keys: Keys
) -> Tensor:
    """Relative attention of the new tokens to memory and themselves: [..., S, D] -> [..., T, D]."""
    qkv, width = weights["qkv"], config.n_head * config.d_head  # [D, 3 H Dh]
    new = inputs[..., inputs.shape[-2] - mask.shape[-2] :, :]  # [..., T, D]
    new = linear(new, qkv[:, :width], None)  # [..., T, H Dh]
    q = attention.split_heads(new, config.n_head)[0]  # [..., H, T, Dh]
    kv = linear(inputs, qkv[:, width:], None)  # [..., S, 2 H Dh]
    k, v = attention.split_heads(kv, config.n_head, parts=2)  # [..., H, S, Dh] each
    relative = linear(positions, weights["relative"], None)  # [..., S + 1, H Dh]
    r = attention.split_heads(relative, config.n_head)[0]  # [..., H, S + 1, Dh]
    given = {k: weights[k] for k in ("content_bias", "position_bias", "taps") if k in weights}
    out = attend_relative(q, k, v, r, mask, **given, rate=config.dropatt, key=keys[0])
    out = linear(attention.merge_heads(out), weights["out"], None)  # [..., T, D]
    return dropout(tap(out, weights.get("taps"), "out"), config.dropout, keys[1])


def _block(
    inputs: Tensor, positions: Tensor, mask: Tensor, block: Tree, config: Config, key: Tensor | None
) -> Tensor:
    """Post-norm transformer block: memory and new tokens [..., S, D] -> new tokens [..., T, D]."""
    eps, keys = config.layer_norm_epsilon, dropout_keys(key, 4)
    x = inputs[..., inputs.shape[-2] - mask.shape[-2] :, :]  # [..., T, D]
    x = x + _attention(inputs, positions, mask, block["attention"], config, keys[:2])
    x = tap(layer_norm(x, **block["norm_1"], eps=eps), block.get("taps"), "mid")
    mlp_out = mlp(x, **block["mlp"], activation=torch.relu, rate=config.dropout, key=keys[2])
    return layer_norm(x + dropout(mlp_out, config.dropout, keys[3]), **block["norm_2"], eps=eps)


def _pre_norm_block(
    inputs: Tensor, positions: Tensor, mask: Tensor, block: Tree, config: Config, key: Tensor | None
) -> Tensor:
    """Pre-norm transformer block: memory and new tokens [..., S, D] -> new tokens [..., T, D]."""
    eps, keys = config.layer_norm_epsilon, dropout_keys(key, 4)
    x = inputs[..., inputs.shape[-2] - mask.shape[-2] :, :]  # [..., T, D]
    inputs = layer_norm(inputs, **block["norm_1"], eps=eps)
    x = x + _attention(inputs, positions, mask, block["attention"], config, keys[:2])
    x = tap(x, block.get("taps"), "mid")
    normed = layer_norm(x, **block["norm_2"], eps=eps)
    mlp_out = mlp(normed, **block["mlp"], activation=torch.relu, rate=config.dropout, key=keys[2])
    return x + dropout(mlp_out, config.dropout, keys[3])


def _states(
    params: Params, ids: Tensor, mems: Mems | None, *, key: Tensor | None, detach: bool,
    sparse: bool, remat: bool, keep: int | None = None,
) -> tuple[tuple[Tensor, ...], Mems]:  # fmt: skip
    """Return the last `keep` of 1 + L hidden states, embeddings first, and the new memory."""
    config, blocks = params["config"], params["blocks"]
    _check(params, ids, mems)
    mems = init_mems(params, ids.shape[:-1]) if mems is None else mems
    embed_key, position_key, _last_key, *block_keys = dropout_keys(key, 3 + len(blocks))
    x = vocabulary.embed(params, ids, sparse=sparse)
    x = dropout(x * config.d_model**0.5, config.dropout, embed_key)  # [..., T, D]
    # The queries are the new tokens; the keys are the memory, then the new tokens.
    valid = torch.cat([mems.valid, torch.ones_like(ids, dtype=torch.bool)], -1)  # [..., S]
    new, total = ids.shape[-1], valid.shape[-1]
    positions = sinusoids(total + 1, config.d_model, config.clamp_len, x.dtype, x.device)
    if position_key is not None:  # each key has its own mask: [S + 1, D] -> [..., S + 1, D]
        lead = (*position_key.shape, *(1,) * (ids.ndim - 1 - position_key.ndim))
        positions = dropout(positions.expand(*lead, -1, -1), config.dropout, position_key)
    window = config.mem_len if config.same_length else None
    causal = causal_window_mask(new, total, window, x.device)  # [T, S]
    mask = attention_bias(causal & valid[..., None, None, :], x.dtype)  # [..., 1, T, S]
    run = _pre_norm_block if config.pre_lnorm else _block
    run = recompute.remat(run) if remat else run
    shared = params.get("shared")  # u and v of all layers
    states, inputs = deque([x], maxlen=keep), []
    for block, past, block_key in zip(blocks, mems.hidden, block_keys, strict=True):
        weights = block | {"attention": block["attention"] | shared} if shared else block
        inputs.append(torch.cat([past, tap(x, block.get("taps"), "in")], -2))  # [..., S, D]
        x = run(inputs[-1], positions, mask, weights, config, block_key)  # [..., T, D]
        x = tap(x, block.get("taps"), "out")
        states.append(x)
    mems, ext_len = Mems(tuple(inputs), valid), config.ext_len  # of S tokens
    mems = update_mems(mems, new, config.mem_len, ext_len=ext_len, detach=detach)
    return tuple(states), mems


def hidden_states(
    params: Params, ids: Tensor, mems: Mems | None = None, *, key: Tensor | None = None,
    detach: bool = True, sparse: bool = False, remat: bool = False,
) -> tuple[Tensor, Mems]:  # fmt: skip
    """Return the hidden states after the last block [..., T, D], and the new memory.

    Arguments of `apply`. With a key, they have a last dropout.
    """
    (x,), mems = _states(params, ids, mems, key=key, detach=detach, sparse=sparse, remat=remat,
                         keep=1)  # fmt: skip
    x = dropout(x, params["config"].dropout, dropout_keys(key, 3)[2])
    return tap(x, params.get("taps"), "hidden"), mems


def layers(
    params: Params, ids: Tensor, mems: Mems | None = None, *, key: Tensor | None = None,
    detach: bool = True, sparse: bool = False, remat: bool = False,
) -> tuple[tuple[Tensor, ...], Mems]:  # fmt: skip
    """Return the hidden states after every block, L tensors [..., T, D], and the new memory.

    Arguments of `apply`. The last of them is `hidden_states`, without its last dropout.
    """
    states, mems = _states(params, ids, mems, key=key, detach=detach, sparse=sparse, remat=remat)
    return states[1:], mems


def apply(
    params: Params, ids: Tensor, mems: Mems | None = None, *, key: Tensor | None = None,
    detach: bool = True, sparse: bool = False, remat: bool = False,
) -> tuple[Tensor, Mems]:  # fmt: skip
    """Return the log-probabilities of the next token [..., T, V], and the new memory.

    Args:
        params: from `init` or `load`.
        ids: int64 [..., T], each 0 <= id < V.
        mems: of the last `mem_len` tokens before `ids`, but for the last `ext_len`; from an earlier
            call. None starts a text (`init_mems`).
        key: turns dropout on; one key, or keys for the leading axes of `ids`.
        detach: stop gradients through the new memory.
        sparse: compute only the clusters in use: faster, with shapes that depend on data.
        remat: compute each block again in the backward pass, for less memory.

    Raises:
        ValueError: a memory that does not fit; `same_length` without a memory.
        IndexError: ids out of range.

    >>> from fnlm import random
    >>> config = Config(n_token=50, cutoffs=(9,), d_model=8, d_embed=8, n_layer=2, mem_len=6)
    >>> params = init(config, random.key(0))
    >>> ids = torch.tensor([[3, 1, 4, 1, 5]])
    >>> whole, _ = apply(params, ids)
    >>> first, mems = apply(params, ids[:, :3])
    >>> second, mems = apply(params, ids[:, 3:], mems)
    >>> torch.allclose(whole, torch.cat([first, second], 1), atol=1e-5)
    True
    """
    x, mems = hidden_states(params, ids, mems, key=key, detach=detach, sparse=sparse, remat=remat)
    return vocabulary.log_probs(params, x), mems


def negative_log_likelihood(
    params: Params, ids: Tensor, targets: Tensor, mems: Mems | None = None, *,
    key: Tensor | None = None, detach: bool = True, sparse: bool = False, remat: bool = False,
) -> tuple[Tensor, Mems]:  # fmt: skip
    """Return minus the log-probability of each target [..., T], and the new memory.

    Without a tensor [..., T, V]; with a key and `sample_softmax` > 0, a sampled-softmax estimate.

    Args:
        params: see `apply`, as for the other arguments.
        targets: int64 [..., T], the token that follows each of `ids`.

    Raises:
        ValueError: targets of another shape than ids; see `apply`.
        IndexError: ids or targets out of range.
    """
    check_ids(ids)
    check_same_shape(ids.shape, targets=targets)
    x, mems = hidden_states(params, ids, mems, key=key, detach=detach, sparse=sparse, remat=remat)
    return vocabulary.nll(params, x, targets, key=key, sparse=sparse), mems


def _check(params: Params, ids: Tensor, mems: Mems | None) -> None:
    """Validate shapes; no value is read, so it works under every transform."""
    check_ids(ids)
    config: Config = params["config"]
    if config.same_length and not config.mem_len:
        raise ValueError(
            "same_length=True with mem_len=0 leaves nothing to attend to: set same_length=False"
        )
    if mems is not None:
        like, layers = params["embed"]["cluster_0"]["table"], len(params["blocks"])
        check_mems(mems, like, layers, ids.shape[:-1], config.d_model)


def load(
    name_or_path: io.NameOrPath, *, heads: Sequence[str] | None = None, key: Tensor | None = None,
    ignore: Sequence[str] | None = (),
) -> Params:  # fmt: skip
    """Load parameters from a directory, a file or the hub: `fnlm.params.io.load` tells how."""
    return io.load(name_or_path, names.FAMILY, Config, spec, heads=heads, key=key, ignore=ignore)


def save(params: Params, directory: io.PathLike, *, dialect: str = "transformers") -> None:
    """Write weights and config.json in a dialect of the family: `fnlm.params.io.save` tells how."""
    config_of(params, Config)
    io.save(params, directory, names.FAMILY, spec, dialect)


register_functions(__name__, Config, spec)
