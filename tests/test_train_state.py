"""The state of a run: a step is a pure function of it, and its file goes on with it bit for bit."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.func import grad, vmap

from fnlm import random, tree
from fnlm.train import (
    CarryState,
    Metrics,
    Optimizer,
    Skipped,
    TrainState,
    adamw,
    bert_adam,
    carry_step,
    init_state,
    load_state,
    save_state,
    train_step,
)
from fnlm.tree import Tree


@tree.register_constant
@dataclass(frozen=True)
class Config:
    keep: float = 0.8


def make_params(seed: int = 0) -> Tree:
    keys = random.split(random.key(seed), 3)
    return {
        "config": Config(),
        "layers": (
            {"weight": random.normal(keys[0], (3, 5)).T.contiguous().T, "bias": torch.zeros(5)},
            {"weight": random.normal(keys[1], (5, 2))},
        ),
    }


def make_batch(i: int, rows: int = 4) -> tuple[Tensor, Tensor]:
    keys = random.split(random.fold_in(random.key(77), i), 2)
    return random.normal(keys[0], (rows, 3)), random.normal(keys[1], (rows, 2))


def loss(params: Tree, x: Tensor, y: Tensor, *, key: Tensor) -> Tensor:
    """The squared error of two layers with dropout in between."""
    first, second = params["layers"]
    hidden = torch.tanh(x @ first["weight"] + first["bias"])
    hidden = hidden * random.bernoulli(key, params["config"].keep, hidden.shape)
    return ((hidden @ second["weight"] - y) ** 2).mean()


def without_key(params: Tree, x: Tensor, y: Tensor, *, key: Tensor) -> Tensor:
    del key  # nothing random here
    return loss(params, x, y, key=random.key(0))


def optimizer() -> Optimizer:
    return bert_adam(0.05, warmup=0.1, t_total=40)


def assert_bitwise(a: Tree, b: Tree) -> None:
    assert tree.structure(a) == tree.structure(b)
    for (path, x), y in zip(tree.named_leaves(a), tree.leaves(b), strict=True):
        assert torch.equal(x, y) and x.dtype == y.dtype and x.stride() == y.stride(), path


def run(state: TrainState, steps: range, *, donate: bool = False) -> TrainState:
    step = train_step(loss, optimizer(), donate=donate)
    for i in steps:
        state, _ = step(state, *make_batch(i))
    return state


def test_a_step_is_gradient_update_and_count() -> None:
    params, key, batch = make_params(), random.key(5), make_batch(0)
    opt = adamw(0.1)
    state, metrics = train_step(loss, opt)(init_state(params, opt, key), *batch)
    step_key = random.fold_in(key, 0)
    grads = grad(lambda p: loss(p, *batch, key=step_key))(params)
    expected, opt_state = opt.update(grads, opt.init(params), params)
    zero = torch.tensor(0)
    assert_bitwise(
        state,
        TrainState(
            expected, opt_state, key, torch.tensor(1), (), Skipped(zero, zero, zero, zero - 1)
        ),
    )
    assert isinstance(metrics, Metrics)
    torch.testing.assert_close(metrics.loss, loss(params, *batch, key=step_key))
    torch.testing.assert_close(metrics.gradient_norm, tree.norm(grads))
    assert metrics.loss.shape == metrics.gradient_norm.shape == ()


def test_every_step_draws_other_numbers() -> None:
    """With a rate of 0 only the key of the dropout changes from step to step."""
    opt = adamw(0.0)
    step, state = train_step(loss, opt), init_state(make_params(), opt, random.key(5))
    values = set()
    for _ in range(6):
        state, metrics = step(state, *make_batch(0))
        values.add(metrics.loss.item())
    assert len(values) > 3


def test_a_step_changes_no_argument() -> None:
    state, batch = (
        run(init_state(make_params(), optimizer(), random.key(5)), range(2)),
        make_batch(9),
    )
    before = tree.map(lambda x: torch.empty_like(x).copy_(x), state)
    versions = [leaf._version for leaf in tree.leaves((state, batch))]
    train_step(loss, optimizer())(state, *batch)
    assert [leaf._version for leaf in tree.leaves((state, batch))] == versions
    assert_bitwise(state, before)


def test_a_donated_run_equals_the_pure_one_in_place() -> None:
    pure = run(init_state(make_params(), optimizer(), random.key(5)), range(10))
    donated = init_state(make_params(), optimizer(), random.key(5))
    places = [leaf.data_ptr() for leaf in tree.leaves((donated.params, donated.opt_state))]
    donated = run(donated, range(10), donate=True)
    assert [x.data_ptr() for x in tree.leaves((donated.params, donated.opt_state))] == places
    for a, b in zip(tree.leaves(donated), tree.leaves(pure), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_training_learns() -> None:
    opt = adamw(0.02, weight_decay=0.0)
    step, state = train_step(without_key, opt), init_state(make_params(), opt, random.key(5))
    losses = []
    for _ in range(100):
        state, metrics = step(state, *make_batch(0))
        losses.append(metrics.loss.item())
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_accumulation_equals_one_batch(parts: int) -> None:
    opt, batch = adamw(0.1), make_batch(0, rows=6)
    state = init_state(make_params(), opt, random.key(5))
    at_once, metrics = train_step(without_key_rows, opt)(state, *batch)
    in_parts, part_metrics = train_step(without_key_rows, opt, accumulate=parts)(state, *batch)
    for a, b in zip(
        tree.leaves((in_parts, part_metrics)), tree.leaves((at_once, metrics)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def without_key_rows(params: Tree, x: Tensor, y: Tensor, *, key: Tensor) -> Tensor:
    del key  # nothing random here, whatever the number of rows
    first, second = params["layers"]
    return ((torch.tanh(x @ first["weight"] + first["bias"]) @ second["weight"] - y) ** 2).mean()


def test_parts_draw_different_numbers() -> None:
    """Two equal parts would repeat the dropout of the first, if they had one key."""
    opt, (x, y) = adamw(0.1), make_batch(0)
    state = init_state(make_params(), opt, random.key(5))
    _, once = train_step(loss, opt, accumulate=1)(state, x, y)
    _, twice = train_step(loss, opt, accumulate=2)(state, torch.cat([x, x]), torch.cat([y, y]))
    keys = [random.fold_in(random.fold_in(random.key(5), 0), i) for i in range(2)]
    expected = torch.stack([loss(make_params(), x, y, key=key) for key in keys])
    assert expected[0] != expected[1]
    torch.testing.assert_close(twice.loss, expected.mean())
    assert once.loss != twice.loss


def test_an_ensemble_trains_under_vmap() -> None:
    """One vmapped step over three states equals three steps."""
    step = train_step(loss, optimizer())
    states = [
        run(init_state(make_params(i), optimizer(), random.key(i)), range(5)) for i in range(3)
    ]
    batches = [make_batch(40 + i) for i in range(3)]
    together = vmap(step)(tree.stack(states), *tree.stack(batches))
    alone = tree.stack([step(state, *batch) for state, batch in zip(states, batches, strict=True)])
    for a, b in zip(tree.leaves(together), tree.leaves(alone), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("donate", [False, True], ids=["pure", "donated"])
def test_a_resumed_run_equals_the_uninterrupted_one_bitwise(donate: bool, tmp_path: Path) -> None:
    def start(seed: int) -> TrainState:
        return init_state(make_params(seed), optimizer(), random.key(seed))

    whole = run(start(0), range(12), donate=donate)
    save_state(run(start(0), range(7), donate=donate), tmp_path / "state.safetensors")
    resumed = load_state(tmp_path / "state.safetensors", like=start(1))
    assert resumed.step == 7
    assert_bitwise(run(resumed, range(7, 12), donate=donate), whole)


def test_the_file_is_plain_safetensors_with_the_names_of_the_tree(tmp_path: Path) -> None:
    state = init_state(make_params(), optimizer(), random.key(5))
    save_state(state, tmp_path / "state.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["state.safetensors"]
    tensors = load_file(tmp_path / "state.safetensors")
    assert tensors.keys() == dict(tree.named_leaves(state)).keys()
    assert {"params.layers.0.weight", "opt_state.step", "key", "step"} < tensors.keys()
    assert torch.equal(tensors["params.layers.0.weight"], state.params["layers"][0]["weight"])


def test_leaves_may_share_memory_and_be_of_any_type(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    state = {
        "all": whole,
        "row": whole[1],
        "column": whole[:, 2],
        "half": whole.bfloat16(),
        "flag": torch.tensor(True),
        "key": random.key(2**63 - 1),
        "empty": torch.zeros(0, 3),
    }
    save_state(state, tmp_path / "state")
    assert_bitwise(
        load_state(tmp_path / "state", like=state), {**state, "column": whole[:, 2].clone()}
    )


def damaged(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    changed = dict(tensors)
    if name == "missing":
        del changed["params.layers.0.bias"]
    elif name == "unexpected":
        changed["params.layers.2.bias"] = torch.zeros(2)
    elif name == "shape":
        changed["params.layers.0.bias"] = torch.zeros(6)
    else:
        changed["params.layers.0.bias"] = torch.zeros(5, dtype=torch.float64)
    return changed


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", r"missing params.layers.0.bias"),
        ("unexpected", r"unexpected params.layers.2.bias"),
        ("shape", r"mismatched params.layers.0.bias: \(6,\) .* in the file, \(5,\)"),
        ("dtype", r"mismatched params.layers.0.bias: \(5,\) torch.float64 in the file"),
    ],
)
def test_loading_is_strict(damage: str, message: str, tmp_path: Path) -> None:
    state = init_state(make_params(), optimizer(), random.key(5))
    save_state(state, tmp_path / "good")
    save_state(damaged(damage, load_file(tmp_path / "good")), tmp_path / "bad")
    with pytest.raises(ValueError, match=message):
        load_state(tmp_path / "bad", like=state)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no state at .*absent"):
        load_state(tmp_path / "absent", like={})


def test_a_file_that_was_cut_off(tmp_path: Path) -> None:
    save_state({"w": torch.ones(100)}, tmp_path / "state")
    (tmp_path / "cut").write_bytes((tmp_path / "state").read_bytes()[:-50])
    with pytest.raises(ValueError, match="cut is not a whole safetensors file"):
        load_state(tmp_path / "cut", like={"w": torch.ones(100)})


def test_errors_of_accumulation_name_argument_and_shape() -> None:
    state = init_state(make_params(), optimizer(), random.key(5))
    with pytest.raises(ValueError, match="accumulate must be at least 1, got 0"):
        train_step(loss, optimizer(), accumulate=0)
    with pytest.raises(ValueError, match=r"accumulate=3 must divide .* batch.0, .* \(4, 3\)"):
        train_step(loss, optimizer(), accumulate=3)(state, *make_batch(0))


def test_what_a_step_carries_is_what_the_next_one_reads() -> None:
    def loss(params: Tree, carry: Tensor, x: Tensor, *, key: Tensor) -> tuple[Tensor, Tensor]:
        made = params["w"] * x
        return ((made - carry) ** 2 + made * random.normal(key, x.shape)).sum(), made

    optimizer, carry = adamw(0.1), torch.zeros(3, 2)
    state = init_state({"w": torch.tensor([1.0, -2.0])}, optimizer, random.key(7))
    run, step = CarryState(state, carry), carry_step(loss, optimizer)
    for x in torch.randn(4, 3, 2):
        alone = train_step(lambda p, x, key, carry=carry: loss(p, carry, x, key=key)[0], optimizer)
        carry = state.params["w"] * x
        state, wanted = alone(state, x)
        run, metrics = step(run, x)
        pairs = zip(tree.leaves((run, metrics)), tree.leaves((state, carry, wanted)), strict=True)
        assert all(ours.equal(theirs) for ours, theirs in pairs)
        assert not run.carry.requires_grad
    assert int(run.step) == 4
