"""Every family so tiny that its curvature is a matrix: 3 heads, ties, padding, ignored labels."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fnlm import bert, gpt, gpt2, random, transfo_xl, tree
from fnlm.tree import Tree

Model = Callable[..., tuple[Tensor, Tensor]]


class Tiny(NamedTuple):
    """Parameters in float64, and a model that returns logits and labels."""

    params: Tree
    model: Model  # model(params, ids [B, T], mask [B, T], labels [B, T]) -> (logits, labels)
    batch: tuple[Tensor, Tensor, Tensor]


def _bert(params: Tree, ids: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return bert.masked_lm(params, ids, ids % 2, mask), labels


def _gpt(params: Tree, ids: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return gpt.apply(params, ids, mask=mask)[0], labels


def _gpt2(params: Tree, ids: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return gpt2.apply(params, ids, mask=mask)[0], labels


def _transfo_xl(params: Tree, ids: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return transfo_xl.apply(params, ids)[0], labels


GPT = gpt.Config(vocab_size=7, n_positions=5, n_ctx=5, n_embd=6, n_layer=1, n_head=3)
GPT2 = gpt2.Config(vocab_size=7, n_positions=5, n_ctx=5, n_embd=6, n_layer=1, n_head=3)
BERT = bert.Config(
    vocab_size=7, hidden_size=6, num_hidden_layers=1, num_attention_heads=3, intermediate_size=5,
    max_position_embeddings=5,
)  # fmt: skip
TRANSFO_XL = transfo_xl.Config(
    n_token=9, cutoffs=(3, 5), d_model=6, d_embed=4, n_head=3, d_head=2, d_inner=5, div_val=2,
    n_layer=1, mem_len=2, clamp_len=3,
)  # fmt: skip


def _params(tree_of: Tree) -> Tree:
    """Move parameters far from their initial values, so that no bias or scale is trivial."""
    keys = iter(random.split(random.key(1), len(tree.leaves(tree_of))))
    wide = tree.cast(tree_of, torch.float64)
    return tree.map(lambda x: x + 0.3 * random.normal(next(keys), tuple(x.shape), x.dtype), wide)


def _batch(vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (3, 5), generator=generator)
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[1, :2] = False
    mask[2, 2:] = False
    labels = torch.where(mask, ids.roll(-1, -1), -1)
    labels[0, 1] = -1
    return ids, mask, labels


def tiny(name: str) -> Tiny:
    """Make one of the families."""
    key = random.key(0)
    if name == "bert":
        return Tiny(_params(bert.init(BERT, key, heads=("masked_lm",))), _bert, _batch(7))
    if name == "gpt":
        return Tiny(_params(gpt.init(GPT, key)), _gpt, _batch(7))
    if name == "gpt2":
        return Tiny(_params(gpt2.init(GPT2, key)), _gpt2, _batch(7))
    return Tiny(_params(transfo_xl.init(TRANSFO_XL, key)), _transfo_xl, _batch(9))


NAMES = ("bert", "gpt", "gpt2", "transfo_xl")
