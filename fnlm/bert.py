"""BERT: a bidirectional transformer with post-norm blocks, and the heads of its tasks.

Dimensions: B batch (any leading axes), T tokens, V vocabulary, N positions, K token types, D width,
F inner width, H heads, Dh width of a head, L layers, C choices or classes.

Sources: Devlin et al. 2018, "BERT: Pre-training of Deep Bidirectional Transformers" (arXiv
1810.04805); google-research/bert, `modeling.py`; pytorch-pretrained-bert 0.6.2, `modeling.py`.
Deviations: dropout is on when a key is given; losses are apart, in `fnlm.train.losses`.
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
    "masked_lm",
    "next_sentence_prediction",
    "sequence_classification",
    "multiple_choice",
    "token_classification",
    "question_answering",
)
Params = dict[str, Any]
Maybe = Tensor | None  # an argument that may be left out
Names = Sequence[str] | None
Sites = Sequence[Maybe]  # keys of dropouts


@register_constant
@dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """The fields of a published config.json; the defaults are those of BERT base, uncased.

    `num_labels` is the number of classes of sequence and token classification; a file that names
    its classes in `id2label` has as many. Dropout before those heads and multiple choice is
    `classifier_dropout`, which None makes `hidden_dropout_prob`. `pad_token_id` changes nothing in
    the model; it tells a recipe which row of the table to mask (see `fnlm.train.mask_rows`).
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
        """Check the fields, and what they must be together."""
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
        """Make a config from a config.json, with as many labels as it names or its file has."""
        named = values.get("id2label")
        if not isinstance(named, dict | None):
            raise ValueError(f"id2label must be an object of names, got {type(named).__name__}")
        heads = ("sequence_classification", "token_classification")
        counts = [n for head in heads for n in (shapes or {}).get(f"heads.{head}.bias", ())]
        counts = [len(named)] if named else counts
        return super().from_dict(({"num_labels": counts[0]} if counts else {}) | values, shapes)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the unknown keys of the file, without names of other classes."""
        values = super().to_dict()
        if len(values.get("id2label") or values.get("label2id") or ()) != self.num_labels:
            values = {k: v for k, v in values.items() if k not in ("id2label", "label2id")}
        return values


def spec(config: Config, heads: Sequence[str] = ()) -> Tree:
    """Describe the parameters: a tree of `Spec`.

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
    known: Tree = {
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
    if wanted := describe.heads_among(heads, HEADS):
        tree["heads"] = {head: known[head] for head in wanted}
    return tree


def init(config: Config, key: Tensor, heads: Sequence[str] = ()) -> Params:
    """Make random parameters: weights normal with `initializer_range`, biases 0, scales 1.

    >>> config = Config(vocab_size=50, hidden_size=12, num_hidden_layers=2, num_attention_heads=3)
    >>> params = init(config, random.key(0), heads=["question_answering"])
    >>> params["heads"]["question_answering"]["weight"].shape
    torch.Size([12, 2])
    """
    return describe.init(spec(config, heads), key)


def _embed(ids: Tensor, token_types: Maybe, embed: Tree, config: Config, key: Maybe) -> Tensor:
    """Add the three embeddings, and norm: [..., T] -> [..., T, D]."""
    places = embed["position"][: ids.shape[-1]]
    if token_types is None:
        places = places + embed["token_type"][0]
    x = lookup(embed["token"], ids) + places
    if token_types is not None:
        x = x + lookup(embed["token_type"], token_types, "token_types")
    x = layer_norm(x, **embed["norm"], eps=config.layer_norm_eps)
    return dropout(x, config.hidden_dropout_prob, key)


def _attention(x: Tensor, bias: Tensor, block: Tree, config: Config, key: Maybe) -> Tensor:
    """Let every token attend to all that the bias leaves: [..., T, D] -> the same."""
    count, rate = config.num_attention_heads, config.attention_probs_dropout_prob
    q, k, v = (split_heads(linear(x, **block[name]), count)[0] for name in "qkv")
    mixed = attend(q, (k,), (v,), bias, rate=rate, key=key)
    return linear(merge_heads(mixed), **block["out"])


def _block(x: Tensor, bias: Tensor, block: Tree, config: Config, sites: Sites) -> Tensor:
    """Add and norm after each half: [..., T, D] -> the same."""
    rate, eps = config.hidden_dropout_prob, config.layer_norm_eps
    mixed = _attention(x, bias, block["attention"], config, sites[0])
    x = layer_norm(dropout(mixed, rate, sites[1]) + x, **block["norm_1"], eps=eps)
    fed = mlp(x, **block["mlp"], activation=ACTIVATIONS[config.hidden_act])
    return layer_norm(dropout(fed, rate, sites[2]) + x, **block["norm_2"], eps=eps)


def _states(params: Params, ids: Tensor, types: Maybe, mask: Maybe, key: Maybe) -> Iterator[Tensor]:
    """Yield the state after the embeddings, and after each block: 1 + L tensors [..., T, D]."""
    config = config_of(params, Config)
    _check(config, ids, types, mask)
    try:
        first, *sites = dropout_keys(key, 1 + 3 * len(params["blocks"]))
        x = _embed(ids, types, params["embed"], config, first)
        bias = padding_bias(torch.ones_like(ids) if mask is None else mask, x.dtype)
        yield x
        for layer, block in enumerate(params["blocks"]):
            x = _block(x, bias, block, config, sites[3 * layer : 3 * layer + 3])
            yield x
    except MISSED as error:
        raise_named(error, params, spec)


def layers(
    params: Params, ids: Tensor, token_types: Maybe = None, mask: Maybe = None, *, key: Maybe = None
) -> tuple[Tensor, ...]:
    """Return the hidden states after every block: arguments of `apply` -> L tensors [..., T, D]."""
    return tuple(_states(params, ids, token_types, mask, key))[1:]


def _last(states: Iterator[Tensor]) -> Tensor:
    """Return the last state, letting go of each when the next is there."""
    return deque(states, maxlen=1).pop()


def apply(
    params: Params, ids: Tensor, token_types: Maybe = None, mask: Maybe = None, *, key: Maybe = None
) -> tuple[Tensor, Tensor]:
    """Encode tokens, and the text as a whole.

    Args:
        params: from `init` or `load`.
        ids: int64 [..., T], each 0 <= id < V.
        token_types: int64 [..., T], each 0 <= type < K: 0 for the first text, 1 for the second; by
            default all are 0.
        mask: [..., T], nonzero for real tokens, 0 for padding on either side, which no token
            attends to; by default all are real.
        key: turns dropout on; one key, or keys for the leading axes of `ids`.

    Returns:
        hidden states of the last block [..., T, D]; the first token's, pooled [..., D].

    Raises:
        ValueError: more than `max_position_embeddings` tokens; a mask or types of another shape.
        IndexError: ids or token types out of range.
        KeyError: the parameters have no pooler, as those of some files (use `layers` then); in the
            functions of the tasks below: not the head.

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
    return hidden, torch.tanh(linear(hidden[..., 0, :], **params["pooler"]))


def masked_lm(
    params: Params, ids: Tensor, token_types: Maybe = None, mask: Maybe = None, *, key: Maybe = None
) -> Tensor:
    """Score every word for every token: arguments of `apply` -> logits [..., T, V]."""
    head = task_heads.find(params, "masked_lm", Config)
    return _masked_lm_logits(params, _last(_states(params, ids, token_types, mask, key)), head)


def next_sentence_prediction(
    params: Params, ids: Tensor, token_types: Maybe = None, mask: Maybe = None, *, key: Maybe = None
) -> Tensor:
    """Score that the second text follows the first, and that it does not: -> logits [..., 2]."""
    head = task_heads.find(params, "next_sentence_prediction", Config)
    return linear(apply(params, ids, token_types, mask, key=key)[1], **head)


def pretraining(
    params: Params, ids: Tensor, token_types: Maybe = None, mask: Maybe = None, *, key: Maybe = None
) -> tuple[Tensor, Tensor]:
    """Return the logits of `masked_lm` and of `next_sentence_prediction`, encoding once."""
    words, follows = (task_heads.find(params, name, Config) for name in HEADS[:2])
    hidden, pooled = apply(params, ids, token_types, mask, key=key)
    return _masked_lm_logits(params, hidden, words), linear(pooled, **follows)


def sequence_classification(
    params: Params, ids: Tensor, token_types: Maybe = None, mask: Maybe = None, *, key: Maybe = None
) -> Tensor:
    """Score the classes of a text, or predict its one number: -> logits [..., num_labels]."""
    head = task_heads.find(params, "sequence_classification", Config)
    return _classify(params, apply(params, ids, token_types, mask, key=key)[1], head, key)


def multiple_choice(
    params: Params, ids: Tensor, token_types: Maybe = None, mask: Maybe = None, *, key: Maybe = None
) -> Tensor:
    """Score each choice: arguments of `apply` with shapes [..., C, T] -> logits [..., C]."""
    head = task_heads.find(params, "multiple_choice", Config)
    pooled = apply(params, ids, token_types, mask, key=key)[1]
    return _classify(params, pooled, head, key).squeeze(-1)


def token_classification(
    params: Params, ids: Tensor, token_types: Maybe = None, mask: Maybe = None, *, key: Maybe = None
) -> Tensor:
    """Score the classes of each token: arguments of `apply` -> logits [..., T, num_labels]."""
    head = task_heads.find(params, "token_classification", Config)
    return _classify(params, _last(_states(params, ids, token_types, mask, key)), head, key)


def question_answering(
    params: Params, ids: Tensor, token_types: Maybe = None, mask: Maybe = None, *, key: Maybe = None
) -> tuple[Tensor, Tensor]:
    """Score each token as the first and as the last one of the answer.

    Returns:
        start logits and end logits, each [..., T]; padding is scored like any token.
    """
    head = task_heads.find(params, "question_answering", Config)
    start, end = linear(_last(_states(params, ids, token_types, mask, key)), **head).unbind(-1)
    return start, end


def _masked_lm_logits(params: Params, hidden: Tensor, head: Tree) -> Tensor:
    config, table = params["config"], params["embed"]["token"]
    activation, eps = ACTIVATIONS[config.hidden_act], config.layer_norm_eps
    return task_heads.masked_lm_logits(hidden, table, **head, activation=activation, eps=eps)


def _classify(params: Params, x: Tensor, head: Tree, key: Maybe) -> Tensor:
    """Drop out, and score: [..., D] -> [..., outputs of the head]."""
    config: Config = params["config"]
    rate = config.classifier_dropout
    own = None if key is None else random.fold_in(key, 0)
    return linear(dropout(x, config.hidden_dropout_prob if rate is None else rate, own), **head)


def _check(config: Config, ids: Tensor, token_types: Maybe, mask: Maybe) -> None:
    """Compare shapes; no value is read, so it works under every transform."""
    check_ids(ids)
    limit = config.max_position_embeddings
    if not 0 < ids.shape[-1] <= limit:
        raise ValueError(
            f"{ids.shape[-1]} tokens are not from 1 to max_position_embeddings={limit}: "
            "shorten ids, or cut them into windows"
        )
    check_same_shape(ids.shape, token_types=token_types, mask=mask)


def load(
    name_or_path: str | Path, *, heads: Names = None, key: Maybe = None, ignore: Names = ()
) -> Params:
    """Read parameters from a directory, a file or the hub.

    Args:
        name_or_path: a directory or a file of any format that `fnlm.params.io.read` knows, beside
            its config.json or bert_config.json; or a hub name. A path that exists wins.
        heads: the heads wanted; None takes those of the file.
        key: lets wanted heads that the file lacks be initialised, and the pooler where one of the
            wanted heads needs it; without it they are an error.
        ignore: patterns, as of a shell, of the file's names of tensors that are left out.

    Returns:
        params; where the format allows, a tensor is read from disk when it is first used.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a tensor is missing, unexpected or of another shape; a head that neither file
            nor `heads` tell from others; another family's config; a damaged file.
    """
    return io.load(name_or_path, names.FAMILY, Config, spec, heads=heads, key=key, ignore=ignore)


def save(params: Params, directory: str | Path, *, dialect: str = "transformers") -> None:
    """Write weights and config.json in the form that another library loads.

    Args:
        params: from `init`, `load` or training.
        directory: made if need be; a model in it is replaced, at once or not at all.
        dialect: "transformers" (model.safetensors) or "pytorch-pretrained-bert" (pytorch_model.bin)
            for the heads of one of their classes; "fnlm" for any heads, to be read by fnlm alone.

    Raises:
        ValueError: no such dialect, heads that it cannot hold together, a leaf that does not fit.
    """
    config_of(params, Config)
    io.save(params, directory, names.FAMILY, spec, dialect)
