"""BERT: a bidirectional transformer with post-norm blocks, and the heads of its tasks.

Dimensions: B batch (any leading axes), T tokens, V vocabulary, N positions, K token types, D width,
F inner width, H heads, Dh = D / H width of a head, L layers, C choices or classes.

Sources: Devlin et al. 2018, "BERT: Pre-training of Deep Bidirectional Transformers" (arXiv
1810.04805); google-research/bert, `modeling.py`; pytorch-pretrained-bert 0.6.2, `modeling.py`.
Deviations: dropout is on when a key is given; losses are in `fnlm.train.losses`.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fnlm import random
from fnlm.heads import head_params, linear_logits, masked_lm_logits, pooler_params
from fnlm.layers import ACTIVATIONS, dropout, dropout_keys, layer_norm, linear, lookup, mlp, tap
from fnlm.layers._inputs import check_ids, check_same_shape
from fnlm.layers.attention import attend, merge_heads, padding_bias, split_heads
from fnlm.params import check_config, config_of, io, register_functions
from fnlm.params.config import Count, LabelledConfig, Rate, Scale, Size, multiple_of, one_of
from fnlm.params.names import bert as names
from fnlm.params.spec import Spec, heads_among, initialize, linear_spec, norm_spec
from fnlm.transforms import recompute
from fnlm.tree import Params, Tree, register_constant

HEADS = (
    "masked_lm", "next_sentence_prediction", "sequence_classification", "multiple_choice",
    "token_classification", "question_answering",
)  # fmt: skip

__all__ = [
    "HEADS", "Config", "Params", "apply", "hidden_states", "init", "layers", "load", "pretraining",
    "save", "spec", *HEADS,
]  # fmt: skip


@register_constant
@dataclass(frozen=True, kw_only=True)
class Config(LabelledConfig):
    """The fields of a published config.json; the defaults are those of BERT base, uncased.

    `num_labels` is the number of classes of sequence and token classification, by default that of
    the file's `id2label`. `classifier_dropout` precedes those heads and multiple choice; None is
    `hidden_dropout_prob`. `pad_token_id` is for training recipes (see `fnlm.train.mask_rows`).
    """

    vocab_size: Size = 30522
    hidden_size: Size = 768
    num_hidden_layers: Size = 12
    num_attention_heads: Size = 12
    intermediate_size: Size = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: Rate = 0.1
    attention_probs_dropout_prob: Rate = 0.1
    max_position_embeddings: Size = 512
    type_vocab_size: Size = 2
    initializer_range: Scale = 0.02
    layer_norm_eps: Scale = 1e-12
    classifier_dropout: Rate | None = None
    num_labels: Size = 2
    pad_token_id: Count | None = 0
    depth = "num_hidden_layers"

    def __post_init__(self) -> None:
        super().__post_init__()
        multiple_of(self, "hidden_size", "num_attention_heads")
        if (self.pad_token_id or 0) >= self.vocab_size:
            raise ValueError(f"pad_token_id={self.pad_token_id} is not from 0 to vocab_size - 1")
        one_of("hidden_act", self.hidden_act, ACTIVATIONS)


def spec(config: Config, heads: Sequence[str] = ()) -> Tree:
    """Return the parameters' shapes, dtypes and initializers: a tree of `Spec`.

    Raises:
        ValueError: a head is not one of `HEADS`.
    """
    check_config(config, Config)
    width, inner, std = config.hidden_size, config.intermediate_size, config.initializer_range
    square, norm = linear_spec(width, width, std), norm_spec(width)
    block = {
        "attention": {"q": square, "k": square, "v": square, "out": square},
        "norm_1": norm,
        "mlp": {"up": linear_spec(width, inner, std), "down": linear_spec(inner, width, std)},
        "norm_2": norm,
    }
    tree: Tree = {
        "config": config,
        "embed": {
            "token": Spec((config.vocab_size, width), "normal", std),
            "position": Spec((config.max_position_embeddings, width), "normal", std),
            "token_type": Spec((config.type_vocab_size, width), "normal", std),
            "norm": norm,
        },
        "blocks": (block,) * config.num_hidden_layers,
        "pooler": square,
    }
    head_specs: Tree = {
        "masked_lm": {"transform": square, "norm": norm, "bias": Spec((config.vocab_size,))},
        "next_sentence_prediction": linear_spec(width, 2, std),
        "sequence_classification": linear_spec(width, config.num_labels, std),
        "multiple_choice": linear_spec(width, 1, std),
        "token_classification": linear_spec(width, config.num_labels, std),
        "question_answering": linear_spec(width, 2, std),
    }
    if names_of_heads := heads_among(heads, HEADS):
        tree["heads"] = {head: head_specs[head] for head in names_of_heads}
    return tree


def init(config: Config, key: Tensor, heads: Sequence[str] = ()) -> Params:
    """Initialize parameters: weights normal with `initializer_range`, biases 0, scales 1."""
    return initialize(spec(config, heads), key)


def _embed(
    ids: Tensor, token_types: Tensor | None, embed: Tree, config: Config, key: Tensor | None
) -> Tensor:
    """Norm of token + position + token-type embeddings: [..., T] -> [..., T, D]."""
    positions = embed["position"][: ids.shape[-1]]  # [T, D]
    if token_types is None:  # all of type 0: add its row before the leading axes come in
        positions = positions + embed["token_type"][0]
    x = tap(lookup(embed["token"], ids), embed.get("taps"), "token") + positions  # [..., T, D]
    if token_types is not None:
        x = x + lookup(embed["token_type"], token_types, "token_types")
    x = layer_norm(x, **embed["norm"], eps=config.layer_norm_eps)
    return dropout(x, config.hidden_dropout_prob, key)


def _attention(x: Tensor, bias: Tensor, block: Tree, config: Config, key: Tensor | None) -> Tensor:
    """Multi-head self-attention with an additive mask: [..., T, D] -> the same."""
    heads, taps = config.num_attention_heads, block.get("taps")
    q, k, v = (tap(split_heads(linear(x, **block[n]), heads)[0], taps, n) for n in "qkv")
    out = attend(q, (k,), (v,), bias, rate=config.attention_probs_dropout_prob, key=key, taps=taps)
    return tap(linear(merge_heads(out), **block["out"]), taps, "out")  # [..., T, D]


def _block(x: Tensor, bias: Tensor, block: Tree, config: Config, key: Tensor | None) -> Tensor:
    """Post-norm transformer block: [..., T, D] -> the same."""
    rate, eps = config.hidden_dropout_prob, config.layer_norm_eps
    weights_key, attention_key, mlp_key = dropout_keys(key, 3)
    # norm(x + attention(x))
    attention_out = _attention(x, bias, block["attention"], config, weights_key)
    x = layer_norm(dropout(attention_out, rate, attention_key) + x, **block["norm_1"], eps=eps)
    x = tap(x, block.get("taps"), "mid")
    # norm(x + mlp(x))
    mlp_out = mlp(x, **block["mlp"], activation=ACTIVATIONS[config.hidden_act])  # D -> F -> D
    return layer_norm(dropout(mlp_out, rate, mlp_key) + x, **block["norm_2"], eps=eps)


def _states(
    params: Params, ids: Tensor, token_types: Tensor | None, mask: Tensor | None, *,
    key: Tensor | None, remat: bool, keep: int | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return the last `keep` of 1 + L hidden states, embeddings first: [..., T, D] each."""
    config, blocks = params["config"], params["blocks"]
    check_ids(ids)
    if not (limit := config.max_position_embeddings) >= ids.shape[-1] > 0:
        raise ValueError(
            f"{ids.shape[-1]} tokens are not from 1 to max_position_embeddings={limit}: "
            "shorten ids, or cut them into windows"
        )
    check_same_shape(ids.shape, token_types=token_types, mask=mask)
    embed_key, *block_keys = dropout_keys(key, 1 + len(blocks))
    x = _embed(ids, token_types, params["embed"], config, embed_key)  # [..., T, D]
    bias = padding_bias(torch.ones_like(ids) if mask is None else mask, x.dtype)  # [..., 1, 1, T]
    states = deque([x], maxlen=keep)  # the others are let go of at once
    run = recompute.remat(_block) if remat else _block
    for block, block_key in zip(blocks, block_keys, strict=True):
        x = run(tap(x, block.get("taps"), "in"), bias, block, config, block_key)
        x = tap(x, block.get("taps"), "out")
        states.append(x)
    return tuple(states)


def hidden_states(
    params: Params, ids: Tensor, token_types: Tensor | None = None, mask: Tensor | None = None, *,
    key: Tensor | None = None, remat: bool = False,
) -> Tensor:  # fmt: skip
    """Return the hidden states after the last block: arguments of `apply` -> [..., T, D]."""
    (x,) = _states(params, ids, token_types, mask, key=key, remat=remat, keep=1)
    return tap(x, params.get("taps"), "hidden")


def layers(
    params: Params, ids: Tensor, token_types: Tensor | None = None, mask: Tensor | None = None, *,
    key: Tensor | None = None, remat: bool = False,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return the hidden states after every block, L of [..., T, D]; the last: `hidden_states`."""
    return _states(params, ids, token_types, mask, key=key, remat=remat)[1:]


def apply(
    params: Params, ids: Tensor, token_types: Tensor | None = None, mask: Tensor | None = None, *,
    key: Tensor | None = None, remat: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the last hidden states [..., T, D] and the pooled output [..., D].

    Pooled is the hidden state of the first token, by a linear layer and tanh.

    Args:
        params: from `init` or `load`.
        ids: int64 [..., T], each 0 <= id < V.
        token_types: int64 [..., T], each 0 <= type < K: 0 for text A, 1 for text B; default 0.
        mask: [..., T], nonzero for real tokens, 0 for padding (not attended to), on either side.
        key: turns dropout on; one key, or keys for the leading axes of `ids`.
        remat: compute each block again in the backward pass, for less memory.

    Raises:
        ValueError: more than `max_position_embeddings` tokens; a mask or types of another shape.
        IndexError: ids or token types out of range.
        KeyError: the parameters have no pooler (use `hidden_states`), or not the head of the task.

    >>> config = Config(vocab_size=50, hidden_size=12, num_hidden_layers=2, num_attention_heads=3)
    >>> params = init(config, random.key(0))
    >>> ids = torch.tensor([[3, 1, 4, 0], [1, 5, 9, 2]])
    >>> hidden, pooled = apply(params, ids, mask=torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]))
    >>> hidden.shape, pooled.shape
    (torch.Size([2, 4, 12]), torch.Size([2, 12]))
    """
    pooler = pooler_params(params, Config)
    hidden = hidden_states(params, ids, token_types, mask, key=key, remat=remat)  # [..., T, D]
    pooled = torch.tanh(linear(hidden[..., 0, :], **pooler))  # [..., D]
    return hidden, tap(pooled, params.get("taps"), "pooled")


def masked_lm(
    params: Params, ids: Tensor, token_types: Tensor | None = None, mask: Tensor | None = None, *,
    key: Tensor | None = None, remat: bool = False,
) -> Tensor:  # fmt: skip
    """Return masked-language-model logits: arguments of `apply` -> [..., T, V]."""
    hidden = hidden_states(params, ids, token_types, mask, key=key, remat=remat)
    return masked_lm_logits(params, hidden)


def next_sentence_prediction(
    params: Params, ids: Tensor, token_types: Tensor | None = None, mask: Tensor | None = None, *,
    key: Tensor | None = None, remat: bool = False,
) -> Tensor:  # fmt: skip
    """Return next-sentence logits: arguments of `apply` -> [..., 2], (is next, is not next)."""
    head = head_params(params, "next_sentence_prediction", Config)
    return linear_logits(apply(params, ids, token_types, mask, key=key, remat=remat)[1], **head)


def pretraining(
    params: Params, ids: Tensor, token_types: Tensor | None = None, mask: Tensor | None = None, *,
    key: Tensor | None = None, remat: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the logits of `masked_lm` and of `next_sentence_prediction`, encoding once."""
    _, nsp_head = (head_params(params, name, Config) for name in HEADS[:2])
    hidden, pooled = apply(params, ids, token_types, mask, key=key, remat=remat)
    return masked_lm_logits(params, hidden), linear_logits(pooled, **nsp_head)


def sequence_classification(
    params: Params, ids: Tensor, token_types: Tensor | None = None, mask: Tensor | None = None, *,
    key: Tensor | None = None, remat: bool = False,
) -> Tensor:  # fmt: skip
    """Return class logits, or a regression value: arguments of `apply` -> [..., num_labels]."""
    head = head_params(params, "sequence_classification", Config)
    _, pooled = apply(params, ids, token_types, mask, key=key, remat=remat)
    return _classify(params, pooled, head, key)


def multiple_choice(
    params: Params, ids: Tensor, token_types: Tensor | None = None, mask: Tensor | None = None, *,
    key: Tensor | None = None, remat: bool = False,
) -> Tensor:  # fmt: skip
    """Return choice logits: arguments of `apply` with shapes [..., C, T] -> [..., C]."""
    head = head_params(params, "multiple_choice", Config)
    _, pooled = apply(params, ids, token_types, mask, key=key, remat=remat)
    return _classify(params, pooled, head, key).squeeze(-1)


def token_classification(
    params: Params, ids: Tensor, token_types: Tensor | None = None, mask: Tensor | None = None, *,
    key: Tensor | None = None, remat: bool = False,
) -> Tensor:  # fmt: skip
    """Return class logits of each token: arguments of `apply` -> [..., T, num_labels]."""
    head = head_params(params, "token_classification", Config)
    hidden = hidden_states(params, ids, token_types, mask, key=key, remat=remat)
    return _classify(params, hidden, head, key)


def question_answering(
    params: Params, ids: Tensor, token_types: Tensor | None = None, mask: Tensor | None = None, *,
    key: Tensor | None = None, remat: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return start and end logits of the answer span: each [..., T], padding included."""
    head = head_params(params, "question_answering", Config)
    hidden = hidden_states(params, ids, token_types, mask, key=key, remat=remat)
    start, end = linear_logits(hidden, **head).unbind(-1)  # [..., T, 2] -> [..., T] each
    return start, end


def _classify(params: Params, x: Tensor, head: Tree, key: Tensor | None) -> Tensor:
    """Dropout, then a linear head: [..., D] -> [..., outputs of the head]."""
    config, rate = params["config"], params["config"].classifier_dropout
    head_key = None if key is None else random.fold_in(key, 0)
    x = dropout(x, config.hidden_dropout_prob if rate is None else rate, head_key)
    return linear_logits(x, **head)


def load(
    name_or_path: io.NameOrPath, *, heads: Sequence[str] | None = None, key: Tensor | None = None,
    ignore: Sequence[str] | None = (),
) -> Params:  # fmt: skip
    """Load parameters from a directory, a file or the hub: `fnlm.params.io.load` tells how."""
    return io.load(name_or_path, names.FAMILY, Config, spec, heads=heads, key=key, ignore=ignore)


def save(params: Params, directory: io.PathLike, *, dialect: str = "transformers") -> None:
    """Write weights and config.json for another library to read: `fnlm.params.io.save` tells how.

    `dialect` is "transformers" or "pytorch-pretrained-bert", or "fnlm" for any set of heads.
    """
    config_of(params, Config)
    io.save(params, directory, names.FAMILY, spec, dialect)


register_functions(__name__, Config, spec)
