"""OpenAI GPT: a causal transformer with post-norm blocks, learned positions and a tied output.

Dimensions: B batch (any leading axes), T new tokens, S cached tokens, V vocabulary (BPE tokens,
then special ones), N positions, D width, H heads, Dh = D / H width of a head, L layers, C choices.

Sources: Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training";
openai/finetune-transformer-lm, `train.py`; pytorch-pretrained-bert 0.6.2, `modeling_openai.py`.
Deviations: dropout falls on the sum of the embeddings (OpenAI's code drops elements of the matrix,
pytorch-pretrained-bert ignores its `embd_pdrop`); padding masks; an immutable key-value cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fnlm import _causal, random
from fnlm.heads import choice_logits, head_params, output_table, tied_logits
from fnlm.layers import ACTIVATIONS, attention, dropout, dropout_keys, layer_norm, linear, mlp, tap
from fnlm.layers.kv_cache import KV, AnyCache, Cache, FixedCache
from fnlm.params import check_config, config_of, io, register_functions
from fnlm.params.config import BaseConfig, Count, Rate, Scale, Size, multiple_of, one_of
from fnlm.params.names import gpt as names
from fnlm.params.spec import Spec, heads_among, initialize, linear_spec, norm_spec
from fnlm.tree import Params, Tree, register_constant

__all__ = [
    "HEADS", "Cache", "Config", "FixedCache", "Params", "apply", "double_heads",
    "extend_vocabulary", "hidden_states", "init", "init_cache", "layers", "load", "save", "spec",
]  # fmt: skip

HEADS = ("multiple_choice",)

# The activations that `afn` may name; GPT's "gelu" is the tanh approximation.
_AFN = {name: ACTIVATIONS[name] for name in ("relu", "silu", "swish")}
_AFN["gelu"] = ACTIVATIONS["gelu_new"]


@register_constant
@dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """The fields of a published config.json; the defaults are those of the published model.

    `vocab_size` counts the BPE tokens alone; `n_special` special tokens follow them in the table.
    For `tie_word_embeddings` and the choices of `double_heads`, see `fnlm.gpt2.Config`.
    """

    vocab_size: Size = 40478
    n_special: Count = 0
    n_positions: Size = 512
    n_ctx: Size = 512
    n_embd: Size = 768
    n_layer: Size = 12
    n_head: Size = 12
    afn: str = "gelu"
    embd_pdrop: Rate = 0.1
    attn_pdrop: Rate = 0.1
    resid_pdrop: Rate = 0.1
    layer_norm_epsilon: Scale = 1e-5
    initializer_range: Scale = 0.02
    summary_activation: str | None = None
    summary_first_dropout: Rate = 0.1
    tie_word_embeddings: bool = True
    aliases = names.ALIASES

    def __post_init__(self) -> None:
        super().__post_init__()
        multiple_of(self, "n_embd", "n_head")
        one_of("afn", self.afn, _AFN)
        if self.summary_activation:
            one_of("summary_activation", self.summary_activation, ACTIVATIONS)

    @property
    def total_tokens_embeddings(self) -> int:
        """V, the rows of the embedding table: BPE tokens and special tokens."""
        return self.vocab_size + self.n_special


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
    rows, width, std = config.total_tokens_embeddings, config.n_embd, config.initializer_range
    inner, square = 4 * width, linear_spec(width, width, std)
    block = {
        "attention": {"qkv": linear_spec(width, 3 * width, std), "out": square},
        "norm_1": norm_spec(width),
        "mlp": {"up": linear_spec(width, inner, std), "down": linear_spec(inner, width, std)},
        "norm_2": norm_spec(width),
    }
    tree: Tree = {
        "config": config,
        "embed": {
            "token": Spec((rows, width), "normal", std),
            "position": Spec((config.n_positions, width), "normal", std),
        },
        "blocks": (block,) * config.n_layer,
    }
    if not config.tie_word_embeddings:
        tree["output"] = {"table": Spec((rows, width), "normal", std)}
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


def extend_vocabulary(params: Params, n_special: int, key: Tensor) -> Params:
    """Return parameters with `n_special` special tokens, at the end of the embedding table.

    Existing special tokens keep their embeddings (pytorch-pretrained-bert's
    `set_num_special_tokens` draws all of them anew); those beyond `n_special` are dropped.

    Args:
        params: from `init` or `load`; not changed.
        n_special: special tokens in all, with the ids from `vocab_size`.
        key: the new embeddings are drawn from it, normal with `initializer_range`.

    Raises:
        ValueError: `n_special` is negative.

    >>> config = Config(vocab_size=50, n_positions=8, n_embd=12, n_layer=2, n_head=3)
    >>> params = extend_vocabulary(init(config, random.key(0)), 3, random.key(1))
    >>> params["config"].n_special, params["embed"]["token"].shape
    (3, torch.Size([53, 12]))
    """
    config = replace(config_of(params, Config), n_special=n_special)
    rows = config.total_tokens_embeddings

    def extended(table: Tensor, key: Tensor) -> Tensor:
        new = random.normal(key, (max(rows - len(table), 0), config.n_embd)).to(table)
        return torch.cat([table[:rows], new * config.initializer_range])  # [V, D]

    embed = params["embed"] | {"token": extended(params["embed"]["token"], key)}
    params = params | {"config": config, "embed": embed}
    if config.tie_word_embeddings:
        return params
    output = extended(params["output"]["table"], random.fold_in(key, 0))
    return params | {"output": {"table": output}}


def _attention(
    x: Tensor, weights: Tree, context: _causal.Context, config: Config,
    keys: Sequence[Tensor | None],
) -> tuple[Tensor, KV]:  # fmt: skip
    """Causal multi-head self-attention, cached tokens included: [..., T, D] -> the same."""
    qkv, taps = linear(x, **weights["qkv"]), weights.get("taps")  # [..., T, 3 D]
    q, k, v = attention.split_heads(qkv, config.n_head, parts=3)  # [..., H, T, Dh] each
    out, new = _causal.attend_cached(
        q, k, v, context, rate=config.attn_pdrop, key=keys[0], taps=taps
    )
    out = tap(linear(attention.merge_heads(out), **weights["out"]), taps, "out")  # [..., T, D]
    return dropout(out, config.resid_pdrop, keys[1]), new


def _block(
    x: Tensor, block: Tree, context: _causal.Context, config: Config, key: Tensor | None
) -> tuple[Tensor, KV]:
    """Post-norm transformer block: x [..., T, D] -> the same, with the new keys and values."""
    eps = config.layer_norm_epsilon
    *attention_keys, mlp_key = dropout_keys(key, 3)
    # norm(x + attention(x))
    attention_out, new = _attention(x, block["attention"], context, config, attention_keys)
    x = layer_norm(x + attention_out, **block["norm_1"], eps=eps)
    x = tap(x, block.get("taps"), "mid")
    # norm(x + mlp(x))
    mlp_out = mlp(x, **block["mlp"], activation=_AFN[config.afn])  # D -> 4 D -> D
    mlp_out = dropout(mlp_out, config.resid_pdrop, mlp_key)
    return layer_norm(x + mlp_out, **block["norm_2"], eps=eps), new


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
    """Return the hidden states after the last block [..., T, D], and the new cache.

    Arguments of `apply`, without whose output layer they are.
    """
    (x,), cache = _states(params, ids, cache, mask, positions, token_types, key=key, remat=remat,
                          keep=1)  # fmt: skip
    return tap(x, params.get("taps"), "hidden"), cache


def layers(
    params: Params, ids: Tensor, cache: AnyCache | None = None, mask: Tensor | None = None,
    positions: Tensor | None = None, token_types: Tensor | None = None, *,
    key: Tensor | None = None, remat: bool = False,
) -> tuple[tuple[Tensor, ...], AnyCache]:  # fmt: skip
    """Return the hidden states after every block, L tensors [..., T, D], and the new cache.

    Arguments of `apply`. The last of them is `hidden_states`.
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
        choice_positions: int64 [..., C], the token that is scored, often a special one at the end.
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
    """Load parameters from files, OpenAI's arrays too, or the hub: see `fnlm.params.io.load`."""
    return io.load(name_or_path, names.FAMILY, Config, spec, heads=heads, key=key, ignore=ignore)


def save(params: Params, directory: io.PathLike, *, dialect: str = "transformers") -> None:
    """Write weights and config.json in a dialect of the family: `fnlm.params.io.save` tells how."""
    config_of(params, Config)
    io.save(params, directory, names.FAMILY, spec, dialect)


register_functions(__name__, Config, spec)
