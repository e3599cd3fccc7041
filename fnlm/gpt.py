"""OpenAI GPT: a causal transformer with post-norm blocks, learned positions and a tied output.

Dimensions: B batch (any leading axes), T new tokens, S cached tokens, V vocabulary (BPE
tokens, then special tokens), N positions, D width, H heads, Dh = D / H width of a head, L layers, C
choices.

Sources: Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training";
openai/finetune-transformer-lm, `train.py`; pytorch-pretrained-bert 0.6.2, `modeling_openai.py`.
Deviations: with a key, dropout falls on the sum of the embeddings (OpenAI's code drops elements
of the embedding matrix, pytorch-pretrained-bert ignores its `embd_pdrop`); padding masks; an
immutable key-value cache.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from fnlm import _causal as causal
from fnlm import heads as task_heads
from fnlm import random
from fnlm._causal import KV, KVSegments
from fnlm.layers import cache as kv
from fnlm.layers._inputs import check_broadcastable, check_same_shape
from fnlm.layers.activation import ACTIVATIONS, gelu_tanh
from fnlm.layers.attention import causal_mask
from fnlm.layers.cache import AnyCache, Cache, FixedCache
from fnlm.layers.dropout import dropout, dropout_keys
from fnlm.layers.embedding import lookup
from fnlm.layers.mlp import mlp
from fnlm.layers.norm import layer_norm
from fnlm.params import io
from fnlm.params import spec as describe
from fnlm.params._check import checked, config_of
from fnlm.params.config import BaseConfig, Count, Rate, Scale, Size, one_of
from fnlm.params.names import gpt as names
from fnlm.params.spec import Spec
from fnlm.tree import Tree, register_constant

__all__ = [
    "HEADS", "Cache", "Config", "FixedCache", "apply", "double_heads", "extend_vocabulary",
    "hidden_states", "init", "init_cache", "load", "save", "spec",
]  # fmt: skip

HEADS = ("multiple_choice",)
Params = dict[str, Any]
Keys = Sequence[Tensor | None]  # dropout keys; None is no dropout

# The activations that `afn` may name; GPT's "gelu" is the tanh approximation.
_AFN = {"gelu": gelu_tanh, **{name: ACTIVATIONS[name] for name in ("relu", "silu", "swish")}}


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
    aliases: ClassVar[Mapping[str, str]] = names.ALIASES

    def __post_init__(self) -> None:
        """Validate the fields, each alone and together."""
        super().__post_init__()
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd={self.n_embd} must be a multiple of n_head={self.n_head}")
        one_of("afn", self.afn, _AFN)
        if self.summary_activation:
            one_of("summary_activation", self.summary_activation, ACTIVATIONS)

    @property
    def total_tokens_embeddings(self) -> int:
        """V, the rows of the embedding table: BPE tokens and special tokens."""
        return self.vocab_size + self.n_special


def init_cache(params: Params, batch: int | Sequence[int], capacity: int) -> FixedCache:
    """Return an empty key-value cache of fixed capacity, for compiled decoding.

    Without one, `apply` starts a cache that grows.

    Args:
        params: only shapes and types are read.
        batch: B, or all leading axes.
        capacity: tokens it can hold, at most `n_positions`.

    Returns:
        a cache that keeps its shapes as tokens are appended.

    Raises:
        ValueError: capacity is more than `n_positions`.
    """
    config, table = config_of(params, Config), params["embed"]["token"]
    return causal.fixed_cache(config, table, batch, capacity, layers=len(params["blocks"]))


def spec(config: Config, heads: Sequence[str] = ()) -> Tree:
    """Return the parameters' shapes, dtypes and initializers: a tree of `Spec`.

    Raises:
        ValueError: a head is not one of `HEADS`.
    """
    width, std = config.n_embd, config.initializer_range
    block = {
        "attention": {
            "qkv": describe.linear(width, 3 * width, std),
            "out": describe.linear(width, width, std),
        },
        "norm_1": describe.norm(width),
        "mlp": {
            "up": describe.linear(width, 4 * width, std),
            "down": describe.linear(4 * width, width, std),
        },
        "norm_2": describe.norm(width),
    }
    tree: Tree = {
        "config": config,
        "embed": {
            "token": Spec((config.total_tokens_embeddings, width), "normal", std),
            "position": Spec((config.n_positions, width), "normal", std),
        },
        "blocks": (block,) * config.n_layer,
    }
    if not config.tie_word_embeddings:
        rows = config.total_tokens_embeddings
        tree["output"] = {"table": Spec((rows, width), "normal", std)}
    if describe.heads_among(heads, HEADS):
        tree["heads"] = {"multiple_choice": describe.linear(width, 1, std)}
    return tree


def init(config: Config, key: Tensor, heads: Sequence[str] = ()) -> Params:
    """Initialize parameters: weights normal with `initializer_range`, biases 0, scales 1.

    >>> config = Config(vocab_size=50, n_positions=8, n_embd=12, n_layer=2, n_head=3)
    >>> params = init(config, random.key(0))
    >>> params["blocks"][0]["attention"]["qkv"]["weight"].shape
    torch.Size([12, 36])
    """
    return describe.init(spec(config, heads), key)


def extend_vocabulary(params: Params, n_special: int, key: Tensor) -> Params:
    """Return parameters with `n_special` special tokens, at the end of the embedding table.

    Existing special tokens keep their embeddings (pytorch-pretrained-bert's
    `set_num_special_tokens` draws all of them anew); those beyond `n_special` are dropped.

    Args:
        params: from `init` or `load`; not changed.
        n_special: special tokens in all; their ids are `vocab_size` to
            `vocab_size + n_special - 1`.
        key: the new embeddings are drawn from it, normal with `initializer_range`.

    Returns:
        parameters with that `n_special` in their config.

    Raises:
        ValueError: `n_special` is negative.

    >>> config = Config(vocab_size=50, n_positions=8, n_embd=12, n_layer=2, n_head=3)
    >>> params = extend_vocabulary(init(config, random.key(0)), 3, random.key(1))
    >>> params["config"].n_special, params["embed"]["token"].shape
    (3, torch.Size([53, 12]))
    """
    config = dataclasses.replace(config_of(params, Config), n_special=n_special)

    def extended(table: Tensor, key: Tensor) -> Tensor:
        table = table[: config.total_tokens_embeddings]
        shape = (config.total_tokens_embeddings - len(table), config.n_embd)
        new_rows = random.normal(key, shape).to(table) * config.initializer_range
        return torch.cat([table, new_rows])  # [V, D]

    embed = params["embed"] | {"token": extended(params["embed"]["token"], key)}
    params = params | {"config": config, "embed": embed}
    if config.tie_word_embeddings:
        return params
    output_key = random.fold_in(key, 0)
    return params | {"output": {"table": extended(params["output"]["table"], output_key)}}


def _block(
    x: Tensor, block: Tree, past: KVSegments, mask: Tensor, config: Config, keys: Keys
) -> tuple[Tensor, KV]:
    """Post-norm transformer block: x [..., T, D] -> the same, with the new keys and values."""
    weights, eps = block["attention"], config.layer_norm_epsilon
    attention_out, new = causal.attention(x, past, mask, weights, config, keys[:2])
    x = layer_norm(x + attention_out, **block["norm_1"], eps=eps)  # norm(x + attention(x))
    mlp_out = mlp(x, **block["mlp"], activation=_AFN[config.afn])  # D -> 4 D -> D
    mlp_out = dropout(mlp_out, config.resid_pdrop, keys[2])
    return layer_norm(x + mlp_out, **block["norm_2"], eps=eps), new  # norm(x + mlp(x))


@checked(Config, spec)
def hidden_states(
    params: Params,
    ids: Tensor,
    cache: AnyCache | None = None,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
    token_types: Tensor | None = None,
    *,
    key: Tensor | None = None,
) -> tuple[Tensor, AnyCache]:
    """Return the last hidden states, without the output layer: arguments of `apply`.

    Returns:
        hidden states after the last block [..., T, D], and the cache with the new tokens.
    """
    config: Config = params["config"]
    embed, blocks = params["embed"], params["blocks"]
    causal.check(config, ids, cache, mask, layers=len(blocks))
    cache = kv.outside_inference_mode(cache)
    new_valid = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask != 0  # [..., T]
    if positions is None:  # padding counts for nothing, so real tokens start at position 0
        positions = causal.positions(cache, new_valid)  # [..., T]
    check_broadcastable(ids.shape, positions=positions)
    *block_keys, embed_key = dropout_keys(key, 3 * len(blocks) + 1)
    x = lookup(embed["token"], ids)  # [..., T, D]
    x = x + lookup(embed["position"], positions, "positions")
    if token_types is not None:  # they are ids of the same table as the tokens
        check_same_shape(ids.shape, token_types=token_types)
        x = x + lookup(embed["token"], token_types, "token_types")
    x = dropout(x, config.embd_pdrop, embed_key)
    # The queries are the new tokens; the keys are the cached tokens, then the new ones.
    attention_mask = causal_mask(kv.valid(cache, new_valid), ids.shape[-1])  # [..., 1, T, S + T]
    new: list[KV] = []  # for each layer, keys and values [..., H, T, Dh]
    for layer, block in enumerate(blocks):
        layer_keys = block_keys[3 * layer : 3 * layer + 3]  # attention weights, its output, MLP
        past = kv.past(cache, layer)
        x, layer_kv = _block(x, block, past, attention_mask, config, layer_keys)
        new.append(layer_kv)
    new_keys, new_values = tuple(k for k, _ in new), tuple(v for _, v in new)
    return x, kv.append(cache, new_keys, new_values, new_valid)


def apply(
    params: Params,
    ids: Tensor,
    cache: AnyCache | None = None,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
    token_types: Tensor | None = None,
    *,
    key: Tensor | None = None,
) -> tuple[Tensor, AnyCache]:
    """Return the logits of the next token at every position.

    Args:
        params: from `init` or `load`.
        ids: int64 [..., T], each 0 <= id < V.
        cache: key-value cache of the tokens before `ids`, from an earlier call; not modified.
        mask: [..., T], nonzero for real tokens, 0 for padding on either side; stored in the cache.
        positions: int64, broadcastable to [..., T]; by default each row counts its real tokens, the
            cached included.
        token_types: int64 [..., T], token ids whose embeddings are added.
        key: turns dropout on; one key, or one for each of the leading axes of `ids`.

    Returns:
        logits [..., T, V], and the cache with the new tokens.

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
    hidden, new_cache = hidden_states(
        params, ids, cache, positions=positions, token_types=token_types, mask=mask, key=key
    )
    return task_heads.tied_logits(hidden, task_heads.output_table(params)), new_cache


def double_heads(
    params: Params,
    ids: Tensor,
    choice_positions: Tensor,
    cache: AnyCache | None = None,
    mask: Tensor | None = None,
    *,
    positions: Tensor | None = None,
    token_types: Tensor | None = None,
    key: Tensor | None = None,
) -> tuple[Tensor, Tensor, AnyCache]:
    """Return the logits of the next tokens and a score for each choice.

    Args:
        params: with the head "multiple_choice".
        ids: int64 [..., C, T].
        choice_positions: int64 [..., C], the token whose hidden state is scored: most
            often a special one, at the end.
        cache: as for `apply`, like the other arguments.

    Returns:
        language-model logits [..., C, T, V], choice logits [..., C], and the cache with the new
        tokens.

    Raises:
        KeyError: the parameters have no such head.
    """
    head, config = task_heads.find(params, "multiple_choice", Config), params["config"]
    hidden, new_cache = hidden_states(
        params, ids, cache, positions=positions, token_types=token_types, mask=mask, key=key
    )
    lm_logits = task_heads.tied_logits(hidden, task_heads.output_table(params))  # [..., C, T, V]
    head_key = None if key is None else random.fold_in(key, 0)
    choice_logits = task_heads.choice_logits(
        hidden,
        choice_positions,
        **head,
        activation=ACTIVATIONS.get(config.summary_activation or ""),
        rate=config.summary_first_dropout,
        key=head_key,
    )  # [..., C]
    return lm_logits, choice_logits, new_cache


def load(
    name_or_path: io.NameOrPath,
    *,
    heads: Sequence[str] | None = None,
    key: Tensor | None = None,
    ignore: Sequence[str] = (),
) -> Params:
    """Load parameters from a directory, a file or the hub.

    Args:
        name_or_path: a directory or a file of any format that `fnlm.params.io.read` knows, OpenAI's
            release of NumPy arrays among them, beside its config.json; a hub name, or a `Source`
            of `hub.locate`. A path that exists wins.
        heads: the heads to load; None takes those of the file.
        key: initializes requested heads that the file lacks; without it they are an error.
        ignore: shell patterns of tensor names in the file that are left out.

    Returns:
        params; where the format allows, tensors are read from disk on first use.

    Raises:
        FileNotFoundError: no such model.
        ValueError: a tensor is missing, unexpected or of another shape; another family's config; a
            damaged file.
    """
    return io.load(name_or_path, names.FAMILY, Config, spec, heads=heads, key=key, ignore=ignore)


def save(params: Params, directory: str | Path, *, dialect: str = "transformers") -> None:
    """Write weights and config.json in the format of another library.

    Args:
        params: from `init`, `load` or training.
        directory: created if missing; a model in it is replaced atomically.
        dialect: "transformers" writes model.safetensors, "pytorch-pretrained-bert"
            pytorch_model.bin. The first knows no `n_special`, so its config.json counts special
            tokens in `vocab_size`.

    Raises:
        ValueError: no such dialect, or a leaf that does not fit it or the config.
    """
    config_of(params, Config)
    io.save(params, directory, names.FAMILY, spec, dialect)
