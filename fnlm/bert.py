"""BERT: a bidirectional transformer with post-norm blocks, and the heads of its tasks.

Dimensions: B batch (any leading axes), T tokens, V vocabulary, N positions, K token types, D width,
F inner width, H heads, Dh = D / H width of a head, L layers, C choices or classes.

Sources: Devlin et al. 2018, "BERT: Pre-training of Deep Bidirectional Transformers" (arXiv
1810.04805); google-research/bert, `modeling.py`; pytorch-pretrained-bert 0.6.2, `modeling.py`.
Deviations: dropout is on when a key is given; losses are in `fnlm.train.losses`.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from fnlm import heads as task_heads
from fnlm import random
from fnlm.layers._inputs import check_ids, check_same_shape
from fnlm.layers.activation import ACTIVATIONS
from fnlm.layers.attention import attend, merge_heads, padding_bias, split_heads
from fnlm.layers.dropout import dropout, dropout_keys
from fnlm.layers.embedding import lookup
from fnlm.layers.linear import linear
from fnlm.layers.mlp import mlp
from fnlm.layers.norm import layer_norm
from fnlm.params import io
from fnlm.params import spec as describe
from fnlm.params._check import MISSED, config_of, raise_named
from fnlm.params.config import BaseConfig, Count, Rate, Scale, Shapes, Size, one_of
from fnlm.params.names import bert as names
from fnlm.params.spec import Spec
from fnlm.tree import Tree, register_constant

__all__ = [
    "HEADS", "Config", "apply", "init", "layers", "load", "masked_lm", "multiple_choice",
    "next_sentence_prediction", "pretraining", "question_answering", "save",
    "sequence_classification", "spec", "token_classification",
]  # fmt: skip

HEADS = (
    "masked_lm", "next_sentence_prediction", "sequence_classification", "multiple_choice",
    "token_classification", "question_answering",
)  # fmt: skip
Params = dict[str, Any]
Keys = Sequence[Tensor | None]  # dropout keys; None is no dropout


@register_constant
@dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """The fields of a published config.json; the defaults are those of BERT base, uncased.

    `num_labels` is the number of classes of sequence and token classification, by default that of
    the file's `id2label`. `classifier_dropout` precedes those heads and multiple choice; None is
    `hidden_dropout_prob`. `pad_token_id` does not change the model; training recipes use it to mask
    the gradient of that embedding (see `fnlm.train.mask_rows`).
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
    depth: ClassVar[str] = "num_hidden_layers"

    def __post_init__(self) -> None:
        """Validate the fields, each alone and together."""
        super().__post_init__()
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of "
                f"num_attention_heads={self.num_attention_heads}"
            )
        if (self.pad_token_id or 0) >= self.vocab_size:
            raise ValueError(f"pad_token_id={self.pad_token_id} is not from 0 to vocab_size - 1")
        one_of("hidden_act", self.hidden_act, ACTIVATIONS)

    @classmethod
    def from_dict(cls, values: dict[str, Any], shapes: Shapes | None = None) -> Self:
        """Make a config from a config.json; `num_labels` follows its names or the file's heads."""
        labels = values.get("id2label")
        if not isinstance(labels, dict | None):
            raise ValueError(f"id2label must be an object of names, got {type(labels).__name__}")
        heads = ("sequence_classification", "token_classification")
        sizes = [n for head in heads for n in (shapes or {}).get(f"heads.{head}.bias", ())]
        counts = [len(labels)] if labels else sizes
        return super().from_dict(({"num_labels": counts[0]} if counts else {}) | values, shapes)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the file's unknown keys, without label names that do not fit."""
        values = super().to_dict()
        if len(values.get("id2label") or values.get("label2id") or ()) != self.num_labels:
            values = {k: v for k, v in values.items() if k not in ("id2label", "label2id")}
        return values


def spec(config: Config, heads: Sequence[str] = ()) -> Tree:
    """Return the parameters' shapes, dtypes and initializers: a tree of `Spec`.

    Raises:
        ValueError: a head is not one of `HEADS`.
    """
    width, inner, std = config.hidden_size, config.intermediate_size, config.initializer_range
    square = describe.linear(width, width, std)
    block = {
        "attention": {"q": square, "k": square, "v": square, "out": square},
        "norm_1": describe.norm(width),
        "mlp": {
            "up": describe.linear(width, inner, std),
            "down": describe.linear(inner, width, std),
        },
        "norm_2": describe.norm(width),
    }
    tree: Tree = {
        "config": config,
        "embed": {
            "token": Spec((config.vocab_size, width), "normal", std),
            "position": Spec((config.max_position_embeddings, width), "normal", std),
            "token_type": Spec((config.type_vocab_size, width), "normal", std),
            "norm": describe.norm(width),
        },
        "blocks": (block,) * config.num_hidden_layers,
        "pooler": square,
    }
    head_specs: Tree = {
        "masked_lm": {
            "transform": square,
            "norm": describe.norm(width),
            "bias": Spec((config.vocab_size,)),
        },
        "next_sentence_prediction": describe.linear(width, 2, std),
        "sequence_classification": describe.linear(width, config.num_labels, std),
        "multiple_choice": describe.linear(width, 1, std),
        "token_classification": describe.linear(width, config.num_labels, std),
        "question_answering": describe.linear(width, 2, std),
    }
    if names_of_heads := describe.heads_among(heads, HEADS):
        tree["heads"] = {head: head_specs[head] for head in names_of_heads}
    return tree


def init(config: Config, key: Tensor, heads: Sequence[str] = ()) -> Params:
    """Initialize parameters: weights normal with `initializer_range`, biases 0, scales 1.

    >>> config = Config(vocab_size=50, hidden_size=12, num_hidden_layers=2, num_attention_heads=3)
    >>> params = init(config, random.key(0), heads=["question_answering"])
    >>> params["heads"]["question_answering"]["weight"].shape
    torch.Size([12, 2])
    """
    return describe.init(spec(config, heads), key)


def _embed(
    ids: Tensor, token_types: Tensor | None, embed: Tree, config: Config, key: Tensor | None
) -> Tensor:
    """Norm of token + position + token-type embeddings: [..., T] -> [..., T, D]."""
    positions = embed["position"][: ids.shape[-1]]  # [T, D]
    if token_types is None:  # all of type 0: add its row before the leading axes come in
        positions = positions + embed["token_type"][0]
    x = lookup(embed["token"], ids) + positions  # [..., T, D]
    if token_types is not None:
        x = x + lookup(embed["token_type"], token_types, "token_types")
    x = layer_norm(x, **embed["norm"], eps=config.layer_norm_eps)
    return dropout(x, config.hidden_dropout_prob, key)


def _attention(x: Tensor, bias: Tensor, block: Tree, config: Config, key: Tensor | None) -> Tensor:
    """Multi-head self-attention with an additive mask: [..., T, D] -> the same."""
    heads, rate = config.num_attention_heads, config.attention_probs_dropout_prob
    q, k, v = (split_heads(linear(x, **block[name]), heads)[0] for name in "qkv")  # [..., H, T, Dh]
    context = attend(q, (k,), (v,), bias, rate=rate, key=key)  # [..., H, T, Dh]
    return linear(merge_heads(context), **block["out"])  # [..., T, D]


def _block(x: Tensor, bias: Tensor, block: Tree, config: Config, keys: Keys) -> Tensor:
    """Post-norm transformer block: [..., T, D] -> the same."""
    rate, eps = config.hidden_dropout_prob, config.layer_norm_eps
    # norm(x + attention(x))
    attention_out = dropout(_attention(x, bias, block["attention"], config, keys[0]), rate, keys[1])
    x = layer_norm(attention_out + x, **block["norm_1"], eps=eps)
    # norm(x + mlp(x))
    mlp_out = mlp(x, **block["mlp"], activation=ACTIVATIONS[config.hidden_act])  # D -> F -> D
    return layer_norm(dropout(mlp_out, rate, keys[2]) + x, **block["norm_2"], eps=eps)


def _states(
    params: Params, ids: Tensor, types: Tensor | None, mask: Tensor | None, key: Tensor | None
) -> Iterator[Tensor]:
    """Yield the hidden states of the embeddings and of each block: 1 + L tensors [..., T, D]."""
    config = config_of(params, Config)
    _check(config, ids, types, mask)
    try:
        embed_key, *block_keys = dropout_keys(key, 1 + 3 * len(params["blocks"]))
        x = _embed(ids, types, params["embed"], config, embed_key)  # [..., T, D]
        mask = torch.ones_like(ids) if mask is None else mask  # [..., T]
        bias = padding_bias(mask, x.dtype)  # [..., 1, 1, T]
        yield x
        for layer, block in enumerate(params["blocks"]):
            x = _block(x, bias, block, config, block_keys[3 * layer : 3 * layer + 3])
            yield x
    except MISSED as error:
        raise_named(error, params, spec)


def layers(
    params: Params, ids: Tensor, token_types: Tensor | None = None, mask: Tensor | None = None, *,
    key: Tensor | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return the hidden states of every block: arguments of `apply` -> L tensors [..., T, D]."""
    return tuple(_states(params, ids, token_types, mask, key))[1:]


def _last(states: Iterator[Tensor]) -> Tensor:
    """Return the last hidden states, keeping one layer in memory at a time."""
    return deque(states, maxlen=1).pop()


def apply(
    params: Params, ids: Tensor, token_types: Tensor | None = None, mask: Tensor | None = None, *,
    key: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the last hidden states and the pooled output.

    Args:
        params: from `init` or `load`.
        ids: int64 [..., T], each 0 <= id < V.
        token_types: int64 [..., T], each 0 <= type < K: 0 for text A, 1 for text B; default 0.
        mask: [..., T], nonzero for real tokens, 0 for padding (not attended to), on either side.
        key: turns dropout on; one key, or keys for the leading axes of `ids`.

    Returns:
        hidden states of the last block [..., T, D]; pooled [..., D], tanh(linear(first token)).

    Raises:
        ValueError: more than `max_position_embeddings` tokens; a mask or types of another shape.
        IndexError: ids or token types out of range.
        KeyError: the parameters have no pooler (use `layers`), or not the head of the task.

    >>> config = Config(vocab_size=50, hidden_size=12, num_hidden_layers=2, num_attention_heads=3)
    >>> params = init(config, random.key(0))
    >>> ids = torch.tensor([[3, 1, 4, 0], [1, 5, 9, 2]])
    >>> hidden, pooled = apply(params, ids, mask=torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]))
    >>> hidden.shape, pooled.shape
    (torch.Size([2, 4, 12]), torch.Size([2, 12]))
    """
    config_of(params, Config)
    if not {"weight", "bias"} <= {*params.get("pooler", ())}:
        raise KeyError(
            "params have no 'pooler', as the file had none: use `layers`, or name a head that "
            "needs it in load(..., heads=(...), key=key)"
        )
    hidden = _last(_states(params, ids, token_types, mask, key))
    return hidden, torch.tanh(linear(hidden[..., 0, :], **params["pooler"]))  # [..., D]


def masked_lm(
    params: Params, ids: Tensor, token_types: Tensor | None = None, mask: Tensor | None = None, *,
    key: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return masked-language-model logits: arguments of `apply` -> [..., T, V]."""
    head = task_heads.find(params, "masked_lm", Config)
    return _masked_lm_logits(params, _last(_states(params, ids, token_types, mask, key)), head)


def next_sentence_prediction(
    params: Params, ids: Tensor, token_types: Tensor | None = None, mask: Tensor | None = None, *,
    key: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return next-sentence logits: arguments of `apply` -> [..., 2], (is next, is not next)."""
    head = task_heads.find(params, "next_sentence_prediction", Config)
    return linear(apply(params, ids, token_types, mask, key=key)[1], **head)


def pretraining(
    params: Params, ids: Tensor, token_types: Tensor | None = None, mask: Tensor | None = None, *,
    key: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the logits of `masked_lm` and of `next_sentence_prediction`, encoding once."""
    mlm_head, nsp_head = (task_heads.find(params, name, Config) for name in HEADS[:2])
    hidden, pooled = apply(params, ids, token_types, mask, key=key)
    return _masked_lm_logits(params, hidden, mlm_head), linear(pooled, **nsp_head)


def sequence_classification(
    params: Params, ids: Tensor, token_types: Tensor | None = None, mask: Tensor | None = None, *,
    key: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return class logits, or a regression value: arguments of `apply` -> [..., num_labels]."""
    head = task_heads.find(params, "sequence_classification", Config)
    return _classify(params, apply(params, ids, token_types, mask, key=key)[1], head, key)


def multiple_choice(
    params: Params, ids: Tensor, token_types: Tensor | None = None, mask: Tensor | None = None, *,
    key: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return choice logits: arguments of `apply` with shapes [..., C, T] -> [..., C]."""
    head = task_heads.find(params, "multiple_choice", Config)
    pooled = apply(params, ids, token_types, mask, key=key)[1]
    return _classify(params, pooled, head, key).squeeze(-1)


def token_classification(
    params: Params, ids: Tensor, token_types: Tensor | None = None, mask: Tensor | None = None, *,
    key: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return class logits of each token: arguments of `apply` -> [..., T, num_labels]."""
    head = task_heads.find(params, "token_classification", Config)
    return _classify(params, _last(_states(params, ids, token_types, mask, key)), head, key)


def question_answering(
    params: Params, ids: Tensor, token_types: Tensor | None = None, mask: Tensor | None = None, *,
    key: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return start and end logits of the answer span: each [..., T], padding included."""
    head = task_heads.find(params, "question_answering", Config)
    start, end = linear(_last(_states(params, ids, token_types, mask, key)), **head).unbind(-1)
    return start, end


def _masked_lm_logits(params: Params, hidden: Tensor, head: Tree) -> Tensor:
    config, table = params["config"], params["embed"]["token"]
    activation, eps = ACTIVATIONS[config.hidden_act], config.layer_norm_eps
    return task_heads.masked_lm_logits(hidden, table, **head, activation=activation, eps=eps)


def _classify(params: Params, x: Tensor, head: Tree, key: Tensor | None) -> Tensor:
    """Dropout, then a linear head: [..., D] -> [..., outputs of the head]."""
    config: Config = params["config"]
    rate = config.classifier_dropout
    head_key = None if key is None else random.fold_in(key, 0)
    x = dropout(x, config.hidden_dropout_prob if rate is None else rate, head_key)
    return linear(x, **head)


def _check(config: Config, ids: Tensor, token_types: Tensor | None, mask: Tensor | None) -> None:
    """Validate shapes; no value is read, so it works under every transform."""
    check_ids(ids)
    if not (limit := config.max_position_embeddings) >= ids.shape[-1] > 0:
        raise ValueError(
            f"{ids.shape[-1]} tokens are not from 1 to max_position_embeddings={limit}: "
            "shorten ids, or cut them into windows"
        )
    check_same_shape(ids.shape, token_types=token_types, mask=mask)


def load(
    name_or_path: io.NameOrPath, *, heads: Sequence[str] | None = None, key: Tensor | None = None,
    ignore: Sequence[str] | None = (),
) -> Params:  # fmt: skip
    """Load parameters from a directory, a file or the hub.

    Args:
        name_or_path: a directory or a file of any format that `fnlm.params.io.read` knows, beside
            its config.json or bert_config.json; a hub name, or a `Source` of `hub.locate`.
        heads: the heads to load; None takes those of the file.
        key: initializes requested heads that the file lacks, and a pooler that they need; without
            it they are an error.
        ignore: shell patterns of tensor names in the file that are left out.

    Returns:
        params; where the format allows, tensors are read from disk on first use.

    Raises:
        FileNotFoundError: no such model.
        ValueError: a tensor is missing, unexpected or of another shape; an ambiguous head; another
            family's config; a damaged file.
    """
    return io.load(name_or_path, names.FAMILY, Config, spec, heads=heads, key=key, ignore=ignore)


def save(params: Params, directory: str | Path, *, dialect: str = "transformers") -> None:
    """Write weights and config.json in the format of another library.

    Args:
        params: from `init`, `load` or training.
        directory: created if missing; a model in it is replaced atomically.
        dialect: "transformers" (model.safetensors) or "pytorch-pretrained-bert" (pytorch_model.bin)
            for the heads of one of their classes; "fnlm" for any heads, to be read by fnlm alone.

    Raises:
        ValueError: no such dialect, heads that it cannot hold together, a leaf that does not fit.
    """
    config_of(params, Config)
    io.save(params, directory, names.FAMILY, spec, dialect)
