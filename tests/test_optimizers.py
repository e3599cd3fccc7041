"""Optimizers: equal to their references step by step, and what holds for every one of them."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import ppb
from torch import Tensor
from torch.func import grad, jvp, vmap

from fnlm import random, tree
from fnlm.train import (
    AdamState,
    Optimizer,
    adamw,
    add_decayed_weights,
    bert_adam,
    chain,
    clip_by_global_norm,
    except_bias_and_norm,
    load_state,
    openai_adam,
    save_state,
    scale_by_schedule,
    schedules,
)
from fnlm.tree import Tree

STEPS, T_TOTAL = 30, 17  # the last 13 steps lie beyond the end of the schedule


@tree.register_constant
@dataclass(frozen=True)
class Config:
    width: int = 3


def make_params(seed: int = 0, dtype: torch.dtype = torch.float32) -> Tree:
    """A small tree: a config, a tuple of layers, a matrix in column order, a leaf without axes."""
    keys = random.split(random.key(seed), 6)
    normal = partial(random.normal, dtype=dtype)
    return {
        "config": Config(),
        "blocks": (
            {"weight": normal(keys[0], (5, 3)), "bias": normal(keys[1], (3,))},
            {"weight": normal(keys[2], (3, 7)).T.contiguous().T, "bias": normal(keys[3], (7,))},
        ),
        "norm": {"scale": normal(keys[4], (1,)), "bias": normal(keys[5], (1,))[0]},
    }


@lru_cache
def all_gradients(dtype: torch.dtype) -> list[Tree]:
    """Gradients of norms from 0.01 to 10, so that some are clipped and some are not."""
    scales = [10 ** (3 * ((i * 7) % 10) / 9 - 2) for i in range(STEPS)]
    return [
        tree.map(lambda x, s=scale: x * s, make_params(1000 + i, dtype))
        for i, scale in enumerate(scales)
    ]


def gradients(steps: int = STEPS, dtype: torch.dtype = torch.float32) -> Iterator[Tree]:
    """Yield fresh copies, which a donated update may consume."""
    return (copy(g) for g in all_gradients(dtype)[:steps])


def copy(x: Tree) -> Tree:
    return tree.map(lambda leaf: torch.empty_like(leaf).copy_(leaf), x)


def run(optimizer: Optimizer, params: Tree, grads: Iterator[Tree], *, donate: bool = False) -> Tree:
    state = optimizer.init(params)
    for g in grads:
        params, state = optimizer.update(g, state, params, donate=donate)
    return params, state


def run_reference(
    make: Callable[[Any], torch.optim.Optimizer],
    grads: Iterator[Tree],
    dtype: torch.dtype,
    before_step: Callable[[list[Tensor]], object] = lambda leaves: None,
) -> Tree:
    """The parameters after steps of an optimizer of the mutating kind, `make(named parameters)`."""
    params = make_params(dtype=dtype)
    named = [(path, torch.nn.Parameter(leaf)) for path, leaf in tree.named_leaves(params)]
    optimizer = make(named)
    for g in grads:
        for (_, p), leaf in zip(named, tree.leaves(g), strict=True):
            p.grad = leaf.clone()
        before_step([p for _, p in named])
        optimizer.step()
    return tree.unflatten(tree.structure(params), [p.detach() for _, p in named])


def assert_equal_trees(a: Tree, b: Tree, tolerance: float) -> None:
    """Compare leaf by leaf; the tolerance is relative and absolute, as parameters are about 1."""
    assert tree.structure(a) == tree.structure(b)
    for (path, x), y in zip(tree.named_leaves(a), tree.leaves(b), strict=True):
        torch.testing.assert_close(
            x, y, rtol=tolerance, atol=tolerance, msg=partial("{}: {}".format, path)
        )


PEER_SCHEDULES: dict[str, tuple[Callable[..., schedules.Schedule], str]] = {
    "none": (schedules.constant, "ConstantLR"),
    "warmup_constant": (schedules.warmup_constant, "WarmupConstantSchedule"),
    "warmup_linear": (schedules.warmup_linear, "WarmupLinearSchedule"),
    "warmup_cosine": (schedules.warmup_cosine, "WarmupCosineSchedule"),
    "hard_restarts": (
        partial(schedules.warmup_cosine_with_hard_restarts, cycles=3.0),
        "WarmupCosineWithHardRestartsSchedule",
    ),
    "warmup_restarts": (
        partial(schedules.warmup_cosine_with_warmup_restarts, cycles=2.0),
        "WarmupCosineWithWarmupRestartsSchedule",
    ),
}
CYCLES = {"hard_restarts": {"cycles": 3.0}, "warmup_restarts": {"cycles": 2.0}}

# In float64 the two agree to the last digits. In float32 each step may differ by the last bit of a
# parameter, about 1e-7 (a test below), and thirty of them by 1e-6.
each_precision = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=["64", "32"]
)


def peer_schedule(name: str, warmup: float) -> Any:
    cls = getattr(ppb().optimization, PEER_SCHEDULES[name][1])
    return cls(warmup=warmup, t_total=T_TOTAL, **CYCLES.get(name, {}))


@each_precision
@pytest.mark.parametrize("donate", [False, True], ids=["pure", "donated"])
@pytest.mark.parametrize("name", PEER_SCHEDULES)
def test_bert_adam_equals_pytorch_pretrained_bert(
    name: str, donate: bool, dtype: torch.dtype, tolerance: float
) -> None:
    def make(named: list[tuple[str, Tensor]]) -> Any:
        groups = [
            {"params": [p for n, p in named if except_bias_and_norm(n, p)], "weight_decay": 0.1},
            {"params": [p for n, p in named if not except_bias_and_norm(n, p)], "weight_decay": 0},
        ]
        return ppb().optimization.BertAdam(groups, lr=0.01, schedule=peer_schedule(name, 0.2))

    optimizer = bert_adam(
        0.01,
        warmup=0.2,
        t_total=T_TOTAL,
        schedule=PEER_SCHEDULES[name][0],
        weight_decay=0.1,
        decay=except_bias_and_norm,
    )
    params, _ = run(optimizer, make_params(dtype=dtype), gradients(dtype=dtype), donate=donate)
    assert_equal_trees(params, run_reference(make, gradients(dtype=dtype), dtype), tolerance)


@each_precision
@pytest.mark.parametrize("donate", [False, True], ids=["pure", "donated"])
@pytest.mark.parametrize("vector_l2", [False, True])
@pytest.mark.parametrize("name", PEER_SCHEDULES)
def test_openai_adam_equals_pytorch_pretrained_bert(
    name: str, vector_l2: bool, donate: bool, dtype: torch.dtype, tolerance: float
) -> None:
    kwargs: dict[str, Any] = {"weight_decay": 0.1, "vector_l2": vector_l2, "max_grad_norm": 0.5}

    def make(named: list[tuple[str, Tensor]]) -> Any:
        leaves = [p for _, p in named]
        peer = ppb().optimization_openai.OpenAIAdam
        return peer(leaves, lr=0.01, schedule=peer_schedule(name, 0.2), **kwargs)

    schedule = PEER_SCHEDULES[name][0]
    optimizer = openai_adam(0.01, warmup=0.2, t_total=T_TOTAL, schedule=schedule, **kwargs)
    params, _ = run(optimizer, make_params(dtype=dtype), gradients(dtype=dtype), donate=donate)
    assert_equal_trees(params, run_reference(make, gradients(dtype=dtype), dtype), tolerance)


@pytest.mark.parametrize("which", ["BertAdam", "OpenAIAdam"])
def test_defaults_are_those_of_pytorch_pretrained_bert(which: str) -> None:
    """Same numbers from nothing but a learning rate, each step to 1e-7 of a parameter of size 1."""
    peer, ours = {
        "BertAdam": (ppb().optimization.BertAdam, bert_adam(0.01)),
        "OpenAIAdam": (ppb().optimization_openai.OpenAIAdam, openai_adam(0.01)),
    }[which]
    dtype = torch.float64
    for steps in (1, 2, 3):
        params, _ = run(ours, make_params(dtype=dtype), gradients(steps, dtype))
        reference = run_reference(
            lambda named: peer([p for _, p in named], lr=0.01), gradients(steps, dtype), dtype
        )
        assert_equal_trees(params, reference, 1e-14)


@pytest.mark.parametrize("donate", [False, True], ids=["pure", "donated"])
@pytest.mark.parametrize("which", ["BertAdam", "OpenAIAdam"])
def test_single_steps_in_float32_equal_pytorch_pretrained_bert_to_1e_7(
    which: str, donate: bool
) -> None:
    """From one state, one step: no rounding of earlier steps to add up."""
    peers: dict[str, tuple[Any, Any, tuple[str, str]]] = {
        "BertAdam": (bert_adam, ppb().optimization.BertAdam, ("next_m", "next_v")),
        "OpenAIAdam": (
            openai_adam,
            ppb().optimization_openai.OpenAIAdam,
            ("exp_avg", "exp_avg_sq"),
        ),
    }
    make, cls, moment_names = peers[which]
    for steps in range(1, 12):
        optimizer = make(0.01, warmup=0.2, t_total=T_TOTAL)
        grads = list(gradients(steps))
        params, state = run(optimizer, make_params(), iter(grads[:-1]))
        leaves = [torch.nn.Parameter(leaf.clone()) for leaf in tree.leaves(params)]
        peer = cls(leaves, lr=0.01, warmup=0.2, t_total=T_TOTAL)
        moments = next(link for link in state.links if isinstance(link, AdamState))
        for p, g, *pair in zip(
            leaves,
            *(map(tree.leaves, (grads[-1], moments.mu, moments.nu))),
            strict=True,
        ):
            p.grad = g.clone()
            history = {n: m.clone() for n, m in zip(moment_names, pair, strict=True)}
            peer.state[p] = {"step": steps - 1, **history}
        peer.step()
        params, _ = optimizer.update(copy(grads[-1]), state, copy(params), donate=donate)
        expected = tree.unflatten(tree.structure(params), [p.detach() for p in leaves])
        for x, y in zip(tree.leaves(params), tree.leaves(expected), strict=True):
            torch.testing.assert_close(x, y, rtol=1.2e-7, atol=1e-7)  # one bit of a float32


@each_precision
@pytest.mark.parametrize("donate", [False, True], ids=["pure", "donated"])
@pytest.mark.parametrize("max_grad_norm", [-1, 1.0])
def test_adamw_equals_torch(
    max_grad_norm: float, donate: bool, dtype: torch.dtype, tolerance: float
) -> None:
    def make(named: list[tuple[str, Tensor]]) -> Any:
        return torch.optim.AdamW([p for _, p in named], lr=0.01, weight_decay=0.1)

    def clip(leaves: list[Tensor]) -> None:
        if max_grad_norm > 0:
            torch.nn.utils.clip_grad_norm_(leaves, max_grad_norm)

    optimizer = adamw(0.01, weight_decay=0.1, max_grad_norm=max_grad_norm)
    params, _ = run(optimizer, make_params(dtype=dtype), gradients(dtype=dtype), donate=donate)
    reference = run_reference(make, gradients(dtype=dtype), dtype, before_step=clip)
    assert_equal_trees(params, reference, tolerance)


def test_adamw_takes_a_schedule_as_rate() -> None:
    schedule = schedules.warmup_cosine(0.2, T_TOTAL)

    def make(named: list[tuple[str, Tensor]]) -> Any:
        inner = torch.optim.AdamW([p for _, p in named], lr=0.01, weight_decay=0.1)
        scheduler = torch.optim.lr_scheduler.LambdaLR(inner, schedule)

        class Both:
            def step(self) -> None:
                inner.step()
                scheduler.step()

        return Both()

    optimizer = adamw(lambda step: 0.01 * schedule(step), weight_decay=0.1)
    dtype = torch.float64
    params, _ = run(optimizer, make_params(dtype=dtype), gradients(dtype=dtype))
    assert_equal_trees(params, run_reference(make, gradients(dtype=dtype), dtype), 1e-12)


# The table of optimizers: a new one adds a row, and all properties below hold for it.

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "bert_adam": partial(bert_adam, warmup=0.2, t_total=4 * T_TOTAL, max_grad_norm=0.5),
    "openai_adam": partial(openai_adam, weight_decay=0.1, max_grad_norm=0.5),
    "adamw": partial(adamw, max_grad_norm=0.5),
    "sgd": lambda lr: chain(
        clip_by_global_norm(5.0), add_decayed_weights(0.01), scale_by_schedule(lambda step: lr)
    ),
}
each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


@each_optimizer
@pytest.mark.parametrize("donate", [False, True], ids=["pure", "donated"])
def test_finds_the_minimum_of_a_quadratic(name: str, donate: bool) -> None:
    target = make_params(7)

    def loss(params: Tree) -> Tensor:
        return tree.norm(tree.map(torch.sub, params, target)) ** 2

    optimizer, params = OPTIMIZERS[name](0.02), make_params()
    state, before = optimizer.init(params), loss(params)
    for _ in range(200):
        params, state = optimizer.update(grad(loss)(params), state, params, donate=donate)
    assert loss(params) < 0.1 * before


@each_optimizer
def test_updates_by_the_kernel_equal_the_transformations(name: str) -> None:
    """Under vmap, an update is the chain of transformations; outside, it is the fused kernel's."""
    optimizer = OPTIMIZERS[name](0.01)
    params = make_params()
    state = optimizer.init(params)
    many = tree.stack([params]), tree.stack([state])
    for g in gradients():
        given = (g, state, params)
        kept = copy(given)
        params, state = optimizer.update(*given)
        assert_equal_trees(given, kept, 0.0)  # nothing is written to, gradients included
        many = vmap(lambda g, p, s: optimizer.update(g, s, p))(tree.stack([g]), *many)
    alone = tree.map(lambda x: x[0], many)
    assert_equal_trees((params, state), alone, 1e-6)


@pytest.mark.parametrize("by", ["grads", "params", "lr"])
def test_updates_that_autograd_tracks_are_differentiable(by: str) -> None:
    grads, params = {"w": torch.tensor([0.5, -2.0])}, {"w": torch.ones(2)}
    lr = torch.tensor(0.1)
    leaf = {"grads": grads["w"], "params": params["w"], "lr": lr}[by].requires_grad_()
    optimizer = bert_adam(lr, max_grad_norm=1.0)
    new, _ = optimizer.update(grads, optimizer.init({"w": torch.ones(2)}), params)
    assert torch.autograd.grad(new["w"].sum(), leaf)[0].abs().sum() > 0


@each_optimizer
def test_donated_equals_pure_and_uses_the_same_memory(name: str) -> None:
    optimizer = OPTIMIZERS[name](0.01)
    params, state = run(optimizer, make_params(), gradients())
    donated, donated_state = make_params(), optimizer.init(make_params())
    for g in gradients():
        before = [leaf.data_ptr() for leaf in tree.leaves((donated, donated_state))]
        donated, donated_state = optimizer.update(g, donated_state, donated, donate=True)
        assert [leaf.data_ptr() for leaf in tree.leaves((donated, donated_state))] == before
    assert_equal_trees(donated, params, 1e-6)
    assert_equal_trees(donated_state, state, 1e-6)


@each_optimizer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_keeps_structure_shapes_types_and_layout(name: str, dtype: torch.dtype) -> None:
    optimizer = OPTIMIZERS[name](0.01)
    params = make_params(dtype=dtype)
    state = optimizer.init(params)
    new_params, new_state = optimizer.update(next(gradients(dtype=dtype)), state, params)
    assert tree.structure((new_params, new_state)) == tree.structure((params, state))
    for a, b in zip(
        tree.leaves((params, state)), tree.leaves((new_params, new_state)), strict=True
    ):
        assert (a.shape, a.dtype, a.device, a.stride()) == (b.shape, b.dtype, b.device, b.stride())
        assert torch.isfinite(b).all()


@each_optimizer
def test_the_pure_update_changes_no_argument(name: str) -> None:
    optimizer = OPTIMIZERS[name](0.01)
    params, grads = make_params(), next(gradients())
    _, state = run(optimizer, params, gradients(3))
    arguments = (grads, state, params)
    before, versions = copy(arguments), [leaf._version for leaf in tree.leaves(arguments)]
    optimizer.update(grads, state, params)
    assert [leaf._version for leaf in tree.leaves(arguments)] == versions
    assert_equal_trees(arguments, before, 0.0)


@each_optimizer
def test_members_of_an_ensemble_have_their_own_rate(name: str) -> None:
    """One vmapped update equals a loop over members, each with its own learning rate."""
    rates = torch.tensor([0.001, 0.01, 0.1])
    members = [make_params(i) for i in range(3)]
    grads = [make_params(50 + i) for i in range(3)]
    states = [run(OPTIMIZERS[name](0.01), p, gradients(2))[1] for p in members]

    def update(rate: Any, grads: Tree, state: Any, params: Tree) -> Tree:
        return OPTIMIZERS[name](rate).update(grads, state, params)

    together = vmap(update)(rates, tree.stack(grads), tree.stack(states), tree.stack(members))
    alone = [update(*row) for row in zip(map(float, rates), grads, states, members, strict=True)]
    assert_equal_trees(together, tree.stack(alone), 1e-6)


# torch's own table of forward-mode formulas is built by a function that torch has deprecated.
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning:torch")
@each_optimizer
def test_three_steps_can_be_differentiated(name: str) -> None:
    """The derivative of the loss after 3 steps by the learning rate and by the first parameters."""
    dtype = torch.float64
    target = make_params(7, dtype)

    def after(lr: Tensor, params: Tree) -> Tensor:
        def loss(params: Tree) -> Tensor:
            return tree.norm(tree.map(torch.sub, params, target)) ** 2

        # Two steps in, the warm-up has left 0.
        state = run(OPTIMIZERS[name](0.01), make_params(dtype=dtype), gradients(2, dtype))[1]
        for _ in range(3):
            params, state = OPTIMIZERS[name](lr).update(grad(loss)(params), state, params)
        return loss(params)

    lr, h = torch.tensor(0.05, dtype=dtype), 1e-5
    params = make_params(dtype=dtype)
    by_lr, by_params = grad(after, argnums=(0, 1))(lr, params)
    expected = (after(lr + h, params) - after(lr - h, params)) / (2 * h)
    torch.testing.assert_close(by_lr, expected, rtol=1e-6, atol=1e-8)
    direction = make_params(9, dtype)
    forward = jvp(partial(after, lr), (params,), (direction,))[1]
    dot = sum(
        (a * b).sum() for a, b in zip(tree.leaves(by_params), tree.leaves(direction), strict=True)
    )
    torch.testing.assert_close(torch.as_tensor(dot), forward, rtol=1e-9, atol=1e-12)


@each_optimizer
def test_derivatives_are_finite_where_a_gradient_is_zero(name: str) -> None:
    """An embedding row that no token uses has gradient 0 at every step."""

    def after(params: Tree) -> Tensor:
        optimizer = OPTIMIZERS[name](0.01)
        state = optimizer.init(params)
        for _ in range(3):
            grads = grad(lambda p: (p["used"] ** 2).sum() + 0.0 * p["unused"].sum())(params)
            params, state = optimizer.update(grads, state, params)
        return params["used"].sum() + params["unused"].sum()

    derivative = grad(after)({"used": torch.ones(2), "unused": torch.ones(3)})
    assert all(torch.isfinite(leaf).all() for leaf in tree.leaves(derivative))
    assert (derivative["unused"] > 0.9).all()


@each_optimizer
@pytest.mark.parametrize("donate", [False, True], ids=["pure", "donated"])
def test_goes_on_bitwise_from_a_file(name: str, donate: bool, tmp_path: Path) -> None:
    optimizer = OPTIMIZERS[name](0.01)
    grads = list(gradients(8))
    whole = run(optimizer, make_params(), map(copy, grads), donate=donate)
    half = run(optimizer, make_params(), map(copy, grads[:4]), donate=donate)
    save_state(half, tmp_path / "half.safetensors")
    fresh = make_params(99)
    params, state = load_state(tmp_path / "half.safetensors", like=(fresh, optimizer.init(fresh)))
    for g in map(copy, grads[4:]):
        params, state = optimizer.update(g, state, params, donate=donate)
    for a, b in zip(tree.leaves((params, state)), tree.leaves(whole), strict=True):
        assert torch.equal(a, b)


@each_optimizer
def test_compiles_without_a_break(name: str) -> None:
    optimizer, params = OPTIMIZERS[name](0.01), make_params()
    state, grads = optimizer.init(params), next(gradients())
    compiled: Any = torch.compile(optimizer.update, fullgraph=True, backend="eager")
    assert_equal_trees(compiled(grads, state, params), optimizer.update(grads, state, params), 1e-6)


def test_donated_gradients_in_another_layout_count_as_they_read() -> None:
    """The kernel walks raw memory: a transposed gradient must not be taken for a plain one."""
    params = {"weight": random.normal(random.key(0), (4, 6))}
    grads = {"weight": random.normal(random.key(1), (6, 4)).T}
    optimizer = bert_adam(0.01)
    expected, _ = optimizer.update(grads, optimizer.init(params), params)
    donated, _ = optimizer.update(grads, optimizer.init(params), copy(params), donate=True)
    assert_equal_trees(donated, expected, 1e-6)


def test_donated_parameters_that_are_views_keep_their_neighbours() -> None:
    """A slice of a larger buffer is updated where it stands, what lies around it is not."""
    whole = torch.ones(4, 6)
    params, grads = {"weight": whole[:, 1:3]}, {"weight": torch.ones(4, 2)}
    optimizer = adamw(0.1, weight_decay=0.0)
    optimizer.update(grads, optimizer.init(params), params, donate=True)
    torch.testing.assert_close(whole[:, 1:3], torch.full((4, 2), 0.9))
    assert torch.equal(whole[:, 0], torch.ones(4)) and torch.equal(whole[:, 3:], torch.ones(4, 3))


def test_zero_rate_moves_nothing() -> None:
    """The first step of a warm-up: neither the update nor the decay acts, pure or fused."""
    for make in (bert_adam, adamw):
        optimizer = make(0.0, weight_decay=0.5)
        for donate in (False, True):
            params, state = run(optimizer, make_params(), gradients(1), donate=donate)
            assert_equal_trees(params, make_params(), 0.0)
            assert state.step == 1


def test_clip_of_zero_gradients_is_zero() -> None:
    grads = {"a": torch.zeros(3), "b": torch.zeros(())}
    for make in (partial(bert_adam, max_grad_norm=1.0), partial(adamw, max_grad_norm=1.0)):
        for donate in (False, True):
            params = {"a": torch.ones(3), "b": torch.ones(())}
            optimizer = make(0.1, weight_decay=0.0)
            new, _ = optimizer.update(grads, optimizer.init(params), copy(params), donate=donate)
            assert_equal_trees(new, params, 0.0)


def test_refuses_gradients_of_other_parameters() -> None:
    optimizer, params = adamw(0.1), {"w": torch.ones(2, 3), "b": torch.ones(3)}
    state = optimizer.init(params)
    with pytest.raises(ValueError, match=r"'w': shape \(3, 2\) against \(2, 3\)"):
        optimizer.update({"w": torch.ones(3, 2), "b": torch.ones(3)}, state, params)
    with pytest.raises(ValueError, match=r"'b': shape absent against \(3,\)"):
        optimizer.update({"w": torch.ones(2, 3)}, state, params)
    with pytest.raises(ValueError, match="different containers"):
        optimizer.update((torch.ones(2),), adamw(0.1).init([torch.ones(2)]), [torch.ones(2)])


@pytest.mark.parametrize("make", [bert_adam, openai_adam, adamw])
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"lr": -1.0}, "lr must not be negative, got -1.0"),
        ({"lr": 1.0, "b1": 1.0}, r"b1 must be in \[0, 1\), got 1.0"),
        ({"lr": 1.0, "b2": -0.1}, r"b2 must be in \[0, 1\), got -0.1"),
        ({"lr": 1.0, "eps": -1e-8}, "eps must not be negative"),
    ],
)
def test_refuses_what_has_no_meaning(
    make: Callable[..., Optimizer], kwargs: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


def test_global_norm_is_that_of_all_numbers_together() -> None:
    params = make_params()
    flat = torch.cat([leaf.reshape(-1) for leaf in tree.leaves(params)])
    torch.testing.assert_close(tree.norm(params), flat.norm(), rtol=1e-6, atol=0.0)
    assert not math.isnan(grad(tree.norm)(tree.map(torch.zeros_like, params))["norm"]["bias"])
    with pytest.raises(ValueError, match="at least one leaf"):
        tree.norm({})
