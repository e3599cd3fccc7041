"""A BERT classifier of any size with its batch, for fnlm and as a module of transformers."""

from typing import Any

import torch
from torch import Tensor

from fnlm import bert, random
from fnlm.params import _rename
from fnlm.params.names.bert import FAMILY
from fnlm.train import losses
from fnlm.tree import Tree

HEAD = "sequence_classification"
Batch = tuple[Tensor, ...]  # ids, token types, mask, labels


def make_params(width: int, layers: int, dropout: float = 0.1, head: str = HEAD) -> bert.Params:
    """Return random parameters with heads of 32 channels."""
    config = bert.Config(
        hidden_size=width, num_hidden_layers=layers, intermediate_size=4 * width,
        num_attention_heads=max(1, width // 32), max_position_embeddings=512,
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    return bert.init(config, random.key(0), heads=(head,))


def make_batch(rows: int, length: int) -> Batch:
    """Return a batch in which every other row is padded."""
    ids = torch.randint(bert.Config().vocab_size, (rows, length))
    mask = torch.ones_like(ids)
    mask[::2, length * 3 // 4 :] = 0
    return ids, torch.zeros_like(ids), mask, torch.randint(2, (rows,))


def loss(params: Tree, *example: Tensor) -> Tensor:
    """Return the loss of ids, token types, mask, label and key of dropout."""
    *given, label, key = example
    return losses.cross_entropy(bert.sequence_classification(params, *given, key=key), label)


def plain_loss(params: Tree, *example: Tensor) -> Tensor:
    """Return the loss without dropout."""
    *given, label = example
    return losses.cross_entropy(bert.sequence_classification(params, *given), label)


def make_peer(params: Tree, kind: str = "BertForSequenceClassification") -> Any:
    """Return the model of transformers with the same weights, in training."""
    import transformers

    config = params["config"]
    module = getattr(transformers, kind)(transformers.BertConfig(**config.to_dict()))
    leaves = {name: leaf for name, leaf in params.items() if name != "config"}
    module.load_state_dict(_rename.to_foreign(leaves, FAMILY.dialects[0]), strict=False)
    return module.train()
