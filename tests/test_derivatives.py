"""Derivatives of every order: all models under every pair of transforms, and under random triples.

In float64, all leaves at once, beside plain autograd in loops, which is held to differences.
"""

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import make_derivatives as made
import pytest
import torch
from compositions import (
    ORDER,
    PAIRED,
    TRANSFORMS,
    Function,
    compose,
    difference,
    error,
    reference,
    slopes,
)
from conftest import ROOT
from families import GPT, GPT2, IDS, TRANSFO_XL, VARIANTS, Family, make_params
from torch import Tensor
from torch.func import grad

from fnlm import random, train, transfo_xl, tree
from fnlm.layers.activation import ACTIVATIONS
from fnlm.train import losses
from fnlm.tree import Tree

FULL = os.environ.get("FNLM_TEST_FULL", "0") != "0"
WORDS, CONTEXT = 11, 12
SMALL: dict[str, dict[str, Any]] = {
    "bert": {
        "hidden_size": 6, "intermediate_size": 5, "num_hidden_layers": 1, "vocab_size": WORDS,
        "max_position_embeddings": CONTEXT,
    },
    "gpt": {"n_embd": 6, "n_layer": 1, "n_positions": CONTEXT, "vocab_size": WORDS},
    "gpt2": {"n_embd": 6, "n_layer": 1, "n_positions": CONTEXT, "vocab_size": WORDS},
    "transfo_xl": {
        "d_model": 6, "d_embed": 8, "d_head": 3, "d_inner": 5, "n_layer": 1, "n_token": WORDS,
        "cutoffs": (3, 6),
    },
}  # fmt: skip
PAIRS = list(itertools.product(PAIRED, repeat=2))
TOLERANCE = 1e-6


def number(outputs: Any) -> Tensor:
    """Turn any outputs into one number that every element has a say in; nothing gives 0."""
    return sum((x.sin() + x * x).sum() / max(x.numel(), 1) for x in tree.leaves(outputs))


def sizes_of(family: Family) -> dict[str, Any]:
    """The sizes of a small model, of one block."""
    return SMALL.get(family.name, {family.config.depth: 1})


def model(family: Family, task: str, lead: Sequence[int] = (), length: int = 5, seed: int = 0) -> \
        tuple[Function, Tree]:  # fmt: skip
    """A small model as a function of parameters and the number of an example, and parameters.

    Examples [*lead, T] are padded on one side or the other; an odd seed turns dropout on.
    """
    family = family._replace(config=replace(family.config, **sizes_of(family)))
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(WORDS, (2, *lead, length), generator=generator)
    mask = torch.arange(length) >= torch.tensor([1, 0]).view(2, *[1] * len(lead), 1)
    mask = (mask & (ids[..., -1:] % 2 > 0) | (torch.arange(length) < length - 1)).expand(ids.shape)
    keys = random.split(random.key(seed), 2)

    def h(p: Tree, i: Tensor) -> Tensor:
        own_ids, own_mask, key = (x.index_select(0, i[None])[0] for x in (ids, mask, keys))
        return number(family.tasks[task](p, own_ids, own_mask, key=key if seed % 2 else None))

    return h, make_params(family, seed, torch.float64)


def directions(params: Tree, seed: int = 0) -> list[Tree]:
    """A direction for each of three transforms."""
    keys = iter(random.split(random.key(seed), 3 * len(tree.leaves(params))))
    return [
        tree.map(lambda x: random.normal(next(keys), tuple(x.shape), x.dtype), params)
        for _ in range(3)
    ]


class Checker:
    """Compares compositions of one function with their references, each made once."""

    def __init__(self, h: Function, params: Tree, seed: int = 0) -> None:
        self.h, self.params, self.along = h, params, directions(params, seed)
        self.i = torch.tensor(seed % 2)
        self.expected = cache(self.expected)  # type: ignore[method-assign]

    def expected(self, kinds: tuple[str, ...]) -> tuple[Tree, Tree]:
        """The number, and where the outermost transform differentiates, the gradient, too."""
        along, rest = self.along[-len(kinds) :], kinds[1:]
        value = reference(self.h, kinds, along)(self.params, self.i)
        if kinds[0] == "vmap":
            return value, None
        inner = reference(self.h, rest, along[1:])
        slope = difference(inner, self.params, self.i, along[0])
        if ORDER.get(kinds[0], 1) == 1:
            assert error(value, slope) < TOLERANCE, "plain autograd is not a reference here"
        return value, slopes(inner, self.params, self.i)

    def check(self, names: tuple[str, ...]) -> None:
        kinds = tuple(name if name in ORDER else "grad" for name in names)
        along = self.along[-len(names) :]
        value, gradient = self.expected(kinds)
        found = compose(self.h, names, along)(self.params, self.i)
        assert error(found, value) < TOLERANCE, " of ".join(names)
        if names[0] == "grad":  # leaf by leaf
            inner = compose(self.h, names[1:], along[1:])
            found = grad(inner)(self.params, self.i)
            assert error(found, gradient) < TOLERANCE, " of ".join(names)


@pytest.mark.parametrize(("family", "task"), VARIANTS, ids=IDS)
def test_pairs_of_transforms(family: Family, task: str) -> None:
    checker = Checker(*model(family, task))
    for names in PAIRS:
        checker.check(names)


def triples(seed: int, count: int) -> list[tuple[str, ...]]:
    """Draw transforms that differentiate three times at most; plain autograd only in front."""
    draw = torch.Generator().manual_seed(seed)

    def pick(names: Sequence[str]) -> str:
        return names[int(torch.randint(len(names), (), generator=draw))]

    inner = [name for name in TRANSFORMS if name != "autograd"]
    found: list[tuple[str, ...]] = []
    while len(found) < count:
        names = (pick(list(TRANSFORMS)), pick(inner), pick(inner))
        if names[0] == "autograd" and pick("ab") == "a":
            names = ("autograd", "autograd", names[2])
        if 2 <= sum(ORDER.get(name, 1) for name in names) <= 3:
            found.append(names)
    return found


@pytest.mark.parametrize("seed", range(200 if FULL else 40))
def test_triples_of_transforms(seed: int) -> None:
    """On examples of awkward shapes, with dropout and without."""
    draw = torch.Generator().manual_seed(seed)
    family, task = VARIANTS[(7 * seed) % len(VARIANTS)]
    lead = [(), (1,), (2,), (0,), (3, 1)][int(torch.randint(5, (), generator=draw))]
    length = int(torch.randint(4, 10, (), generator=draw))
    checker = Checker(*model(family, task, lead, length, seed), seed)
    for names in triples(seed, 2):
        checker.check(names)


OTHER_XLS: dict[str, dict[str, Any]] = {
    "norm first, shared biases, nothing tied": {
        "pre_lnorm": True, "untie_r": False, "tie_weight": False,
    },
    "plain softmax": {"cutoffs": (), "div_val": 1},
    "sampled softmax": {"cutoffs": (), "div_val": 1, "sample_softmax": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER_XLS)
def test_other_transformer_xls(name: str) -> None:
    """With a key, which the sampled softmax needs."""
    config = replace(TRANSFO_XL.config, **SMALL["transfo_xl"] | OTHER_XLS[name])
    params = make_params(TRANSFO_XL._replace(config=config), dtype=torch.float64)
    ids, targets = torch.randint(WORDS, (2, 2, 4), generator=torch.Generator().manual_seed(1))

    def h(p: Tree, i: Tensor) -> Tensor:
        own_ids, own_targets = (x.index_select(0, i[None])[0] for x in (ids, targets))
        score = transfo_xl.negative_log_likelihood
        first, mems = score(p, own_ids, own_targets, key=random.key(0), detach=False)
        return number((first, score(p, own_targets, own_ids, mems, key=random.key(1))[0]))

    checker = Checker(h, params)
    for names in PAIRS:
        checker.check(names)


def test_the_sparse_road_of_transformer_xl() -> None:
    """Its shapes depend on data, which `vmap` refuses."""
    config = replace(TRANSFO_XL.config, **SMALL["transfo_xl"])
    params = make_params(TRANSFO_XL._replace(config=config), dtype=torch.float64)
    ids = torch.tensor([[1, 9, 4, 10], [0, 2, 3, 5]])

    def h(p: Tree, i: Tensor) -> Tensor:
        score = transfo_xl.negative_log_likelihood
        return number(score(p, ids[i], ids[1 - i], sparse=True)[0])

    checker = Checker(h, params)
    for names in [*PAIRS, ("grad", "jvp", "grad"), ("jvp", "grad", "grad")]:
        if "vmap" not in names:
            checker.check(names)


@pytest.mark.parametrize("family", [GPT, GPT2], ids=lambda family: family.name)
@pytest.mark.parametrize("fixed", [False, True], ids=["growing", "fixed"])
def test_through_a_cache(family: Family, fixed: bool) -> None:
    """What is scored after a cache has the derivatives of the tokens in the cache, too."""
    config = replace(family.config, **SMALL[family.name])
    params = make_params(family._replace(config=config), dtype=torch.float64)
    ids = torch.tensor([[[1, 9, 4, 10, 7]], [[0, 2, 3, 5, 8]]])

    def h(p: Tree, i: Tensor) -> Tensor:
        own, apply = ids.index_select(0, i[None])[0], family.module.apply
        cache = family.module.init_cache(p, 1, CONTEXT) if fixed else None
        first, cache = apply(p, own[:, :3], cache)
        second, cache = apply(p, own[:, 3:4], cache)
        return number((second, apply(p, own[:, 4:], cache)[0]))

    checker = Checker(h, params)
    for names in [*PAIRS, ("grad", "vmap", "grad"), ("jvp", "grad", "jvp")]:
        checker.check(names)


OPTIMIZERS: dict[str, Callable[[], train.Optimizer]] = {
    "bert_adam": lambda: train.bert_adam(0.1, warmup=0.5, t_total=9, weight_decay=0.05),
    "openai_adam": lambda: train.openai_adam(0.1, weight_decay=0.05, max_grad_norm=0.1),
    "adamw": lambda: train.adamw(0.1, max_grad_norm=0.1),
    "masked rows": lambda: train.mask_rows(train.adamw(0.1), {"w": 0}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_through_steps_of_an_optimizer(name: str) -> None:
    """The parameters after two steps, by the data that their gradients come from."""
    start = {"w": random.normal(random.key(0), (3, 2), torch.float64), "b": torch.ones(2).double()}
    data = {"x": random.normal(random.key(1), (4, 3), torch.float64)}
    optimizer = OPTIMIZERS[name]()

    def h(p: Tree, i: Tensor) -> Tensor:
        def loss(params: Tree) -> Tensor:
            return ((p["x"] @ params["w"]).tanh() + params["b"] * (i + 1)).pow(2).sum()

        params, state = start, optimizer.init(start)
        for _ in range(2):
            params, state = optimizer.update(grad(loss)(params), state, params)
        return number(params)

    checker = Checker(h, data)
    for names in PAIRS:
        checker.check(names)


@pytest.mark.parametrize("activation", [*ACTIVATIONS])
def test_activations(activation: str) -> None:
    x = {"x": torch.linspace(-3, 3, 7, dtype=torch.float64) + 0.1}
    checker = Checker(lambda p, i: (ACTIVATIONS[activation](p["x"]) * (i + 1)).sum(), x)
    for names in [*PAIRS, *triples(0, 20)]:
        checker.check(names)


LABELS = torch.tensor([[2, -1, 0, 4], [1, 3, -1, -1]])
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": losses.cross_entropy,
    "language_model": lambda x, y: losses.language_model(x, y, y >= 0),
    "token_classification": lambda x, y: losses.token_classification(x, y, y != 3),
    "pretraining": lambda x, y: losses.pretraining(x, x[..., 0, :2], y, y[..., 0] % 2),
    "span": lambda x, y: losses.span(x[..., 0, :], x[..., 1, :], y[..., 0], y[..., 3]),
    "regression": lambda x, y: losses.regression(x[..., :1], y.double()),
    "nothing counts": lambda x, y: losses.cross_entropy(x, torch.full_like(y, -1)) + x.sum() ** 2,
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str) -> None:
    x = {"x": random.normal(random.key(0), (4, 5), torch.float64)}
    checker = Checker(lambda p, i: LOSSES[name](p["x"], LABELS.index_select(0, i[None])[0]), x)
    for names in [*PAIRS, *triples(1, 20)]:
        checker.check(names)


def test_the_page_of_derivatives_has_every_pair_and_nothing_of_fnlm_is_off() -> None:
    page = (ROOT / "docs" / "derivatives.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if " of " in line and line[:2] == "| "]
    found = [row[0].removeprefix("| ") for row in rows]
    wanted = [" of ".join(names) for names in [*made.PAIRS, *made.TRIPLES]]
    assert found == wanted * len(made.MODELS), "run `python tests/make_derivatives.py`"
    assert all(row[1].removesuffix(" |") == "right" for row in rows)


@pytest.mark.parametrize("name", [name for name, model in made.MODELS.items() if model.name])
def test_the_page_of_derivatives_says_what_the_peer_gives(name: str) -> None:
    """One row of it: that of the shortest composition which is wrong in silence."""
    page, names = (ROOT / "docs" / "derivatives.md").read_text(encoding="utf-8"), ("grad", "jvp")
    of = made.theirs(made.MODELS[name], attn_implementation="eager")
    found = made.cell(name, of, names, [])
    assert "off" in found, "the peer is right now: run `python tests/make_derivatives.py`"
    table = page[page.index(f"| {name} |") :]
    assert table[table.index("| grad of jvp |") :].splitlines()[0].endswith(f"| {found} |")
