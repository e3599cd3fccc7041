"""BERT: a bidirectional transformer with post-norm blocks, and the heads of its tasks.

Dimensions: B batch (any leading axes), T tokens, V vocabulary, N positions, K token types, D width,
F inner width, H heads, Dh width of a head, L layers, C choices or classes.

Sources: Devlin et al. 2018, "BERT: Pre-training of Deep Bidirectional Transformers" (arXiv
1810.04805); google-research/bert, `modeling.py`; pytorch-pretrained-bert 0.6.2, `modeling.py`.
Deviations: dropout is on when a key is given; losses are apart, in `fnlm.train.losses`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from fnlm import heads as task_heads
from fnlm import random
from fnlm.layers.activation import ACTIVATIONS
from fnlm.layers.attention import attend, merge_heads, padding_bias, split_heads
from fnlm.layers.dropout import dropout, keys_of_sites
from fnlm.layers.embedding import hold, lookup
from fnlm.layers.linear import linear
from fnlm.layers.mlp import mlp
from fnlm.layers.norm import layer_norm
from fnlm.params import io
from fnlm.params import spec as describe
from fnlm.params.config import BaseConfig
from fnlm.params.rules import bert as rules
from fnlm.params.spec import Spec
from fnlm.params.tree import Tree, register_constant

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
Sites = Sequence[Maybe]  # keys of dropouts


@register_constant
@dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """The fields of a published config.json; the defaults are those of BERT base, uncased.

    `num_labels` is the number of classes of sequence and token classification; a file that names
    its classes in `id2label` has as many. Dropout before those heads and multiple choice is
    `classifier_dropout`, which None makes `hidden_dropout_prob`. The embedding of `pad_token_id` is
    a constant where it is read: no gradient reaches it there; None makes it like any other.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    classifier_dropout: float | None = None
    num_labels: int = 2
    pad_token_id: int | None = 0

    def __post_init__(self) -> None:
        """Refuse what could not run."""
        for name in (
            "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
            "intermediate_size", "max_position_embeddings", "type_vocab_size", "num_labels",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of "
                f"num_attention_heads={self.num_attention_heads}"
            )
        if not 0 <= (self.pad_token_id or 0) < self.vocab_size:
            raise ValueError(f"pad_token_id={self.pad_token_id} is not from 0 to vocab_size - 1")
        if self.hidden_act not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"hidden_act={self.hidden_act!r} is not one of {known}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Make a config from the content of a config.json, counting the classes it names."""
        named = values.get("id2label")
        return super().from_dict(({"num_labels": len(named)} if named else {}) | values)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the unknown keys of the file, without names of other classes."""
        values = super().to_dict()
        if len(values.get("id2label") or ()) != self.num_labels:
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
    if unknown := set(heads) - set(HEADS):
        raise ValueError(f"heads={tuple(heads)}: {sorted(unknown)} not among {HEADS}")
    if heads:
        tree["heads"] = {head: known[head] for head in HEADS if head in heads}
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
    x = hold(lookup(embed["token"], ids), ids, config.pad_token_id) + places
    if token_types is not None:
        x = x + lookup(embed["token_type"], token_types, "token_types")
    x = layer_norm(x, **embed["norm"], epsilon=config.layer_norm_eps)
    return dropout(x, config.hidden_dropout_prob, key)


def _attention(x: Tensor, bias: Tensor, block: Tree, config: Config, key: Maybe) -> Tensor:
    """Let every token attend to all that the bias leaves: [..., T, D] -> the same."""
    count, rate = config.num_attention_heads, config.attention_probs_dropout_prob
    q, k, v = (split_heads(linear(x, **block[name]), count)[0] for name in "qkv")
    mixed = attend(q, (k,), (v,), bias, rate=rate, key=key)
    return linear(merge_heads(mixed), **block["out"])


def _block(x: Tensor, bias: Tensor, block: Tree, config: Config, sites: Sites) -> Tensor:
    """Add and norm after each half: [..., T, D] -> the same."""
    rate, epsilon = config.hidden_dropout_prob, config.layer_norm_eps
    mixed = _attention(x, bias, block["attention"], config, sites[0])
    x = layer_norm(dropout(mixed, rate, sites[1]) + x, **block["norm_1"], epsilon=epsilon)
    fed = mlp(x, **block["mlp"], activation=ACTIVATIONS[config.hidden_act])
    return layer_norm(dropout(fed, rate, sites[2]) + x, **block["norm_2"], epsilon=epsilon)


def _states(params: Params, ids: Tensor, types: Maybe, mask: Maybe, key: Maybe) -> Iterator[Tensor]:
    """Yield the state after each block: L tensors [..., T, D]."""
    config: Config = params["config"]
    _check(config, ids, types, mask)
    first, *sites = keys_of_sites(key, 1 + 3 * config.num_hidden_layers)
    x = _embed(ids, types, params["embed"], config, first)
    bias = padding_bias(torch.ones_like(ids) if mask is None else mask, x.dtype)
    for layer, block in enumerate(params["blocks"]):
        x = _block(x, bias, block, config, sites[3 * layer : 3 * layer + 3])
        yield x


def layers(
    params: Params, ids: Tensor, token_types: Maybe = None, mask: Maybe = None, *, key: Maybe = None
) -> tuple[Tensor, ...]:
    """Return the hidden states after every block: arguments of `apply` -> L tensors [..., T, D]."""
    return tuple(_states(params, ids, token_types, mask, key))


def _last(states: Iterator[Tensor]) -> Tensor:
    """Return the last state, letting go of each when the next is there."""
    for state in states:
        last = state
    return last


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
    if "pooler" not in params:
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
    head = task_heads.find(params, "masked_lm")
    return _word_logits(params, _last(_states(params, ids, token_types, mask, key)), head)


def next_sentence_prediction(
    params: Params, ids: Tensor, token_types: Maybe = None, mask: Maybe = None, *, key: Maybe = None
) -> Tensor:
    """Score that the second text follows the first, and that it does not: -> logits [..., 2]."""
    head = task_heads.find(params, "next_sentence_prediction")
    return linear(apply(params, ids, token_types, mask, key=key)[1], **head)


def pretraining(
    params: Params, ids: Tensor, token_types: Maybe = None, mask: Maybe = None, *, key: Maybe = None
) -> tuple[Tensor, Tensor]:
    """Return the logits of `masked_lm` and of `next_sentence_prediction`, encoding once."""
    words, follows = (task_heads.find(params, name) for name in HEADS[:2])
    hidden, pooled = apply(params, ids, token_types, mask, key=key)
    return _word_logits(params, hidden, words), linear(pooled, **follows)


def sequence_classification(
    params: Params, ids: Tensor, token_types: Maybe = None, mask: Maybe = None, *, key: Maybe = None
) -> Tensor:
    """Score the classes of a text, or predict its one number: -> logits [..., num_labels]."""
    head = task_heads.find(params, "sequence_classification")
    return _classify(params, apply(params, ids, token_types, mask, key=key)[1], head, key)


def multiple_choice(
    params: Params, ids: Tensor, token_types: Maybe = None, mask: Maybe = None, *, key: Maybe = None
) -> Tensor:
    """Score each choice: arguments of `apply` with shapes [..., C, T] -> logits [..., C]."""
    head = task_heads.find(params, "multiple_choice")
    pooled = apply(params, ids, token_types, mask, key=key)[1]
    return _classify(params, pooled, head, key).squeeze(-1)


def token_classification(
    params: Params, ids: Tensor, token_types: Maybe = None, mask: Maybe = None, *, key: Maybe = None
) -> Tensor:
    """Score the classes of each token: arguments of `apply` -> logits [..., T, num_labels]."""
    head = task_heads.find(params, "token_classification")
    return _classify(params, _last(_states(params, ids, token_types, mask, key)), head, key)


def question_answering(
    params: Params, ids: Tensor, token_types: Maybe = None, mask: Maybe = None, *, key: Maybe = None
) -> tuple[Tensor, Tensor]:
    """Score each token as the first and as the last one of the answer.

    Returns:
        start logits and end logits, each [..., T]; padding is scored like any token.
    """
    head = task_heads.find(params, "question_answering")
    start, end = linear(_last(_states(params, ids, token_types, mask, key)), **head).unbind(-1)
    return start, end


def _word_logits(params: Params, hidden: Tensor, head: Tree) -> Tensor:
    config, table = params["config"], params["embed"]["token"]
    activation, epsilon = ACTIVATIONS[config.hidden_act], config.layer_norm_eps
    return task_heads.word_logits(hidden, table, **head, activation=activation, epsilon=epsilon)


def _classify(params: Params, x: Tensor, head: Tree, key: Maybe) -> Tensor:
    """Drop out, and score: [..., D] -> [..., outputs of the head]."""
    config: Config = params["config"]
    rate = config.classifier_dropout
    own = None if key is None else random.fold_in(key, 0)
    return linear(dropout(x, config.hidden_dropout_prob if rate is None else rate, own), **head)


def _check(config: Config, ids: Tensor, token_types: Maybe, mask: Maybe) -> None:
    """Compare shapes; no value is read, so it works under every transform."""
    if not isinstance(ids, Tensor):
        raise TypeError(f"ids must be an int64 tensor [..., T], got {type(ids).__name__}")
    limit = config.max_position_embeddings
    if not 0 < ids.shape[-1] <= limit:
        raise ValueError(
            f"{ids.shape[-1]} tokens are not from 1 to max_position_embeddings={limit}: "
            "shorten ids, or cut them into windows"
        )
    for name, given in (("token_types", token_types), ("mask", mask)):
        if given is not None and given.shape != ids.shape:
            raise ValueError(
                f"{name} has shape {list(given.shape)}, ids {list(ids.shape)}: they must agree"
            )


def load(
    name_or_path: str | Path, *, heads: Sequence[str] | None = None, key: Maybe = None
) -> Params:
    """Read parameters from a directory, a file or the hub.

    Args:
        name_or_path: a directory or a file of any format that `fnlm.params.io.read` knows, beside
            its config.json or bert_config.json; or a hub name. A path that exists wins.
        heads: the heads wanted; None takes those of the file.
        key: lets wanted heads that the file lacks be initialised, and the pooler where one of the
            wanted heads needs it; without it they are an error.

    Returns:
        params; where the format allows, a tensor is read from disk when it is first used.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a tensor is missing, unexpected or of another shape; a head that the file does
            not tell from others, and that `heads` does not name; another family's config; a damaged
            file.
    """
    return io.load(name_or_path, rules.FAMILY, Config, spec, heads=heads, key=key)


def save(params: Params, directory: str | Path, *, dialect: str = "transformers") -> None:
    """Write weights and config.json in the form that another library loads.

    Args:
        params: from `init`, `load` or training.
        directory: made if need be; files of the same names are replaced, each at once.
        dialect: "transformers" writes model.safetensors, "pytorch-pretrained-bert"
            pytorch_model.bin; both hold the heads of one of their classes. "fnlm" writes
            model.safetensors with any heads, for fnlm alone.

    Raises:
        ValueError: no such dialect, or heads that it cannot hold together.
    """
    if tuple(params.get("heads", {})) == ("question_answering",):
        # `transformers` gives this head, too, as many outputs as config.json has labels.
        params = {**params, "config": replace(params["config"], num_labels=2)}
    io.save(params, directory, rules.FAMILY, dialect)
