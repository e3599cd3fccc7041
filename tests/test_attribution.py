"""Influence equals training again; derivatives through training equal differences."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from allocations import peak_bytes
from tiny_families import BERT, GPT2, TRANSFO_XL
from torch import Tensor
from torch.func import grad, vmap
from torch.nn import functional as F

from fnlm import bert, gpt2, random, train, transfo_xl, tree
from fnlm.transforms import attribute, ggn, hessian, influence
from fnlm.transforms.attribution import Attribution
from fnlm.transforms.softmax import SoftmaxCrossEntropy
from fnlm.tree import Tree

KEYS = random.split(random.key(0), 6)
B = 7


def head_loss(params: Tree, x: Tensor, label: Tensor) -> Tensor:
    return F.cross_entropy(x @ params["weight"] + params["bias"], label)


def head_objective(params: Tree, weights: Tensor, x: Tensor, labels: Tensor) -> Tensor:
    """Weighted losses of a head of three classes, with a penalty that makes it strictly convex."""
    losses = vmap(head_loss, (None, 0, 0))(params, x, labels)
    return (weights * losses).mean() + 0.05 * sum(p.square().sum() for p in params.values())


def retrain(weights: Tensor, x: Tensor, labels: Tensor) -> Tree:
    """Minimise by Newton's method on plain vectors, to the last digit."""
    like = {"weight": x.new_zeros(x.shape[1], 3), "bias": x.new_zeros(3)}
    sizes = [leaf.numel() for leaf in like.values()]

    def whole(vector: Tensor) -> Tree:
        return {k: v.view_as(like[k]) for k, v in zip(like, vector.split(sizes), strict=True)}

    vector = x.new_zeros(sum(sizes))
    for _ in range(20):
        step = lambda v: head_objective(whole(v), weights, x, labels)  # noqa: E731
        slope = torch.autograd.functional.jacobian(step, vector)
        vector = vector - torch.linalg.solve(torch.autograd.functional.hessian(step, vector), slope)
    assert slope.norm() < 1e-14
    return whole(vector)


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_influence_is_what_training_again_shows(chunk_size: int | None) -> None:
    """A linear head on the frozen features of a GPT-2."""
    params = tree.cast(gpt2.init(GPT2, KEYS[0]), torch.float64)
    ids = (random.uniform(KEYS[1], (B, 5)) * 7).long()
    x = 3 * gpt2.hidden_states(params, ids)[0][:, -1]
    labels = torch.tensor([0, 1, 2, 1, 0, 2, 2])
    ones = torch.ones(B, dtype=torch.float64)

    def query(params: Tree) -> Tensor:
        return head_loss(params, x[:2].mean(0), torch.tensor(1))

    optimum = retrain(ones, x, labels)
    op = hessian(head_objective, optimum, ones, x, labels)
    found = influence(op, query, head_loss, optimum, x, labels, tol=1e-12, chunk_size=chunk_size)
    assert found.solution.converged
    h = 1e-4
    for i in range(B):
        up, down = (
            query(retrain(ones.index_add(0, torch.tensor([i]), ones[:1], alpha=s), x, labels))
            for s in (h, -h)
        )
        torch.testing.assert_close(found.scores[i], (up - down) / (2 * h), rtol=1e-6, atol=1e-9)
    assert found.scores.abs().min() > 1e-4
    # For this model, logits are linear in the parameters: the Gauss-Newton matrix is the Hessian.
    gauss_newton = ggn(
        lambda p: (x @ p["weight"] + p["bias"], labels), SoftmaxCrossEntropy(), optimum
    )
    again = influence(gauss_newton, query, head_loss, optimum, x, labels, damping=0.1, tol=1e-12)
    torch.testing.assert_close(again.scores, found.scores, rtol=1e-8, atol=1e-12)


def test_influence_takes_a_batch_without_examples() -> None:
    x = torch.tensor(2.0)
    found = influence(lambda v: v, lambda p: p, lambda p, x: p * x, x, torch.ones(0))
    assert found.scores.shape == (0,)


class Run(NamedTuple):
    """A training run of which a query is asked."""

    step: Callable[..., Tree]
    query: Callable[[Tree], Tensor]
    state: Tree
    batches: list[tuple[Tensor, Tensor]]  # numbers of examples, and their ids
    examples: int

    def weights(self) -> Tensor:
        return torch.ones(self.examples, dtype=torch.float64)

    def final(self, weights: Tensor) -> Tensor:
        """Train plainly, and ask."""
        state = self.state
        for batch in self.batches:
            state = self.step(state, weights, *batch)
        return self.query(state)


def gpt2_losses(params: Tree, ids: Tensor, keys: Tensor | None) -> Tensor:
    logits = vmap(lambda row, key: gpt2.apply(params, row[:-1], key=key)[0])(ids, keys)
    return F.cross_entropy(logits.mT, ids[:, 1:], reduction="none").mean(-1)


def bert_losses(params: Tree, ids: Tensor, keys: Tensor | None) -> Tensor:
    """Token types are all 0: a row of their table is never used, and its moments are 0."""
    logits = vmap(lambda row, key: bert.masked_lm(params, row, key=key))(ids, keys)
    return F.cross_entropy(logits.mT, ids.roll(1, 1), reduction="none").mean(-1)


def transfo_xl_losses(params: Tree, ids: Tensor, keys: Tensor | None) -> Tensor:
    return vmap(
        lambda row, key: transfo_xl.negative_log_likelihood(params, row[:-1], row[1:], key=key)[
            0
        ].mean()
    )(ids, keys)


MODELS: dict[str, tuple[Any, Any, Any, Any]] = {
    "gpt2, adamw": (gpt2, GPT2, gpt2_losses, train.adamw),
    "bert, bert_adam": (bert, BERT, bert_losses, train.bert_adam),
    "transfo_xl, openai_adam": (transfo_xl, TRANSFO_XL, transfo_xl_losses, train.openai_adam),
}


def make_run(name: str, steps: int = 5) -> Run:
    """Make a run of a tiny model: two examples a step, dropout on, each example seen repeatedly."""
    module, config, losses, optimizer = MODELS[name]
    heads = ("masked_lm",) if module is bert else ()
    params = tree.cast(module.init(config, KEYS[0], heads=heads), torch.float64)
    ids = (random.uniform(KEYS[1], (B, 5)) * 7).long()

    def loss(params: Tree, ids: Tensor, weights: Tensor, key: Tensor) -> Tensor:
        return (weights * losses(params, ids, random.split(key, len(ids)))).mean()

    step = train.train_step(loss, optimizer(1e-2))
    state = train.init_state(params, optimizer(1e-2), KEYS[2])
    order = [torch.tensor([i % B, (3 * i + 1) % B]) for i in range(steps)]
    asked = (random.uniform(KEYS[3], (2, 5)) * 7).long()

    def query(state: Tree) -> Tensor:
        module_losses = losses
        return module_losses(state.params, asked, random.split(KEYS[4], 2)).mean()

    return Run(
        lambda state, weights, which, rows: step(state, rows, weights[which])[0],
        query,
        state,
        [(which, ids[which]) for which in order],
        B,
    )


@pytest.mark.parametrize("name", MODELS)
def test_derivatives_through_training_are_differences(name: str) -> None:
    run = make_run(name)
    ones = run.weights()
    found = attribute(run.step, run.query, run.state, ones, run.batches)
    assert torch.equal(found.value, run.final(ones))
    h = 1e-5
    for i in (0, 1, 4):
        move = torch.zeros_like(ones).index_fill(0, torch.tensor(i), h)
        difference = (run.final(ones + move) - run.final(ones - move)) / (2 * h)
        torch.testing.assert_close(found.weights[i], difference, rtol=1e-6, atol=1e-9)
    assert found.weights.abs().max() > 1e-3


@pytest.mark.parametrize("every", [1, 2, 5, 9])
def test_where_states_are_kept_changes_no_bit(every: int) -> None:
    run = make_run("gpt2, adamw")
    wanted = attribute(run.step, run.query, run.state, run.weights(), run.batches)
    found = attribute(run.step, run.query, run.state, run.weights(), run.batches, every=every)
    same(found, wanted)


def same(found: Attribution, wanted: Attribution) -> None:
    for a, b in zip(tree.leaves(found), tree.leaves(wanted), strict=True):
        assert torch.equal(a, b)


class Files(dict[int, Any]):
    """States on disk, in the files of training runs."""

    def __init__(self, folder: Path, like: Tree):
        super().__init__()
        self.folder, self.like = folder, like

    def __setitem__(self, step: int, state: Tree) -> None:
        train.save_state(state, self.folder / f"{step}.safetensors")

    def __getitem__(self, step: int) -> Tree:
        return train.load_state(self.folder / f"{step}.safetensors", self.like)


def test_states_may_be_kept_on_disk(tmp_path: Path) -> None:
    run = make_run("gpt2, adamw")
    wanted = attribute(run.step, run.query, run.state, run.weights(), run.batches)
    store = Files(tmp_path, run.state)
    found = attribute(
        run.step, run.query, run.state, run.weights(), run.batches, every=2, store=store
    )
    same(found, wanted)
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["0", "2", "4"]


def test_the_start_has_derivatives_too() -> None:
    run = make_run("gpt2, adamw", steps=2)
    found = attribute(run.step, run.query, run.state, run.weights(), run.batches)

    def final(scale: Tensor) -> Tensor:
        params = {**run.state.params, "norm": {**run.state.params["norm"], "scale": scale}}
        return run._replace(state=run.state._replace(params=params)).final(run.weights())

    scale = run.state.params["norm"]["scale"]
    torch.testing.assert_close(found.start.params["norm"]["scale"], grad(final)(scale))
    again, _ = tree.partition(run.state, lambda _, leaf: leaf.is_floating_point())
    assert [n for n, _ in tree.named_leaves(found.start)] == [
        n for n, _ in tree.named_leaves(again)
    ]


def test_learning_rates_are_weights_like_others() -> None:
    """Of any tree that a step reads: here a rate for each step of gradient descent."""
    target = torch.tensor([1.0, -2.0], dtype=torch.float64)

    def step(x: Tensor, rates: Tree, i: int) -> Tensor:
        return x - rates["rate"][i] * (x - target)

    rates = {"rate": torch.tensor([0.1, 0.5, 0.2], dtype=torch.float64)}
    start = torch.zeros(2, dtype=torch.float64)
    found = attribute(step, lambda x: x.sum(), start, rates, [(0,), (1,), (2,)])
    kept = 1 - rates["rate"]
    wanted = target.sum() * kept.prod() / kept  # x = target (1 - prod(kept))
    torch.testing.assert_close(found.weights["rate"], wanted)
    torch.testing.assert_close(found.start, kept.prod().expand(2))


def test_without_a_step_the_query_alone_is_differentiated() -> None:
    x = torch.tensor(3.0)
    found = attribute(lambda x, w: x * w, torch.square, x, torch.ones(()), [])
    assert found == Attribution(torch.tensor(9.0), torch.tensor(0.0), torch.tensor(6.0), x)


def test_memory_grows_with_the_square_root_of_the_steps() -> None:
    """In states: 2 sqrt(N) of them and what one step needs, where keeping all would be N."""
    size = 100_000
    start, scale = torch.ones(size), torch.ones(())

    def step(x: Tensor, scale: Tensor) -> Tensor:
        return x - 0.1 * scale * x.sin()

    def states(steps: int) -> float:
        run: list[tuple[Any, ...]] = [()] * steps
        peak = peak_bytes(lambda: attribute(step, lambda x: x.sum(), start, scale, run))
        return peak / (4 * size)

    for steps in (16, 64, 256):
        assert states(steps) <= 2 * steps**0.5 + 8
    assert states(256) > 16  # the states are counted


def test_changes_no_argument_and_names_what_is_wrong() -> None:
    run = make_run("gpt2, adamw", steps=2)
    leaves = tree.leaves((run.state, run.batches))
    versions = [leaf._version for leaf in leaves]
    attribute(run.step, run.query, run.state, run.weights(), run.batches)
    assert [leaf._version for leaf in leaves] == versions
    assert not any(leaf.requires_grad for leaf in leaves)
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        attribute(run.step, run.query, run.state, run.weights(), run.batches, every=0)
    with pytest.raises(ValueError, match="weights must be floating-point"):
        attribute(run.step, run.query, run.state, torch.ones(2).long(), run.batches)


def test_a_step_that_is_not_pure_is_an_error() -> None:
    start, ones = torch.ones(50), torch.ones(())

    def in_place(x: Tensor, scale: Tensor) -> Tensor:
        return x.sub_(0.1 * x.detach())

    def global_dropout(x: Tensor, scale: Tensor) -> Tensor:
        return x - 0.1 * scale * F.dropout(x, 0.5)

    with pytest.raises(ValueError, match="changed its state in place.* donate=True"):
        attribute(in_place, torch.sum, start, ones, [(), ()])
    with torch.random.fork_rng(), pytest.raises(ValueError, match="is not a pure function"):
        torch.manual_seed(0)
        attribute(global_dropout, torch.sum, torch.ones(50), ones, [(), (), ()])
