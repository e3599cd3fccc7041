"""Rows of tables that an optimizer leaves alone, beside `padding_idx` of torch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytorch_pretrained_bert.optimization import BertAdam
from torch.func import grad, vmap
from torch.nn import functional as F

from fnlm import random, train, tree

PARAMS: Any = {
    "embed": {"token": random.normal(random.key(0), (5, 3))},
    "out": random.normal(random.key(1), (3, 2)),
}
IDS = torch.tensor([[1, 4, 0, 0], [2, 0, 3, 3], [0, 0, 0, 1]])
OPTIMIZERS: dict[str, Callable[[], train.Optimizer]] = {
    "bert_adam": lambda: train.bert_adam(0.1, weight_decay=0.05, warmup=0.2, t_total=20),
    "openai_adam": lambda: train.openai_adam(0.1, weight_decay=0.05, max_grad_norm=0.5),
    "adamw": lambda: train.adamw(0.1, max_grad_norm=0.5),
    "a sentence": lambda: train.chain(train.clip_by_global_norm(0.5), train.scale_by_adam()),
}
ROWS = {"embed.token": 0, "out": None}


def loss(params: Any, ids: Any = IDS, padding: int | None = None) -> Any:
    return (F.embedding(ids, params["embed"]["token"], padding) @ params["out"]).pow(3).sum()


@pytest.mark.parametrize("donate", [False, True])
def test_training_matches_padding_idx_under_the_optimizer_of_pytorch_pretrained_bert(donate: bool) -> None:
    """The row has no part in the norm that the table is clipped by, and only decays."""
    theirs = tree.map(lambda x: x.clone().requires_grad_(), PARAMS)
    rates = {"warmup": 0.2, "t_total": 20}
    peer = BertAdam(tree.leaves(theirs), lr=0.1, weight_decay=0.05, **rates)
    optimizer = train.mask_rows(OPTIMIZERS["bert_adam"](), ROWS)
    params, state = tree.map(torch.clone, PARAMS), optimizer.init(PARAMS)
    for _ in range(20):
        peer.zero_grad()
        loss(theirs, padding=0).backward()
        peer.step()
        params, state = optimizer.update(grad(loss)(params), state, params, donate=donate)
    for a, b in zip(tree.leaves(params), tree.leaves(theirs), strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-6, atol=1e-6)
    row = PARAMS["embed"]["token"][0]
    assert 0.5 < (params["embed"]["token"][0] / row).min() < 1, "it decays"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_other_rows_are_trained_as_with_padding_idx(name: str) -> None:
    plain, masked = OPTIMIZERS[name](), train.mask_rows(OPTIMIZERS[name](), ROWS)
    states = [plain.init(PARAMS), masked.init(PARAMS)]
    both = [PARAMS, PARAMS]
    for _ in range(3):
        grads = [grad(lambda p: loss(p, padding=0))(both[0]), grad(loss)(both[1])]
        before = tree.map(torch.clone, grads[1])
        for i, optimizer in enumerate((plain, masked)):
            both[i], states[i] = optimizer.update(grads[i], states[i], both[i])
        assert all(map(torch.equal, tree.leaves(before), tree.leaves(grads[1]))), "pure"
    assert grads[1]["embed"]["token"][0].any(), "the model's own derivative is not masked"
    ends = (tree.leaves((both[i], states[i])) for i in range(2))
    assert all(a.equal(b) for a, b in zip(*ends, strict=True))


def test_masked_steps_are_vmapped_and_differentiated() -> None:
    optimizer = train.mask_rows(train.adamw(0.1), ROWS)
    members = tree.map(lambda x: torch.stack([x, 2 * x]), PARAMS)

    def step(params: Any) -> Any:
        return optimizer.update(grad(loss)(params), optimizer.init(params), params)[0]

    loop = tree.stack([step(PARAMS), step(tree.map(lambda x: 2 * x, PARAMS))])
    for a, b in zip(tree.leaves(vmap(step)(members)), tree.leaves(loop), strict=True):
        torch.testing.assert_close(a, b)
    through = grad(lambda p: loss(step(p)))(PARAMS)
    assert all(leaf.isfinite().all() for leaf in tree.leaves(through))


def test_misuse_is_named() -> None:
    for rows, error, words in (
        ({"embed.tokens": 0}, ValueError, "no leaf 'embed.tokens', but embed.token, out"),
        ({"embed.token": 5}, IndexError, "'embed.token' has rows from 0 to 4, there is no row 5"),
        ({"embed.token": -1}, IndexError, "there is no row -1"),
    ):
        optimizer = train.mask_rows(train.adamw(0.1), rows)
        with pytest.raises(error, match=words):
            optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)
