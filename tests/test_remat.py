"""Recomputation: the numbers of the plain function under every transform, and less memory."""

import random as draws
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from allocations import peak_bytes
from compositions import ORDER, TRANSFORMS, Function, compose, error, reference
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, jvp, linearize, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from fnlm import gpt2, random, taps, transforms, tree
from fnlm.layers.dropout import dropout
from fnlm.layers.norm import layer_norm
from fnlm.transforms import remat
from fnlm.tree import Tree

TOLERANCE = 1e-9
Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


@tree.register_constant
@dataclass(frozen=True)
class Settings:
    rate: float = 0.3


class State(NamedTuple):
    x: Tensor  # [T, 3]
    calls: Tensor  # int64 []


def unchanged(fn: Callable[..., Any]) -> Callable[..., Any]:
    return fn


def block(ids: Tensor, state: State, p: Tree, *, key: Tensor | None, name: str) -> dict[str, Any]:
    """A block of a model, with all kinds of arguments and results."""
    x = state.x + p["embed"][ids]
    x = layer_norm(x, p["scale"], p["bias"], eps=1e-3)
    x = dropout((x @ p["weight"]).tanh(), p["settings"].rate, key)
    return {"state": State(x + state.x, state.calls + 1), "name": name, "none": None}


def leaf(seed: int, *shape: int) -> Tensor:
    return random.normal(random.key(seed), shape, torch.float64)


PARAMS = {
    "blocks": tuple(
        {
            "embed": leaf(4 * n, 5, 3), "scale": leaf(4 * n + 1, 3), "bias": leaf(4 * n + 2, 3),
            "weight": leaf(4 * n + 3, 3, 3), "settings": Settings(),
        }
        for n in range(2)
    ),
    "table": leaf(8, 4, 3),
}  # fmt: skip
IDS = torch.tensor([[0, 4, 1, 3], [2, 2, 0, 1]])
KEYS = random.split(random.key(3), 2)


def model(wrap: Wrap, with_keys: bool = False) -> Function:
    def h(p: Tree, i: Tensor) -> Tensor:
        ids, key = (x.index_select(0, i[None])[0] for x in (IDS, KEYS))
        state = State(p["table"], torch.tensor(0))
        for number, weights in enumerate(p["blocks"]):
            own = random.fold_in(key, number) if with_keys else None
            result = wrap(block)(ids, state, weights, key=own, name="block")
            assert (result["name"], result["none"]) == ("block", None)
            state = result["state"]
        return (state.x.sin() * state.calls).square().sum()

    return h


def directions(params: Tree) -> list[Tree]:
    seeds = iter(range(100, 1000))
    return [tree.map(lambda x: leaf(next(seeds), *x.shape), params) for _ in range(3)]


ALONG = directions(PARAMS)
EXAMPLE = torch.tensor(1)


def check(names: tuple[str, ...], with_keys: bool) -> None:
    along = ALONG[-len(names) :]
    found, expected = (
        compose(model(wrap, with_keys), names, along)(PARAMS, EXAMPLE)
        for wrap in (remat, unchanged)
    )
    assert float(expected.detach().abs()) > 1e-3
    assert error(found, expected) < TOLERANCE, " of ".join(names)


INNER = [name for name in TRANSFORMS if name != "autograd"]


@pytest.mark.parametrize("outer", TRANSFORMS)
def test_pairs_of_transforms(outer: str) -> None:
    for number, inner in enumerate(INNER):
        check((outer, inner), number % 2 == 0)


@pytest.mark.parametrize("seed", range(30))
def test_triples_of_transforms(seed: int) -> None:
    draw = draws.Random(seed)
    names: tuple[str, ...] = ()
    while not 2 <= sum(ORDER.get(name, 1) for name in names) <= 3:
        names = (draw.choice(list(TRANSFORMS)), draw.choice(INNER), draw.choice(INNER))
    check(names, bool(seed % 2))


def test_plain_autograd_of_three_orders_is_its_own_reference() -> None:
    names = ("autograd", "autograd", "autograd")
    found = compose(model(remat), names, ALONG)(PARAMS, EXAMPLE)
    expected = reference(model(unchanged), ("grad", "grad", "grad"), ALONG)(PARAMS, EXAMPLE)
    assert error(found, expected) < TOLERANCE


def test_gradients_of_every_leaf_by_every_kind_of_gradient() -> None:
    for gradient in (torch.func.grad, transforms.grad):
        found, expected = (gradient(model(wrap))(PARAMS, EXAMPLE) for wrap in (remat, unchanged))
        assert error(found, expected) < TOLERANCE


def test_ensembles() -> None:
    members = tree.stack([PARAMS, tree.map(lambda x: 2 * x, PARAMS)])
    found, expected = (
        vmap(grad(model(wrap, True)), (0, None))(members, EXAMPLE) for wrap in (remat, unchanged)
    )
    assert error(found, expected) < TOLERANCE


X, W = leaf(20, 3), leaf(21, 3)
CLOSED: dict[str, Callable[[Wrap], Any]] = {
    "grad": lambda wrap: grad(lambda w: wrap(lambda x: w * x)(X).sum())(W),
    "grad, an argument too": lambda wrap: grad(lambda w: wrap(lambda x: w * x)(w * X).sum())(W),
    "jvp": lambda wrap: jvp(lambda w: wrap(lambda x: w * x)(X).sum(), (W,), (W,))[1],
    "jvp of grad": lambda wrap: jvp(
        lambda w: grad(lambda x: wrap(lambda x: w * x * x)(x).sum())(X), (W,), (W,)
    ),
    "grad of jvp": lambda wrap: grad(
        lambda w: jvp(lambda x: wrap(lambda x: w * x * x)(x).sum(), (X,), (X,))[1]
    )(W),
    "grad, jvp inside": lambda wrap: grad(
        lambda w: wrap(lambda x: jvp(lambda x: w * x * x, (x,), (x,))[1])(X).sum()
    )(W),
    "grad, grad inside": lambda wrap: grad(
        lambda w: wrap(lambda x: grad(lambda x: (w * x * x).sum())(x))(X).sum()
    )(W),
    "vmap of grad": lambda wrap: vmap(grad(lambda w: wrap(lambda x: w * x)(X).sum()))(W),
    "grad of vmap": lambda wrap: grad(
        lambda w: vmap(lambda w: wrap(lambda x: w * x)(X))(W * w).sum()
    )(W),
    "jvp of vmap": lambda wrap: jvp(
        lambda w: vmap(lambda x: wrap(lambda x: w * x)(x))(X), (W,), (W,)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CLOSED)
def test_a_tensor_closed_over_that_is_differentiated_is_an_error(name: str) -> None:
    assert any(x.any() for x in tree.leaves(CLOSED[name](unchanged)))
    with pytest.raises(ValueError, match="closes over a tensor that is being differentiated"):
        CLOSED[name](remat)


def test_a_tensor_closed_over_under_plain_autograd_and_forward_mode() -> None:
    w, x = (y.clone().requires_grad_() for y in (W, X))
    with pytest.raises(ValueError, match="give it as an argument"):
        remat(lambda x: w * x)(x)
    with torch.no_grad():
        assert remat(lambda x: w * x)(x).equal(W * X)
    # Nothing is recomputed where no argument is differentiated, and nothing is lost.
    assert torch.autograd.grad(remat(lambda x: w * x)(X).sum(), w)[0].equal(X)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(W, W)  # here the function is called as it is
        for x in (X, forward_ad.make_dual(X, W)):
            tangents = [
                forward_ad.unpack_dual(f(lambda x: dual * x)(x)).tangent for f in (remat, unchanged)
            ]
            assert torch.equal(*tangents)


def test_tensors_closed_over_may_be_constants() -> None:
    def by_rows(wrap: Wrap) -> Any:
        return vmap(lambda w: grad(lambda x: wrap(lambda x: (w * x).sin())(x).prod())(X))(W)

    def total(wrap: Wrap) -> Any:
        return grad(lambda x: vmap(lambda w: wrap(lambda x: (w * x).sin())(x))(W).prod())(X)

    for case in (by_rows, total):
        torch.testing.assert_close(case(remat), case(unchanged))


RESULTS: dict[str, Callable[[Tensor], Any]] = {
    "its argument": lambda x: x,
    "views": lambda x: (x[:2], {"a": x.view(3, 1)}),
    "one tensor twice": lambda x: (lambda y: (y, y))(x.sin()),
    "integers and text": lambda x: (x.sin(), x.argmax(), "text", 3),
    "nothing": lambda x: (),
    "integers alone": lambda x: x.argmax(),
    "a recomputed function": lambda x: remat(lambda x: remat(torch.sin)(x) * x)(x),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results(name: str) -> None:
    def number(wrap: Wrap, x: Tensor) -> Tensor:
        result = tree.leaves(wrap(RESULTS[name])(x))
        return sum((y.sin() * y).sum() for y in result if isinstance(y, Tensor)) + x.prod()

    for transform in (
        lambda f: f(X),
        lambda f: grad(f)(X),
        lambda f: jvp(f, (X,), (W,)),
        lambda f: jvp(grad(f), (X,), (W,)),
        lambda f: vmap(f)(torch.stack([X, W])),
        lambda f: vmap(grad(f))(torch.stack([X, W])),
    ):
        found, expected = (transform(partial(number, wrap)) for wrap in (remat, unchanged))
        torch.testing.assert_close(found, expected)


def test_a_pull_back_that_outlives_its_level() -> None:
    def both(wrap: Wrap) -> Any:
        pull = vjp(lambda x: wrap(lambda x: x.sin() * x)(x), X)[1]
        inner = lambda a: jvp(lambda b: pull(b * a)[0].sin().sum(), (X,), (W,))[1]  # noqa: E731
        return jvp(inner, (X,), (W,)), grad(lambda a: pull(a)[0].sin().sum())(X)

    torch.testing.assert_close(both(remat), both(unchanged))


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")  # torch's own
def test_what_records_operations_records_the_function() -> None:
    f = model(remat, True)
    flat = tree.leaves(PARAMS)

    def by_leaves(*leaves: Tensor) -> Tensor:
        return f(tree.unflatten(tree.structure(PARAMS), leaves), EXAMPLE)

    expected = f(PARAMS, EXAMPLE)
    assert error(make_fx(by_leaves)(*flat)(*flat), expected) < TOLERANCE
    value, push = linearize(by_leaves, *flat)
    assert error(value, expected) < TOLERANCE
    along = tuple(tree.leaves(ALONG[0]))
    assert error(push(*along), jvp(by_leaves, tuple(flat), along)[1]) < TOLERANCE
    compiled = torch.compile(grad(f), fullgraph=True, backend="aot_eager")
    assert error(compiled(PARAMS, EXAMPLE), grad(f)(PARAMS, EXAMPLE)) < TOLERANCE
    torch.compiler.reset()


WIDE = tuple((leaf(30 + n, 8, 256) / 16, leaf(50 + n, 256, 8) / 16) for n in range(12))
ROWS = leaf(29, 128, 8)


def twelve(wrap: Wrap, blocks: Any = WIDE) -> Tensor:
    x = ROWS
    for weights in blocks:
        x = wrap(lambda x, w: x + (x @ w[0]).tanh().sin().tanh() @ w[1])(x, weights)
    return x.square().sum()


DERIVATIVES: dict[str, tuple[Callable[[Callable[..., Tensor]], Any], float]] = {
    "grad of torch.func": (lambda f: grad(f)(WIDE), 4),
    "grad": (lambda f: transforms.grad(f)(WIDE), 3),
    "jvp of grad": (lambda f: jvp(transforms.grad(f), (WIDE,), (WIDE,)), 3),
    "vmap of grad": (
        lambda f: vmap(lambda s: transforms.grad(lambda p: f(p) * s)(WIDE))(torch.ones(2)), 2.5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DERIVATIVES)
def test_memory_is_that_of_one_block(name: str) -> None:
    """Of twelve blocks, whose inner values are 32 times as large as their results."""
    derivative, factor = DERIVATIVES[name]
    ours, plain = (
        peak_bytes(partial(derivative, partial(twelve, wrap))) for wrap in (remat, unchanged)
    )
    assert factor * ours < plain, (ours, plain)


def test_groups_of_recomputed_blocks_hold_the_root_of_the_depth() -> None:
    """36 blocks hold 36 arguments; 6 groups of 6 hold 6 of groups and 6 of the blocks of one."""
    x = leaf(60, 1000)

    def group(block: Callable[[Tensor], Tensor], count: int) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            for _ in range(count):
                x = block(x)
            return x

        return run

    def block(x: Tensor) -> Tensor:
        return x.sin().cos()

    one = group(remat(block), 36)
    nested = group(remat(group(remat(block), 6)), 6)
    assert torch.equal(one(x), nested(x))
    flat, deep = (
        peak_bytes(partial(transforms.grad(lambda x, f=f: f(x).sum()), x)) for f in (one, nested)
    )
    assert deep < flat / 2, (deep, flat)


def test_what_taps_read_inside_keeps_its_derivative() -> None:
    """What is read leaves the function beside its result."""
    config = gpt2.Config(vocab_size=11, n_positions=8, n_embd=12, n_layer=2, n_head=3)
    params = tree.cast(gpt2.init(config, random.key(0)), torch.float64)
    ids = torch.tensor([[3, 1, 4]])

    def read(model: Any) -> Any:
        def loss(params: Any) -> Tensor:
            _, found = taps.read(model, "blocks.0.mlp.out")(params, ids)
            return found["blocks.0.mlp.out"].sin().sum()

        return grad(loss)(params)

    expected = read(gpt2.apply)
    for x, y in zip(tree.leaves(read(remat(gpt2.apply))), tree.leaves(expected), strict=True):
        assert x.equal(y)
    assert any(x.any() for x in tree.leaves(expected))
