"""The fused kernel below every transform: the numbers of plain operations, where it runs at all."""

import math
import random as draws
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from allocations import peak_bytes
from compositions import ORDER, PAIRED, TRANSFORMS, compose, error
from families import BERT, GPT, GPT2, Family
from test_derivatives import directions, model
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, jvp, vjp, vmap

from fnlm import random, transforms, tree
from fnlm.layers import _fused_attention as fused
from fnlm.layers.attention import SLICE, attend, causal_mask, padding_bias
from fnlm.transforms import remat

TOLERANCE = 1e-10
SIZES = fused.QUERIES, fused.KEYS


class Calls:
    """Counts the calls of the kernels."""

    def __init__(self) -> None:
        self.forward = self.backward = 0

    def kernel(self, *args: Any, **kwargs: Any) -> Any:
        self.forward += 1
        return KERNEL(*args, **kwargs)

    def gradient(self, *args: Any, **kwargs: Any) -> Any:
        self.backward += 1
        return KERNEL_BACKWARD(*args, **kwargs)


KERNEL, KERNEL_BACKWARD = fused._kernel, fused._kernel_backward


@pytest.fixture(autouse=True)
def calls() -> Iterator[Calls]:
    """The kernel from 4 queries and keys on, and how often it was called."""
    found = Calls()
    with mock.patch.multiple(
        fused, QUERIES=4, KEYS=4, _kernel=found.kernel, _kernel_backward=found.gradient
    ):
        yield found


def plainly(function: Callable[..., Any], *args: Any) -> Any:
    """What plain operations give."""
    with mock.patch.object(fused, "can_attend", lambda *given: False):
        return function(*args)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return random.normal(random.key(seed), shape, dtype)


def qkv(*lead: int, queries: int, keys: int, width: int, heads: int = 3) -> tuple[Tensor, ...]:
    return (
        draw(*lead, heads, queries, width),
        draw(*lead, heads, keys, width, seed=1),
        draw(*lead, heads, keys, width, seed=2),
    )


def valid(*lead: int, keys: int) -> Tensor:
    """Padding on the left, so that the first queries of a causal mask have no key at all."""
    found = random.bernoulli(random.key(5), 0.7, (*lead, keys))
    found[..., :3] = False
    return found


SHAPES: dict[str, tuple[tuple[int, ...], int, int, int]] = {
    "no leading axis": ((), 5, 5, 4),
    "an odd width": ((2,), 6, 6, 7),
    "two leading axes, cached keys": ((2, 1), 5, 9, 3),
    "width 1": ((3,), 4, 4, 1),
    "chunks": ((2,), 2 * SLICE + 7, 2 * SLICE + 7, 5),
    "chunks, cached keys": ((1,), SLICE + 3, SLICE + 12, 5),
}
MASKS: dict[str, Callable[[tuple[int, ...], int, int], dict[str, Any]]] = {
    "none": lambda lead, t, s: {"mask": None},
    "causal": lambda lead, t, s: {"mask": causal_mask(valid(*lead, keys=s), t), "causal": True},
    "causal, not said": lambda lead, t, s: {"mask": causal_mask(valid(*lead, keys=s), t)},
    "causal, no mask": lambda lead, t, s: {"mask": None, "causal": True},
    "padding": lambda lead, t, s: {"mask": padding_bias(valid(*lead, keys=s), torch.float64)},
    "nothing allowed": lambda lead, t, s: {"mask": torch.zeros(1, 1, dtype=torch.bool)},
    "of keys": lambda lead, t, s: {"mask": valid(keys=s)},
    "added, by head": lambda lead, t, s: {"mask": draw(3, t, s, seed=7)},
    "added, transposed": lambda lead, t, s: {"mask": draw(s, t, seed=7).mT},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mask", MASKS)
def test_values_and_gradients_are_those_of_plain_operations(
    shape: str, mask: str, calls: Calls
) -> None:
    lead, queries, keys, width = SHAPES[shape]
    given = MASKS[mask](lead, queries, keys)
    q, k, v = qkv(*lead, queries=queries, keys=keys, width=width)
    past = keys - queries  # these are a segment of their own

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k_parts, v_parts = (x.tensor_split((past,), -2)[0 if past else 1 :] for x in (k, v))
        return attend(q, k_parts, v_parts, **given)

    def loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return run(q, k, v).sin().square().sum()

    found, slopes = run(q, k, v), grad(loss, (0, 1, 2))(q, k, v)
    assert calls.forward and calls.backward
    assert found.shape == q.shape
    assert error(found, plainly(run, q, k, v)) < TOLERANCE
    assert error(slopes, plainly(grad(loss, (0, 1, 2)), q, k, v)) < TOLERANCE


def test_single_precision(calls: Calls) -> None:
    mask = causal_mask(valid(2, keys=20), 20)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, (k,), (v,), mask, causal=True)

    given = qkv(2, queries=20, keys=20, width=8)
    for f in (run, grad(lambda *x: run(*x).sin().sum(), (0, 1, 2))):
        found, expected = f(*(x.float() for x in given)), plainly(f, *given)
        assert error(tree.cast(found, torch.float64), expected) < 1e-5
    assert calls.forward == 2


def test_a_query_without_keys_attends_uniformly_to_those_of_its_chunk() -> None:
    tokens = SLICE + 5
    q, k, v = (1e3 * x for x in qkv(queries=tokens, keys=tokens, width=4))
    found = attend(q, (k,), (v,), torch.zeros(1, 1, dtype=torch.bool), causal=True)
    torch.testing.assert_close(found[:, 0], v[:, :SLICE].mean(1))
    torch.testing.assert_close(found[:, -1], v.mean(1))


def test_a_row_of_minus_infinities_is_nan_and_the_others_are_not() -> None:
    q, k, v = qkv(queries=6, keys=6, width=4)
    bias = torch.zeros(6, 6, dtype=torch.float64)
    bias[3] = -math.inf
    assert attend(q, (k,), (v,), bias).isnan().any(-1).any(0).tolist() == [
        row == 3 for row in range(6)
    ]


@pytest.mark.parametrize("keys", [SIZES[1], SIZES[1] + 1, 300, 513, 1040])
@pytest.mark.parametrize("dtype", fused._FLOATS)
def test_what_is_no_number_stays_so(dtype: torch.dtype, keys: int, calls: Calls) -> None:
    """The kernel gives 0 for a query of NaN where keys are fewer than a vector register holds."""
    assert SIZES[1] >= 128
    q, k, v = (x.to(dtype) for x in qkv(queries=8, keys=keys, width=4))
    for place in range(3):
        for bad in (math.nan, math.inf):
            given = [x.clone() for x in (q, k, v)]
            given[place][:, 2, 1] = bad
            found, expected = (
                f(lambda q, k, v: attend(q, (k,), (v,)), *given)
                for f in (lambda run, *given: run(*given), plainly)
            )
            assert expected.isnan().any() or place == 2
            assert found.isfinite().equal(expected.isfinite())
    assert calls.forward == 6


def turned(x: Tensor) -> Tensor:
    """The same numbers, those of the last axis far from one another."""
    return x.mT.contiguous().mT


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": turned,
    "one head for all": lambda x: x[:, :1].expand(x.shape),
    "one row for all": lambda x: x[:1].expand(x.shape),
    "one token for all": lambda x: x[:, :, :1].expand(x.shape),
    "one number for all": lambda x: x[..., :1].expand(x.shape),
    "every second token": lambda x: torch.cat([x, x], -2)[..., ::2, :],
    "heads last": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views(name: str) -> None:
    view, given = VIEWS[name], qkv(2, queries=6, keys=6, width=4)

    def loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return turned(attend(view(q), (view(k),), (view(v),))).sin().square().sum()

    assert error(loss(*given), plainly(loss, *given)) < TOLERANCE
    slopes = grad(loss, (0, 1, 2))
    torch.testing.assert_close(slopes(*given), plainly(slopes, *given), rtol=0, atol=1e-12)
    total = grad(lambda q, k, v: attend(q, (k,), (v,)).sum(), (0, 1, 2))  # an expanded gradient
    torch.testing.assert_close(total(*given), plainly(total, *given), rtol=0, atol=1e-12)


Q, K, V = qkv(2, queries=5, keys=5, width=3)
ALLOWED, W, Z = causal_mask(valid(2, keys=5), 5), draw(2, 3, 5, 3, seed=8), draw(2, 3, 5, 3, seed=9)
ADDED = draw(3, 5, 5, seed=7)


def causal(q: Tensor, k: Tensor, v: Tensor, mask: Tensor = ALLOWED) -> Tensor:
    return attend(q, (k,), (v,), mask, causal=True)


def number(q: Tensor, k: Tensor, v: Tensor, mask: Tensor = ALLOWED) -> Tensor:
    return (causal(q, k, v, mask).sin() * q).sum()


def tracked() -> list[Tensor]:
    return [x.clone().requires_grad_() for x in (Q, K, V)]


def by_autograd(order: int) -> list[Tensor]:
    leaves, found = tracked(), []
    y = number(*leaves)
    for _ in range(order):
        slopes = torch.autograd.grad(y, leaves, create_graph=True)
        found += [x.detach() for x in slopes]
        y = torch.stack([(x * W).sin().sum() for x in slopes]).sum()
    return found


def pulled(use: Callable[[Any], Any]) -> Any:
    """Use what vjp returned, after its level is gone."""
    return use(vjp(causal, Q, K, V)[1])


def cubes(pull: Any) -> Any:
    return grad(lambda g: torch.stack(pull(g)).pow(3).sum())


def in_dual_level() -> list[Tensor]:
    leaves = tracked()
    y = causal(*leaves)
    with forward_ad.dual_level():
        slopes = torch.autograd.grad(y, leaves, forward_ad.make_dual(W, Z))
        return [forward_ad.unpack_dual(x).tangent for x in slopes]


def by_mask(mask: Tensor) -> Tensor:
    return torch.autograd.grad(attend(Q, (K,), (V,), mask).sin().sum(), mask)[0]


def outside(function: Callable[[Tensor], Tensor], order: int) -> Tensor:
    q = Q.clone().requires_grad_()
    found = function(q).sin().sum()
    for _ in range(order):
        (slope,) = torch.autograd.grad(found, q, create_graph=True)
        found = slope.sin().sum()
    return slope


ROW = causal_mask(valid(keys=5), 5)
WAYS: dict[str, Callable[[], Any]] = {
    "vmap": lambda: vmap(causal)(Q, K, V, ALLOWED),
    "vmap of queries alone": lambda: vmap(lambda q: causal(q, K[0], V[0], ROW))(Q),
    "vmap of masks alone": lambda: vmap(lambda m: causal(Q[0], K[0], V[0], m))(ALLOWED),
    "vmap of masks of a batch": lambda: vmap(lambda m: causal(Q, K, V, m))(ALLOWED[:, None]),
    "vmap of vmap": lambda: vmap(
        vmap(lambda q, k, m: causal(q, k, V[0], m), (None, 0, None)), (0, None, 0)
    )(Q, K, ALLOWED),
    "vmap over the last axis": lambda: vmap(causal, -1, -1)(
        *(torch.stack([x, x + 1], -1) for x in (Q, K, V))
    ),
    "vmap of grad": lambda: vmap(grad(number, (0, 1, 2)))(Q, K, V, ALLOWED),
    "grad of vmap": lambda: grad(lambda q: (vmap(causal)(q, K, V, ALLOWED) * W).sum())(Q),
    "grad of vmap, shared keys": lambda: grad(
        lambda q, k: (vmap(lambda q, m: causal(q, k, k, m))(q, ALLOWED) * W).sum(), (0, 1)
    )(Q, K[0]),
    "grad by an added mask": lambda: grad(
        lambda *x: (attend(x[0], (x[1],), (x[2],), x[3]) * W).sum(), (0, 1, 2, 3)
    )(Q, K, V, ADDED),
    "autograd by an added mask": lambda: by_mask(ADDED.clone().requires_grad_()),
    "autograd": lambda: by_autograd(1),
    "autograd, order 2": lambda: by_autograd(2),
    "autograd, order 3": lambda: by_autograd(3),
    "autograd outside of vmap": lambda: outside(
        lambda q: vmap(lambda q, m: causal(q, K[0], V[0], m))(q, ALLOWED), 1
    ),
    "autograd twice outside of vmap": lambda: outside(
        lambda q: vmap(lambda q, m: causal(q, K[0], V[0], m))(q, ALLOWED), 2
    ),
    "autograd outside of grad": lambda: outside(lambda q: grad(number)(q, K, V), 1),
    "the dual of a gradient": in_dual_level,
    "grad of a pull back": lambda: pulled(
        lambda pull: grad(lambda g: sum((x * x).sum() for x in pull(g)))(W)
    ),
    "jvp of a pull back": lambda: pulled(lambda pull: jvp(lambda g: pull(g * g), (W,), (Z,))),
    "jvp of jvp of a pull back": lambda: pulled(
        lambda pull: jvp(lambda g: jvp(lambda h: pull(g * h * h), (W,), (Z,))[1], (W,), (Z,))
    ),
    "jvp of grad of a pull back": lambda: pulled(lambda pull: jvp(cubes(pull), (W,), (Z,))),
    "vmap of a pull back": lambda: pulled(lambda pull: vmap(pull)(torch.stack([W, Z]))),
    "vmap of jvp of a pull back": lambda: pulled(
        lambda pull: vmap(partial(jvp, lambda g: pull(g * g), (W,)), 0)((torch.stack([W, Z]),))
    ),
    "grad of what is recomputed": lambda: grad(lambda *x: remat(causal)(*x).sin().sum(), (0, 1, 2))(
        Q, K, V
    ),
}


@pytest.mark.parametrize("name", WAYS)
def test_ways_to_the_derivatives(name: str, calls: Calls) -> None:
    found, used = WAYS[name](), calls.forward
    assert error(found, plainly(WAYS[name])) < TOLERANCE
    assert used == (name != "autograd outside of grad")  # vmaps fold into one call
    assert calls.forward == used


@pytest.mark.parametrize("outer", TRANSFORMS)
def test_pairs_and_triples_of_transforms(outer: str, calls: Calls) -> None:
    params = {"q": Q, "k": K, "v": V}
    along = [tree.map(lambda x, n=n: x.roll(n + 1, -2).cos(), params) for n in range(3)]

    def h(p: Any, i: Tensor) -> Tensor:
        q, k, v, m = (x.index_select(0, i[None])[0] for x in (*p.values(), ALLOWED))
        return number(q, k, v, m)

    inner = [name for name in TRANSFORMS if name != "autograd"]
    pick = draws.Random(outer)
    names: list[tuple[str, ...]] = [(outer, name) for name in inner]
    names += [(outer, pick.choice(inner), pick.choice(inner)) for _ in range(6)]
    for kinds in names:
        if sum(ORDER.get(name, 1) for name in kinds) <= 3:
            run = compose(h, kinds, along[-len(kinds) :])
            found, expected = run(params, torch.tensor(1)), plainly(run, params, torch.tensor(1))
            assert error(found, expected) < TOLERANCE, " of ".join(kinds)
    assert calls.forward or outer in ("jvp", "jacfwd", "hessian")


@pytest.mark.parametrize("family", [BERT, GPT, GPT2], ids=lambda family: family.name)
def test_models(family: Family, calls: Calls) -> None:
    """A whole model under every pair of transforms, some of its rows padded."""
    h, params = model(family, next(iter(family.tasks)), length=6)
    along = directions(params)
    for outer in PAIRED:
        for inner in PAIRED:
            run = compose(h, (outer, inner), along[1:])
            found, expected = run(params, torch.tensor(0)), plainly(run, params, torch.tensor(0))
            assert error(found, expected) < 1e-8, (outer, inner)
    assert error(grad(h)(params, torch.tensor(1)), plainly(grad(h), params, torch.tensor(1))) < 1e-8
    assert calls.forward and calls.backward


PLAIN: dict[str, Callable[[], Any]] = {
    "dropout": lambda: attend(Q, (K,), (V,), ALLOWED, rate=0.5, key=random.key(0)),
    "forward mode": lambda: jvp(causal, (Q, K, V), (Q, K, V)),
    "second derivatives": lambda: jvp(grad(number, (0, 1, 2)), (Q, K, V), (Q, K, V)),
    "the gradient of a gradient": lambda: grad(lambda q: grad(number)(q, K, V).sin().sum())(Q),
    "few queries": lambda: attend(Q[..., :1, :], (K,), (V,)),
    "few keys": lambda: attend(Q, (K[..., :2, :],), (V[..., :2, :],)),
    "no rows": lambda: attend(Q[:0], (K[:0],), (V[:0],)),
    "no keys": lambda: attend(Q, (K[..., :0, :],), (V[..., :0, :],)),
    "a mask of another dtype": lambda: attend(Q, K.split(3, -2), V.split(3, -2), ADDED.float()),
    "half precision": lambda: attend(Q.bfloat16(), (K.bfloat16(),), (V.bfloat16(),)),
    "keys for all rows": lambda: attend(Q, (K[:1],), (V[:1],)),
    "shapes alone": lambda: attend(Q.to("meta"), (K.to("meta"),), (V.to("meta"),)),
}


@pytest.mark.parametrize("name", PLAIN)
def test_where_operations_are_plain(name: str, calls: Calls) -> None:
    PLAIN[name]()
    assert not calls.forward and not calls.backward


def test_first_derivatives_take_the_kernels(calls: Calls) -> None:
    for number_of_calls, slopes in enumerate((grad(number), transforms.grad(number)), 1):
        slopes(Q, K, V)
        assert calls.forward == calls.backward == number_of_calls


def test_compiled_gradients() -> None:
    for slopes in (grad(number, (0, 1, 2)), vmap(grad(number, (0, 1, 2)))):
        compiled = torch.compile(slopes, fullgraph=True, backend="aot_eager")
        assert error(compiled(Q, K, V, ALLOWED), slopes(Q, K, V, ALLOWED)) < TOLERANCE
    torch.compiler.reset()


def test_memory_of_a_gradient() -> None:
    """The scores of 512 queries are 64 times as large as queries of width 8."""
    given = qkv(queries=512, keys=512, width=8, heads=12)
    mask = causal_mask(torch.ones(512, dtype=torch.bool), 512)
    slopes = transforms.grad(lambda q, k, v: attend(q, (k,), (v,), mask, causal=True).sum())
    ours, plain = peak_bytes(partial(slopes, *given)), peak_bytes(partial(plainly, slopes, *given))
    assert ours * 2 < plain, (ours, plain)
