"""Training steps: micro-batches that count differently, and gradients that are no numbers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from fnlm import random, train, tree
from fnlm.train import losses
from fnlm.tree import Tree

ROWS, TIME, WIDTH, CLASSES = 8, 7, 5, 6
KEY = random.key(0)


def features(seed: int = 0) -> Tensor:
    return random.normal(random.key(seed), (ROWS, TIME, WIDTH), torch.float64)


def params(seed: int = 1) -> Tree:
    first, second = random.split(random.key(seed))
    return {
        "w": random.normal(first, (WIDTH, CLASSES), torch.float64),
        "v": random.normal(second, (WIDTH, 2), torch.float64),
    }


def uneven(*lengths: int) -> Tensor:
    """Classes at the first positions of each row, -1 beyond."""
    labels = (random.uniform(random.key(7), (ROWS, TIME)) * CLASSES).long()
    return torch.where(torch.arange(TIME) < torch.tensor(lengths).unsqueeze(1), labels, -1)


LENGTHS = {
    "even": (3,) * ROWS,
    "uneven": (7, 1, 2, 2, 0, 5, 1, 3),
    "parts without labels": (0, 0, 0, 0, 4, 1, 0, 0),
    "first ones": (2, 0, 0, 0, 0, 0, 0, 0),
    "no labels": (0,) * ROWS,
}

Loss = Callable[..., Tensor]


def tokens(p: Tree, x: Tensor, y: Tensor, *, key: Tensor) -> Tensor:
    return losses.cross_entropy(x @ p["w"], y)


def regularized(p: Tree, x: Tensor, y: Tensor, *, key: Tensor) -> Tensor:
    return 3 * tokens(p, x, y, key=key) + 0.1 * p["w"].square().sum() + 2


def two_means(p: Tree, x: Tensor, y: Tensor, *, key: Tensor) -> Tensor:
    """As of BERT's pre-training: the means count tokens and rows."""
    sentence = x.mean(1) @ p["v"]
    return losses.pretraining(x @ p["w"], sentence, y, (y[:, 0] > 2).long())


def own_mean(p: Tree, x: Tensor, y: Tensor, *, key: Tensor) -> Tensor:
    return losses.mean((x @ p["w"]).square().sum(-1), y >= 0)


def rows(p: Tree, x: Tensor, y: Tensor, *, key: Tensor) -> Tensor:
    return (x @ p["w"]).square().mean()


def spans(p: Tree, x: Tensor, y: Tensor, *, key: Tensor) -> Tensor:
    """Starts within the window where ends are beyond it, and the other way round."""
    starts, ends = (x @ p["v"]).unbind(-1)
    found = (y >= 0).sum(1)
    return losses.span(starts, ends, found, torch.where(found > 3, 99, found))


def inner_vmap(p: Tree, x: Tensor, y: Tensor, *, key: Tensor) -> Tensor:
    """A mean over examples of means over their tokens counts examples, not tokens."""
    return vmap(lambda x, y: losses.cross_entropy(x @ p["w"], y))(x, y).mean()


def repeated(p: Tree, x: Tensor, y: Tensor, *, key: Tensor) -> Tensor:
    """Three means, of which one is used twice and one divides."""
    a, b = tokens(p, x, y, key=key), losses.mean((x @ p["v"]).square())
    c = losses.mean((x @ p["v"]).sum(-1), y == 1)
    return a + 2 * a + b * 0.5 - c


LOSSES: dict[str, Loss] = {
    f.__name__: f
    for f in (tokens, regularized, two_means, own_mean, rows, spans, inner_vmap, repeated)
}


def stepped(
    loss: Loss, accumulate: int, batch: tuple[Tensor, ...], start: Tree, transform: Any = None
) -> tuple[train.TrainState, train.Metrics]:
    """A step of plain gradient descent, which shows the gradient to all its digits."""
    sgd = train.chain(train.scale_by_schedule(lambda step: 1.0))
    step = train.train_step(loss, sgd, accumulate=accumulate)
    return (transform or (lambda f: f))(step)(train.init_state(start, sgd, KEY), *batch)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_micro_batches_are_one_batch_whatever_they_count(
    accumulate: int, name: str, lengths: str
) -> None:
    batch = (features(), uneven(*LENGTHS[lengths]))
    wanted, expected = stepped(LOSSES[name], 1, batch, params())
    found, metrics = stepped(LOSSES[name], accumulate, batch, params())
    for a, b in zip(
        tree.leaves((found.params, metrics)), tree.leaves((wanted.params, expected)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_in_float32_they_agree_to_a_millionth(name: str) -> None:
    batch = (features().float(), uneven(*LENGTHS["uneven"]))
    start = tree.cast(params(), torch.float32)
    wanted, _ = stepped(LOSSES[name], 1, batch, start)
    scale = tree.norm(wanted.params)
    for accumulate in (2, 4, 8):
        found, _ = stepped(LOSSES[name], accumulate, batch, start)
        error = tree.norm(tree.map(torch.sub, found.params, wanted.params))
        assert error < 1e-6 * scale


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("how", ["vmap", "compile"])
def test_micro_batches_under_transforms(name: str, how: str) -> None:
    batch = (features(), uneven(*LENGTHS["uneven"]))
    torch.compiler.reset()
    transform = {
        "vmap": lambda step: (
            lambda state, *b: tree.map(
                lambda x: x[1],
                vmap(step)(
                    tree.stack([state, state]),
                    torch.stack([features(5), b[0]]),
                    torch.stack([uneven(*LENGTHS["even"]), b[1]]),
                ),
            )
        ),
        "compile": lambda step: torch.compile(step, backend="aot_eager", fullgraph=True),
    }[how]
    wanted, expected = stepped(LOSSES[name], 1, batch, params())
    if how == "compile" and name == "inner_vmap":  # not told from a mean outside: no silent mean
        with pytest.raises(torch._dynamo.exc.TorchRuntimeError):
            stepped(LOSSES[name], 2, batch, params(), transform)
        return
    found, metrics = stepped(LOSSES[name], 2, batch, params(), transform)
    pairs = ((found.params, metrics), (wanted.params, expected))
    for a, b in zip(*(tree.leaves(side) for side in pairs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_what_a_step_heard_before_changes_no_bit() -> None:
    """After uneven micro-batches of several means, a step counts first: the numbers stay."""
    sgd = train.chain(train.scale_by_schedule(lambda step: 1.0))
    state = train.init_state(params(), sgd, KEY)
    fresh = train.train_step(two_means, sgd, accumulate=4)
    used = train.train_step(two_means, sgd, accumulate=4)
    used(state, features(3), uneven(*LENGTHS["uneven"]))
    for lengths in LENGTHS.values():
        batch = (features(), uneven(*lengths))
        for a, b in zip(
            tree.leaves(used(state, *batch)), tree.leaves(fresh(state, *batch)), strict=True
        ):
            assert a.equal(b)
        fresh = train.train_step(two_means, sgd, accumulate=4)


def test_even_micro_batches_cost_no_pass_more() -> None:
    calls = []

    def counted(p: Tree, x: Tensor, y: Tensor, *, key: Tensor) -> Tensor:
        calls.append(torch.is_grad_enabled())
        return two_means(p, x, y, key=key)

    stepped(counted, 4, (features(), uneven(*LENGTHS["even"])), params())
    assert calls == [True] * 4


def test_a_loss_of_changing_means_is_named() -> None:
    def changing(p: Tree, x: Tensor, y: Tensor, *, key: Tensor) -> Tensor:
        return tokens(p, x, y, key=key) if int(y[0, 0]) < 0 else rows(p, x, y, key=key)

    with pytest.raises(ValueError, match="the loss took 0 means of the first micro-batch and 1 of"):
        stepped(changing, 8, (features(), uneven(*LENGTHS["uneven"])), params())


def test_a_mean_of_other_shapes_is_named_and_nan_beside_it_is_not_read() -> None:
    with pytest.raises(ValueError, match=r"where must have the shape of values: \(2,\) against"):
        losses.mean(torch.ones(3), torch.ones(2).bool())
    values = torch.tensor([1.0, torch.nan, 3.0])
    assert losses.mean(values, torch.tensor([1, 0, 1])) == 2
    assert losses.mean(values[:0]) == 0 and losses.mean(torch.ones(3).half()).dtype == torch.float32


# Gradients that are no numbers.


def scaled(p: Tree, x: Tensor, *, key: Tensor) -> Tensor:
    return (p["a"]["w"] * x[0]).sum() + (p["b"] * x[1]).sum()


BAD = [float("nan"), float("inf"), -float("inf")]


@pytest.mark.parametrize("donate", [False, True], ids=["pure", "donated"])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("leaf", [0, 1])
def test_a_gradient_that_is_no_number_changes_nothing_and_is_named(
    leaf: int, bad: float, donate: bool
) -> None:
    optimizer = train.bert_adam(0.1)
    step = train.train_step(scaled, optimizer, donate=donate)
    state = train.init_state(
        {"a": {"w": torch.ones(3)}, "b": torch.ones(2)}, optimizer, random.key(0)
    )
    state, _ = step(state, torch.tensor([1.0, 2.0]))
    before = tree.map(torch.clone, state)
    x = torch.tensor([1.0, 2.0])
    x[leaf] = bad
    for count in (1, 2):
        state, metrics = step(state, x)
        assert not metrics.finite
        for a, b in zip(
            tree.leaves((state.params, state.opt_state)),
            tree.leaves((before.params, before.opt_state)),
            strict=True,
        ):
            assert a.equal(b)
        found = tuple(int(value) for value in state.skipped)
        assert found == (count, count, count + 1, leaf) and int(state.step) == count + 1
    assert train.describe_skipped(state) == (
        f"2 steps skipped, the last one step 3: the gradient of {('a.w', 'b')[leaf]} was not finite"
    )
    state, metrics = step(state, torch.tensor([1.0, 2.0]))
    assert metrics.finite and tuple(int(v) for v in state.skipped) == (2, 0, 3, leaf)
    assert not state.params["b"].equal(before.params["b"])


def test_a_loss_that_is_no_number_is_named_too() -> None:
    optimizer = train.adamw(0.1)
    step = train.train_step(lambda p, x, key: p["w"].sum() + x, optimizer)
    state, metrics = step(
        train.init_state({"w": torch.ones(2)}, optimizer, KEY), torch.tensor(torch.inf)
    )
    assert metrics.gradient_norm.isfinite() and state.params["w"].equal(torch.ones(2))
    assert train.describe_skipped(state).endswith("step 1: the loss was not finite")


def test_one_member_of_an_ensemble_skips_alone() -> None:
    optimizer = train.adamw(0.1)
    step = train.train_step(scaled, optimizer)
    start = train.init_state({"a": {"w": torch.ones(3)}, "b": torch.ones(2)}, optimizer, KEY)
    x = torch.tensor([[1.0, 2.0], [torch.nan, 2.0], [1.0, 3.0]])
    together, metrics = vmap(step)(tree.stack([start] * 3), x)
    alone = tree.stack([step(start, row)[0] for row in x])
    assert metrics.finite.tolist() == [True, False, True]
    for a, b in zip(tree.leaves(together), tree.leaves(alone), strict=True):
        torch.testing.assert_close(a, b)
    assert together.params["b"][1].equal(torch.ones(2))


def test_a_compiled_step_skips() -> None:
    optimizer = train.adamw(0.1)
    step = train.train_step(scaled, optimizer)
    torch.compiler.reset()
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    state = train.init_state({"a": {"w": torch.ones(3)}, "b": torch.ones(2)}, optimizer, KEY)
    for x in (torch.tensor([1.0, 2.0]), torch.tensor([torch.nan, 1.0]), torch.tensor([0.5, 2.0])):
        wanted, _ = step(state, x)
        state, _ = compiled(state, x)
        for a, b in zip(tree.leaves(state), tree.leaves(wanted), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("grown", [False, True], ids=["same shapes", "grown"])
def test_a_skipped_step_keeps_the_former_carry(grown: bool) -> None:
    def loss(p: Tree, carry: Tensor, x: Tensor, *, key: Tensor) -> tuple[Tensor, Tensor]:
        new = torch.cat([carry, x]) if grown else carry + x
        return (p["w"] * new.sum()).sum(), new

    optimizer = train.adamw(0.1)
    step = train.carry_step(loss, optimizer)
    state = train.CarryState(train.init_state({"w": torch.ones(2)}, optimizer, KEY), torch.ones(1))
    state, _ = step(state, torch.ones(1))
    before = state.carry.clone()
    state, metrics = step(state, torch.tensor([torch.nan]))
    assert not metrics.finite and state.carry.equal(before)
    state, metrics = step(state, torch.ones(1))
    assert metrics.finite and state.carry.sum() == 3
