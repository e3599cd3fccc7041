"""GPT-2: a causal transformer with pre-norm blocks, learned positions and a tied output.

Dimensions: B batch (any leading axes), T new tokens, S cached tokens, V vocabulary, N positions, D
width, H heads, Dh = D / H width of a head, L layers, C choices. A key-value cache of S tokens makes
S + T keys for T queries.

Sources: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; openai/gpt-2,
`src/model.py`; pytorch-pretrained-bert 0.6.2, `modeling_gpt2.py`. Deviations: dropout (the
published code has none) is on when a key is given; padding masks; an immutable cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fnlm import _causal, random
from fnlm.heads import choice_logits, head_params, output_table, tied_logits
from fnlm.layers import ACTIVATIONS, attention, dropout, dropout_keys, layer_norm, linear, mlp, tap
from fnlm.layers.kv_cache import KV, AnyCache, Cache, FixedCache
from fnlm.params import check_config, config_of, io, register_functions
from fnlm.params.config import BaseConfig, Rate, Scale, Size, multiple_of, one_of
from fnlm.params.names import gpt2 as names
from fnlm.params.spec import Spec, heads_among, initialize, linear_spec, norm_spec
from fnlm.tree import Params, Tree, register_constant

__all__ = [
    "HEADS", "Cache", "Config", "FixedCache", "Params", "apply", "double_heads", "hidden_states",
    "init", "init_cache", "layers", "load", "save", "spec",
]  # fmt: skip

HEADS = ("multiple_choice",)


@register_constant
@dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """The fields of a published config.json; the defaults are those of the smallest GPT-2.

    With `tie_word_embeddings` False, the output layer has its own table, "output". The choices of
    `double_heads` are scored by `summary_activation`(x @ weight + bias), with dropout of x at
    `summary_first_dropout`, by default the file's `resid_pdrop`.
    """

    vocab_size: Size = 50257
    n_positions: Size = 1024
    n_ctx: Size = 1024
    n_embd: Size = 768
    n_layer: Size = 12
    n_head: Size = 12
    n_inner: Size | None = None
    activation_function: str = "gelu_new"
    embd_pdrop: Rate = 0.1
    attn_pdrop: Rate = 0.1
    resid_pdrop: Rate = 0.1
    layer_norm_epsilon: Scale = 1e-5
    initializer_range: Scale = 0.02
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    summary_activation: str | None = None
    summary_first_dropout: Rate = 0.1
    tie_word_embeddings: bool = True
    aliases = names.ALIASES

    def __post_init__(self) -> None:
        super().__post_init__()
        multiple_of(self, "n_embd", "n_head")
        one_of("activation_function", self.activation_function, ACTIVATIONS)
        if self.summary_activation:
            one_of("summary_activation", self.summary_activation, ACTIVATIONS)


def _sizes(params: Params) -> _causal.Sizes:
    config: Config = params["config"]
    layers, head_width = len(params["blocks"]), config.n_embd // config.n_head
    return _causal.Sizes(layers, config.n_head, head_width, config.n_positions)


def init_cache(params: Params, batch: int | Sequence[int], capacity: int) -> FixedCache:
    """Return an empty key-value cache of fixed shapes, for compiled decoding.

    Without one, `apply` starts a cache that grows.

    Args:
        params: only shapes and types are read.
        batch: B, or all leading axes.
        capacity: tokens it can hold, at most `n_positions`.

    Raises:
        ValueError: capacity is more than `n_positions`.
    """
    config_of(params, Config)
    return _causal.init_cache(_sizes(params), params["embed"]["token"], batch, capacity)


def spec(config: Config, heads: Sequence[str] = ()) -> Tree:
    """Return the parameters' shapes, dtypes and initializers: a tree of `Spec`.

    Raises:
        ValueError: a head is not one of `HEADS`.
    """
    check_config(config, Config)
    width, std = config.n_embd, config.initializer_range
    inner, square = config.n_inner or 4 * width, linear_spec(width, width, std)
    block = {
        "norm_1": norm_spec(width),
        "attention": {"qkv": linear_spec(width, 3 * width, std), "out": square},
        "norm_2": norm_spec(width),
        "mlp": {"up": linear_spec(width, inner, std), "down": linear_spec(inner, width, std)},
    }
    tree: Tree = {
        "config": config,
        "embed": {
            "token": Spec((config.vocab_size, width), "normal", std),
            "position": Spec((config.n_positions, width), "normal", std),
        },
        "blocks": (block,) * config.n_layer,
        "norm": norm_spec(width),
    }
    if not config.tie_word_embeddings:
        tree["output"] = {"table": Spec((config.vocab_size, width), "normal", std)}
    if heads_among(heads, HEADS):
        tree["heads"] = {"multiple_choice": linear_spec(width, 1, std)}
    return tree


def init(config: Config, key: Tensor, heads: Sequence[str] = ()) -> Params:
    """Initialize parameters: weights normal with `initializer_range`, biases 0, scales 1.

    >>> config = Config(vocab_size=50, n_positions=8, n_embd=12, n_layer=2, n_head=3)
    >>> params = init(config, random.key(0))
    >>> params["blocks"][0]["attention"]["qkv"]["weight"].shape
    torch.Size([12, 36])
    """
    return initialize(spec(config, heads), key)


def _scale(config: Config, layer: int) -> float:
    """Return the factor on a layer's attention scores besides 1 / sqrt(Dh)."""
    scale = 1.0 if config.scale_attn_weights else (config.n_embd // config.n_head) ** 0.5
    return scale / (layer + 1) if config.scale_attn_by_inverse_layer_idx else scale


def _attention(
    x: Tensor, weights: Tree, context: _causal.Context, config: Config,
    keys: Sequence[Tensor | None],
) -> tuple[Tensor, KV]:  # fmt: skip
    """Causal multi-head self-attention, cached tokens included: [..., T, D] -> the same."""
    qkv, taps = linear(x, **weights["qkv"]), weights.get("taps")  # [..., T, 3 D]
    q, k, v = attention.split_heads(qkv, config.n_head, parts=3)  # [..., H, T, Dh] each
    scale = _scale(config, context.layer)
    q = q if scale == 1 else q * scale
    out, new = _causal.attend_cached(
        q, k, v, context, rate=config.attn_pdrop, key=keys[0], taps=taps
    )
    out = tap(linear(attention.merge_heads(out), **weights["out"]), taps, "out")  # [..., T, D]
    return dropout(out, config.resid_pdrop, keys[1]), new


def _block(
    x: Tensor, block: Tree, context: _causal.Context, config: Config, key: Tensor | None
) -> tuple[Tensor, KV]:
    """Pre-norm transformer block: x [..., T, D] -> the same, with the new keys and values."""
    eps, activation = config.layer_norm_epsilon, ACTIVATIONS[config.activation_function]
    *attention_keys, mlp_key = dropout_keys(key, 3)
    # x + attention(norm(x))
    normed = layer_norm(x, **block["norm_1"], eps=eps)
    attention_out, new = _attention(normed, block["attention"], context, config, attention_keys)
    x = tap(x + attention_out, block.get("taps"), "mid")
    # x + mlp(norm(x))
    normed = layer_norm(x, **block["norm_2"], eps=eps)
    mlp_out = mlp(normed, **block["mlp"], activation=activation)  # D -> n_inner -> D
    return x + dropout(mlp_out, config.resid_pdrop, mlp_key), new


def _states(
    params: Params, ids: Tensor, cache: AnyCache | None, mask: Tensor | None,
    positions: Tensor | None, token_types: Tensor | None, *, key: Tensor | None,
    remat: bool, keep: int | None = None,
) -> tuple[tuple[Tensor, ...], AnyCache]:  # fmt: skip
    """Return the last `keep` of 1 + L hidden states, embeddings first, and the new cache."""
    config, blocks = params["config"], params["blocks"]
    embed_key, *block_keys = dropout_keys(key, 1 + len(blocks))
    tokens = _causal.begin(ids, cache, mask, positions, _sizes(params))
    x = _causal.embed(params["embed"], ids, tokens.positions, token_types)  # [..., T, D]
    x = dropout(x, config.embd_pdrop, embed_key)
    return _causal.run(_block, x, blocks, tokens, config, block_keys, keep=keep, remat=remat)


def hidden_states(
    params: Params, ids: Tensor, cache: AnyCache | None = None, mask: Tensor | None = None,
    positions: Tensor | None = None, token_types: Tensor | None = None, *,
    key: Tensor | None = None, remat: bool = False,
) -> tuple[Tensor, AnyCache]:  # fmt: skip
    """Return the hidden states after the last norm [..., T, D], and the new cache.

    Arguments of `apply`, without whose output layer they are.
    """
    (x,), cache = _states(params, ids, cache, mask, positions, token_types, key=key, remat=remat,
                          keep=1)  # fmt: skip
    eps = params["config"].layer_norm_epsilon
    x = layer_norm(x, **params["norm"], eps=eps)
    return tap(x, params.get("taps"), "hidden"), cache


def layers(
    params: Params, ids: Tensor, cache: AnyCache | None = None, mask: Tensor | None = None,
    positions: Tensor | None = None, token_types: Tensor | None = None, *,
    key: Tensor | None = None, remat: bool = False,
) -> tuple[tuple[Tensor, ...], AnyCache]:  # fmt: skip
    """Return the hidden states after every block, L tensors [..., T, D], and the new cache.

    Arguments of `apply`. They are without the last norm, which makes `hidden_states` of the last.
    """
    states, cache = _states(params, ids, cache, mask, positions, token_types, key=key, remat=remat)
    return states[1:], cache


def apply(
    params: Params, ids: Tensor, cache: AnyCache | None = None, mask: Tensor | None = None,
    positions: Tensor | None = None, token_types: Tensor | None = None, *,
    key: Tensor | None = None, remat: bool = False,
) -> tuple[Tensor, AnyCache]:  # fmt: skip
    """Return the logits of the next token [..., T, V], and the cache with the new tokens.

    Args:
        params: from `init` or `load`.
        ids: int64 [..., T], each 0 <= id < V.
        cache: key-value cache of the tokens before `ids`, from an earlier call; not modified.
        mask: [..., T], nonzero for real tokens, 0 for padding on either side; stored in the cache.
        positions: int64, broadcastable to [..., T]; by default each row counts its real tokens, the
            cached included.
        token_types: int64 [..., T], token ids whose embeddings are added.
        key: turns dropout on; one key, or one for each of the leading axes of `ids`.
        remat: compute each block again in the backward pass, for less memory.

    Raises:
        ValueError: more than `n_positions` tokens; a cache or mask that does not fit.
        IndexError: ids or positions out of range.

    >>> import torch
    >>> config = Config(vocab_size=50, n_positions=8, n_embd=12, n_layer=2, n_head=3)
    >>> params = init(config, random.key(0))
    >>> ids = torch.tensor([[3, 1, 4, 1, 5]])
    >>> whole, _ = apply(params, ids)
    >>> first, cache = apply(params, ids[:, :3])
    >>> second, cache = apply(params, ids[:, 3:], cache)
    >>> torch.allclose(whole, torch.cat([first, second], 1), atol=1e-5)
    True
    """
    x, cache = hidden_states(params, ids, cache, mask, positions, token_types, key=key, remat=remat)
    return tap(tied_logits(x, output_table(params)), params.get("taps"), "logits"), cache


def double_heads(
    params: Params, ids: Tensor, choice_positions: Tensor, cache: AnyCache | None = None,
    mask: Tensor | None = None, *, positions: Tensor | None = None,
    token_types: Tensor | None = None, key: Tensor | None = None, remat: bool = False,
) -> tuple[Tensor, Tensor, AnyCache]:  # fmt: skip
    """Return language-model logits [..., C, T, V], choice logits [..., C], and the new cache.

    Args:
        params: with the head "multiple_choice".
        ids: int64 [..., C, T].
        choice_positions: int64 [..., C], the token whose hidden state is scored.
        cache: as for `apply`, like the other arguments.

    Raises:
        KeyError: the parameters have no such head.
    """
    head, config = head_params(params, "multiple_choice", Config), params["config"]
    x, cache = hidden_states(params, ids, cache, mask, positions, token_types, key=key, remat=remat)
    lm_logits = tap(tied_logits(x, output_table(params)), params.get("taps"), "logits")
    scores = choice_logits(
        x, choice_positions, **head, rate=config.summary_first_dropout,
        activation=ACTIVATIONS.get(config.summary_activation or ""),
        key=None if key is None else random.fold_in(key, 0),
    )  # fmt: skip  # [..., C]
    return lm_logits, scores, cache


def load(
    name_or_path: io.NameOrPath, *, heads: Sequence[str] | None = None, key: Tensor | None = None,
    ignore: Sequence[str] = (),
) -> Params:  # fmt: skip
    """Load parameters from a directory, a file, the package or the hub: see `fnlm.params.io`."""
    return io.load(name_or_path, names.FAMILY, Config, spec, heads=heads, key=key, ignore=ignore)


def save(params: Params, directory: io.PathLike, *, dialect: str = "transformers") -> None:
    """Write weights and config.json for another library to read: `fnlm.params.io.save` tells how.

    `dialect` is "transformers" or "pytorch-pretrained-bert".
    """
    config_of(params, Config)
    io.save(params, directory, names.FAMILY, spec, dialect)


register_functions(__name__, Config, spec)
