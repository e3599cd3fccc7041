"""Norms, clipped sums and inner products of per-example gradients equal those of the gradients.

The reference is `vmap(grad)`, which is compared with a loop elsewhere, in float64.
"""

import random as python_random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import FAMILIES, IDS, VARIANTS, Family, make_batch, make_params, scalar
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, grad_and_value, jvp, vmap
from torch.nn import functional as F

from fnlm import random, tree
from fnlm.layers.norm import layer_norm
from fnlm.train import Precision
from fnlm.transforms import Product, capture, clipped_grad_sum, per_example_grads, per_example_norms
from fnlm.tree import Tree

B, T, D = 4, 5, 4
WEIGHTS = torch.tensor([0.3, 1.0, 2.0, 0.0], dtype=torch.float64)
Op = Callable[[dict[str, Tensor], Tensor, Tensor], Tensor]


def assert_close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def flat(x: Tensor) -> Tensor:
    return x[:, None].flatten(1)


def by_vmap(loss: Callable[..., Tensor], params: Tree, *batch: Any) -> Tree:
    """Return the gradient of each example of the floating-point leaves, by torch's transforms."""
    floats, rest = tree.partition(params, lambda path, x: x.is_floating_point())
    of_floats = grad(lambda floats, *example: loss(tree.merge(floats, rest), *example))
    return vmap(of_floats, (None, *(0 for _ in batch)))(floats, *batch)


def assert_exact(loss: Callable[..., Tensor], params: Tree, *batch: Any) -> Any:
    """Compare everything that a capture gives with the materialized gradients; return it."""
    each = by_vmap(loss, params, *batch)
    for chunk_size in (None, 2):
        grads = per_example_grads(loss, params, *batch, chunk_size=chunk_size)
        for (path, g), expected in zip(tree.named_leaves(each), tree.leaves(grads), strict=True):
            torch.testing.assert_close(g, expected, rtol=1e-9, atol=1e-9, msg=path)
    found = capture(loss, params, *batch)
    size = tree.leaves(batch)[0].shape[0]
    squares = [flat(g).square().sum(1) for g in tree.leaves(each)]
    norms = torch.stack(squares).sum(0).sqrt()
    assert_close(found.norms(), norms)
    assert_close(per_example_norms(loss, params, *batch, chunk_size=2), norms)
    weights = WEIGHTS[:size]
    for path, total in tree.named_leaves(found.weighted_sum(weights)):
        g = dict(tree.named_leaves(each))[path]
        assert_close(total, torch.einsum("b,b...->...", weights, g))
    direction = tree.map(lambda x: x.sin() + 0.5, found.params)
    along = [
        flat(g * x).sum(1) for g, x in zip(tree.leaves(each), tree.leaves(direction), strict=True)
    ]
    assert_close(found.dot(direction), torch.stack(along).sum(0))
    in_dims = (None, *(0 for _ in batch))
    assert_close(found.losses, vmap(grad_and_value(loss), in_dims)(params, *batch)[1])
    return found


# Every variant of every model: no leaf is materialized.

VARIANTS_AND_MORE = [
    *zip(IDS, VARIANTS, strict=True),
    *(
        (f"{name}-{number}", (family._replace(config=config), task))
        for name, (family, task) in zip(IDS, VARIANTS, strict=True)
        for number, config in enumerate(family.others)
    ),
]


@pytest.mark.parametrize(
    "variant", [v for _, v in VARIANTS_AND_MORE], ids=[n for n, _ in VARIANTS_AND_MORE]
)
@pytest.mark.parametrize("dropout", [False, True], ids=["", "dropout"])
def test_models(variant: tuple[Family, str], dropout: bool) -> None:
    family, name = variant
    params, (ids, mask) = make_params(family, dtype=torch.float64), make_batch(family)
    keys = random.split(random.key(5), len(ids))

    def loss(params: Tree, ids: Tensor, mask: Tensor, key: Tensor) -> Tensor:
        return scalar(family.tasks[name](params, ids, mask, key=key if dropout else None))

    assert not assert_exact(loss, params, ids, mask, keys).each


# Every use of a leaf that was thought of.


def make_leaves() -> dict[str, Tensor]:
    shapes = {"w": (D, D), "u": (D, D), "table": (7, D), "b": (D,), "s": (D,), "t": ()}
    keys = iter(random.split(random.key(0), len(shapes)))
    return {name: random.normal(next(keys), shape, torch.float64) for name, shape in shapes.items()}


def make_examples() -> tuple[Tensor, Tensor]:
    x = random.normal(random.key(1), (B, T, D), torch.float64)
    ids = (random.uniform(random.key(2), (B, T)) * 7).long()
    return x, ids


def inner_vmap(p: dict[str, Tensor], x: Tensor, ids: Tensor) -> Tensor:
    return vmap(lambda row: row @ p["w"])(x)


def inner_vmap_with_argument(p: dict[str, Tensor], x: Tensor, ids: Tensor) -> Tensor:
    return vmap(lambda w, row: row @ w, in_dims=(None, 0))(p["w"], x)


def inner_vmap_of_the_leaf(p: dict[str, Tensor], x: Tensor, ids: Tensor) -> Tensor:
    return x + vmap(lambda row: row.square())(p["w"]).sum(0)


def inner_grad(p: dict[str, Tensor], x: Tensor, ids: Tensor) -> Tensor:
    return grad(lambda h: (h @ p["w"]).sin().sum())(x)


def inner_jvp(p: dict[str, Tensor], x: Tensor, ids: Tensor) -> Tensor:
    return jvp(lambda h: (h @ p["w"]).sin(), (x,), (x.cos(),))[1]


def inner_grad_of_the_leaf(p: dict[str, Tensor], x: Tensor, ids: Tensor) -> Tensor:
    return x @ grad(lambda w: (x @ w).sin().sum())(p["w"])


def plain_autograd(p: dict[str, Tensor], x: Tensor, ids: Tensor) -> Tensor:
    h = x * p["w"].square().sum()
    (slope,) = torch.autograd.grad((h @ p["u"]).sin().sum(), h, create_graph=True)
    return slope


def written_in_place(p: dict[str, Tensor], x: Tensor, ids: Tensor) -> Tensor:
    y = x.clone()
    y += p["b"]
    return y


def written_after_an_addition(p: dict[str, Tensor], x: Tensor, ids: Tensor) -> Tensor:
    y = x.clone()
    z = y + p["b"]
    y += 1
    return z * y


def dual_numbers(p: dict[str, Tensor], x: Tensor, ids: Tensor) -> Tensor:
    with forward_ad.dual_level():
        y = (forward_ad.make_dual(x, x.cos()) @ p["w"]).sin()
        return forward_ad.unpack_dual(y).tangent + x @ p["w"]


class Square(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return 2 * ctx.saved_tensors[0] * grads[0]


def set_rows(p: dict[str, Tensor], x: Tensor, ids: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:] = x @ p["w"]
    y[0] = p["b"]
    return y


def an_output_written_to(p: dict[str, Tensor], x: Tensor, ids: Tensor) -> Tensor:
    y = x @ p["w"]
    y += 1
    z = F.linear(y, p["u"], p["b"])
    return z.relu_() * (z @ p["w"]).mul_(2)


def without_a_gradient(p: dict[str, Tensor], x: Tensor, ids: Tensor) -> Tensor:
    with torch.no_grad():
        y = x @ p["w"]
    return x @ p["u"] + y


KNOWN: dict[str, Op] = {
    "product": lambda p, x, ids: x @ p["w"],
    "transposed product": lambda p, x, ids: x @ p["w"].mT,
    "linear": lambda p, x, ids: F.linear(x, p["w"], p["b"]),
    "linear, no bias": lambda p, x, ids: F.linear(x, p["w"].T),
    "linear, plain weight": lambda p, x, ids: F.linear(x, torch.ones_like(x[:D, :D]), p["b"]),
    "addmm": lambda p, x, ids: torch.addmm(p["b"], x, p["w"]),
    "of a vector": lambda p, x, ids: x + x[0] @ p["w"],
    "of more axes": lambda p, x, ids: (x[None].expand(2, -1, -1) @ p["w"]).sum(0),
    "of one input for all": lambda p, x, ids: x + torch.arange(D).double()[None] @ p["w"],
    "columns": lambda p, x, ids: torch.cat([x @ p["w"][:, :1], x @ p["w"][:, 1:]], -1),
    "overlapping columns": lambda p, x, ids: torch.cat([x @ p["w"][:, :3], x @ p["w"][:, 3:]], -1)
    * (x @ p["w"][:, 1:2]),
    "rows": lambda p, x, ids: x[:, :2] @ p["w"][1:3],
    "rows of the transpose": lambda p, x, ids: x[:, 1:] @ p["w"].t()[1:, :],
    "slice of a slice": lambda p, x, ids: x + (x[:, :1] @ p["w"][1:3][1:, 2:]).sum(-1, True),
    "lookup": lambda p, x, ids: x + F.embedding(ids, p["table"]),
    "index": lambda p, x, ids: x + p["table"][ids],
    "negative index": lambda p, x, ids: x + p["table"][ids - 7],
    "index of the transpose": lambda p, x, ids: x + p["w"].mT[ids % D],
    "index of a slice": lambda p, x, ids: x + p["table"][2:6][ids % 4],
    "index of a vector": lambda p, x, ids: x + p["b"][ids % D][:, None],
    "index of one row": lambda p, x, ids: x + p["table"][ids[:1]],
    "positions": lambda p, x, ids: x + p["table"][:T],
    "positions and a row": lambda p, x, ids: x + (p["table"][:T] + p["table"][6]),
    "repeated rows": lambda p, x, ids: x + p["table"][torch.tensor([0, 0, 3, 3, 3])],
    "tied": lambda p, x, ids: (F.embedding(ids, p["table"]) + x) @ p["table"][:4].mT,
    "tied with positions": lambda p, x, ids: (p["table"][ids] + p["table"][:T])
    @ p["table"][3:7].mT,
    "bias": lambda p, x, ids: p["b"] + x,
    "bias as a column": lambda p, x, ids: x + p["w"][:, :1].mT,
    "strided bias": lambda p, x, ids: x + p["w"][:, 1],
    "every other row": lambda p, x, ids: x[:4] + p["table"][::2],
    "bias with an axis": lambda p, x, ids: x + p["b"][:, None].mT + p["b"][None],
    "a matrix as bias": lambda p, x, ids: x[:4] + p["w"],
    "scalar": lambda p, x, ids: x * p["t"] + p["t"],
    "scale": lambda p, x, ids: x * p["s"],
    "scale by a matrix": lambda p, x, ids: x[:4] * p["w"].mT,
    "a bias of two layers": lambda p, x, ids: F.linear(F.linear(x, p["w"], p["b"]), p["u"], p["b"]),
    "a product and a bias": lambda p, x, ids: (x @ p["w"])[:4] + p["w"],
    "layer norm": lambda p, x, ids: F.layer_norm(x, (D,), p["s"], p["b"]),
    "layer norm, no bias": lambda p, x, ids: F.layer_norm(x, (D,), weight=p["s"], eps=0.1),
    "a norm used twice": lambda p, x, ids: F.layer_norm(
        F.layer_norm(x, (D,), p["s"], p["b"]) @ p["w"], (D,), p["s"], p["b"]
    ),
    "scale and bias in one": lambda p, x, ids: F.layer_norm(x, (D,), p["s"], p["s"]),
    "no gradient": without_a_gradient,
    "a detached leaf": lambda p, x, ids: x @ p["w"].detach() + p["b"],
    "written after an addition": written_after_an_addition,
    "an output written to": an_output_written_to,
    "keywords": lambda p, x, ids: torch.matmul(F.linear(input=x, weight=p["u"]), other=p["w"]),
    "unused": lambda p, x, ids: x,
    "sum of leaves": lambda p, x, ids: x @ (p["w"] + p["u"]),
    "shape and type": lambda p, x, ids: x * p["w"].shape[0] + len(p["table"]) * p["b"].ndim,
}  # fmt: skip
OTHER: dict[str, Op] = {
    "padding_idx": lambda p, x, ids: x + F.embedding(ids, p["table"], padding_idx=0),
    "list of rows": lambda p, x, ids: x + p["table"][[0, 0, 1, 2, 2]],
    "two indices": lambda p, x, ids: x + p["table"][ids, ids % D][:, None],
    "mask": lambda p, x, ids: x * p["b"][torch.tensor([True, False, True, False])].sum(),
    "leaf on the left": lambda p, x, ids: x + (p["w"] @ x.mT).mT,
    "leaf times leaf": lambda p, x, ids: x @ (p["w"] @ p["u"]),
    "product of leaves": lambda p, x, ids: x * (p["s"] * p["b"]),
    "a vector on the right": lambda p, x, ids: x * (x @ p["s"])[:, None],
    "einsum": lambda p, x, ids: torch.einsum("ti,io->to", x, p["w"]),
    "reshaped": lambda p, x, ids: x @ p["w"].reshape(-1).view(D, D),
    "square": lambda p, x, ids: x @ p["w"].square(),
    "weight decay": lambda p, x, ids: x + sum(leaf.square().sum() for leaf in p.values()),
    "negated": lambda p, x, ids: -p["b"] + (x - p["b"]),
    "alpha": lambda p, x, ids: torch.add(x, p["b"], alpha=3),
    "unbind": lambda p, x, ids: x + torch.stack(p["table"].unbind(0)[:T]),
    "concatenated": lambda p, x, ids: x @ torch.cat([p["w"][:2], p["u"][2:]]),
    "power": lambda p, x, ids: x * p["t"] ** 2,
    "number times leaf": lambda p, x, ids: x + 3 * p["b"],
    "functional": lambda p, x, ids: torch.tensordot(x, p["w"], 1),
    "written in place": written_in_place,
    "inner vmap": inner_vmap,
    "inner vmap, an argument": inner_vmap_with_argument,
    "inner vmap over the leaf": inner_vmap_of_the_leaf,
    "inner grad": inner_grad,
    "inner jvp": inner_jvp,
    "inner grad of the leaf": inner_grad_of_the_leaf,
    "plain autograd": plain_autograd,
    "dual numbers": dual_numbers,
    "a function of its own": lambda p, x, ids: x @ Square.apply(p["w"]),
    "set rows": set_rows,
    "chunks": lambda p, x, ids: torch.cat([x @ part for part in p["w"].chunk(2, 1)], -1),
    "tensor attributes": lambda p, x, ids: x @ p["w"].type_as(x).clone().contiguous(),
}
OPS = KNOWN | OTHER


def make_loss(*ops: Op) -> Callable[..., Tensor]:
    def loss(params: dict[str, Tensor], x: Tensor, ids: Tensor) -> Tensor:
        for op in ops:
            y = op(params, x, ids)
            x = torch.tanh(F.pad(y, (0, 0, 0, T - len(y))))
        return x.cumsum(0).square().mean() + (x * x.sin()).sum()

    return loss


@pytest.mark.parametrize("name", OPS)
def test_one_use(name: str) -> None:
    found = assert_exact(make_loss(OPS[name]), make_leaves(), *make_examples())
    if name in KNOWN:
        assert not found.each
    else:
        assert found.each


@pytest.mark.parametrize("seed", range(50))
def test_random_programs(seed: int) -> None:
    draw = python_random.Random(seed)
    names = draw.choices([*KNOWN, *KNOWN, *OTHER], k=draw.randint(2, 7))
    rows = draw.choice([1, 2, B])
    batch = [x[:rows] for x in make_examples()]
    assert_exact(make_loss(*(OPS[name] for name in names)), make_leaves(), *batch)


def test_autocast() -> None:
    def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return (x @ params["w"]).float().square().sum()

    params, x = tree.cast(make_leaves(), torch.float32), make_examples()[0].float()
    expected = by_vmap(loss, params, x)["w"].flatten(1).norm(dim=1)
    torch.testing.assert_close(per_example_norms(loss, params, x), expected)
    assert set(capture(loss, params, x).each) == {"w"}


def test_both_ways_to_a_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """By inner products or by the gradients of one example at a time, the norm is the same."""
    ops = [op for name, op in KNOWN.items() if name != "unused"]
    loss, params, batch = make_loss(*ops), make_leaves(), make_examples()
    expected = per_example_norms(loss, params, *batch)
    for traffic in (-(10**9), 10**9):
        monkeypatch.setattr("fnlm.transforms._reductions.TRAFFIC", traffic)
        monkeypatch.setattr("fnlm.transforms._reductions.ELEMENTS", 1)
        monkeypatch.setattr("fnlm.transforms._products.ELEMENTS", 1)
        assert_close(per_example_norms(loss, params, *batch), expected)


# What a capture is.


def test_the_factors_are_those_of_the_layer() -> None:
    params, (x, ids) = make_leaves(), make_examples()
    (first, second) = capture(make_loss(KNOWN["linear"]), params, x, ids).uses
    assert isinstance(first, Product) and torch.equal(first.inputs, x)
    assert (first.site.path, second.site.path) == ("w", "b")
    gradient = vmap(
        grad(lambda y: y.tanh().cumsum(0).square().mean() + (y.tanh() * y.tanh().sin()).sum())
    )
    assert_close(first.grads, gradient(F.linear(x, params["w"], params["b"])))
    assert_close(second.grads, first.grads.sum(1))


def test_an_input_that_leaves_share_is_kept_once() -> None:
    found = capture(
        lambda p, x: ((x @ p["w"]) * (x @ p["u"])).sum(), make_leaves(), make_examples()[0]
    )
    first, second = found.uses
    assert isinstance(first, Product) and isinstance(second, Product)
    assert first.inputs is second.inputs


def test_a_direction_must_be_like_params() -> None:
    found = capture(make_loss(KNOWN["linear"]), make_leaves(), *make_examples())
    with pytest.raises(ValueError, match="direction must be a tree like params"):
        found.dot({"w": torch.zeros(D, D)})


def test_errors_of_the_loss_are_its_own() -> None:
    def loss(params: dict[str, Tensor], x: Tensor, ids: Tensor) -> Tensor:
        return (x @ params["w"][:2]).sum()

    with pytest.raises(RuntimeError, match=r"size|shape"):
        per_example_norms(loss, make_leaves(), *make_examples())
    with pytest.raises(ValueError, match="the loss must return one number"):
        per_example_norms(lambda p, x, ids: x @ p["w"], make_leaves(), *make_examples())


def test_a_loss_is_called_once() -> None:
    calls: list[int] = []

    def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        calls.append(0)
        return (x @ params["w"]).sum()

    per_example_norms(loss, make_leaves(), make_examples()[0])
    assert len(calls) == 1


def test_an_input_that_is_written_to_is_an_error() -> None:
    """As of torch: the gradient of the weight would need what is lost."""

    def loss(params: dict[str, Tensor], x: Tensor) -> Tensor:
        h = x * params["s"]
        y = h @ params["w"]
        h += 1
        return (h * y).sum()

    with pytest.raises(RuntimeError, match="inplace operation"):
        per_example_norms(loss, make_leaves(), make_examples()[0])


# Transforms around it.


def norm_of_every_order(p: dict[str, Tensor], x: Tensor, ids: Tensor) -> Tensor:
    return layer_norm(x, p["s"], p["b"], eps=0.1)  # torch's has wrong second derivatives


ROUND = (KNOWN["tied with positions"], norm_of_every_order, KNOWN["linear"], OTHER["square"])


def both(params: Tree, *batch: Any) -> Any:
    loss = make_loss(*ROUND)
    norms = per_example_norms(loss, params, *batch)
    clipped, _ = clipped_grad_sum(loss, params, *batch, max_norm=1.3, chunk_size=3)
    return norms, clipped, capture(loss, params, *batch).dot(tree.map(torch.cos, params))


def materialized(params: Tree, *batch: Any) -> Any:
    loss = make_loss(*ROUND)
    each = by_vmap(loss, params, *batch)
    squares = [flat(g).square().sum(1) for g in tree.leaves(each)]
    norms = torch.stack(squares).sum(0).sqrt()
    scale = (1.3 / norms).clamp(max=1)
    along = tree.map(lambda g, x: flat(g * x.cos()).sum(1), each, params)
    clipped = tree.map(lambda g: torch.einsum("b,b...->...", scale, g), each)
    return norms, clipped, torch.stack(tree.leaves(along)).sum(0)


def smooth(outputs: Any) -> Tensor:
    return sum(x.sin().sum() for x in tree.leaves(outputs))


def jvp_of_grad(fn: Callable[..., Any], params: Tree, batch: Any) -> Tree:
    gradient = grad(lambda params: smooth(fn(params, *batch)))
    return jvp(gradient, (params,), (tree.map(torch.sin, params),))[1]


def inside_itself(fn: Callable[..., Any], params: Tree, batch: Any) -> Tensor:
    def loss(params: Tree, x: Tensor, ids: Tensor) -> Tensor:
        return smooth(fn(params, x[None], ids[None]))

    return per_example_norms(loss, params, *batch)


AROUND: dict[str, Callable[[Callable[..., Any], Tree, Any], Any]] = {
    "grad": lambda fn, p, batch: grad(lambda p: smooth(fn(p, *batch)))(p),
    "jvp": lambda fn, p, batch: jvp(lambda p: fn(p, *batch), (p,), (tree.map(torch.sin, p),))[1],
    "vmap over parameters": lambda fn, p, batch: vmap(lambda p: fn(p, *batch))(
        tree.stack([p, tree.map(torch.sin, p)])
    ),
    "vmap over batches": lambda fn, p, batch: vmap(lambda *batch: fn(p, *batch))(
        *(torch.stack([x, x.flip(0)]) for x in batch)
    ),
    "grad by the batch": lambda fn, p, batch: grad(lambda x: smooth(fn(p, x, batch[1])))(batch[0]),
    "jvp of grad": jvp_of_grad,
    "inside itself": inside_itself,
}


@pytest.mark.parametrize("name", AROUND)
def test_under_transforms(name: str) -> None:
    params, batch = make_leaves(), make_examples()
    found, expected = (AROUND[name](fn, params, batch) for fn in (both, materialized))
    for a, b in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("compute", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_casts_of_leaves_are_followed(compute: torch.dtype) -> None:
    """A loss that casts its parameters, as `Precision.wrap` does, materializes no gradient."""
    family = next(family for family in FAMILIES if family.name == "bert")
    params, (ids, _) = make_params(family, dtype=torch.float64), make_batch(family)
    task = next(iter(family.tasks.values()))
    apply = Precision(params=torch.float64, compute=compute, output=torch.float64).wrap(
        task, arguments=1
    )

    def loss(params: Tree, row: Tensor) -> Tensor:
        return scalar(apply(params, row[None]))

    found, each = capture(loss, params, ids), by_vmap(loss, params, ids)
    assert found.uses and not found.each
    rtol = {torch.float64: 1e-9, torch.float32: 1e-4}.get(compute, 0.05)
    weights = torch.arange(1.0, 1 + len(ids), dtype=torch.float64)
    sums = found.weighted_sum(weights)
    for (path, a), b in zip(tree.named_leaves(sums), tree.leaves(each), strict=True):
        assert a.dtype == torch.float64, path
        expected = torch.einsum("b,b...->...", weights, b)
        assert (a - expected).norm() <= rtol * expected.norm() + 1e-9, path
    squares = torch.stack([flat(g).square().sum(1) for g in tree.leaves(each)]).sum(0)
    torch.testing.assert_close(found.norms(), squares.sqrt(), rtol=rtol, atol=0.0)
    along = torch.stack([flat(g).sum(1) for g in tree.leaves(each)]).sum(0)
    direction = tree.map(torch.ones_like, found.params)
    scale = float(squares.sqrt().max()) * sum(x.numel() for x in tree.leaves(params)) ** 0.5
    assert (found.dot(direction) - along).abs().max() <= rtol * scale


def test_a_cast_to_a_type_of_no_derivative_is_none() -> None:
    """What is known of a leaf does not hold for its integers."""
    params = {"w": torch.tensor([1.5, -2.5], dtype=torch.float64)}

    def loss(params: Tree, x: Tensor) -> Tensor:
        return (params["w"].to(torch.int64) * x).sum() + (params["w"] * x).sum()

    assert_exact(loss, params, torch.eye(2, dtype=torch.float64))


def test_half_parameters_have_norms_in_float32() -> None:
    loss, batch = make_loss(KNOWN["linear"], KNOWN["layer norm"]), make_examples()
    half = tree.cast(make_leaves(), torch.bfloat16)
    found = per_example_norms(loss, half, batch[0].bfloat16(), batch[1])
    assert found.dtype == torch.float32
    expected = per_example_norms(loss, tree.cast(half, torch.float64), *batch)
    torch.testing.assert_close(found.double(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_no_examples(family: Family) -> None:
    params, (ids, _) = make_params(family), make_batch(family)
    task = next(iter(family.tasks.values()))

    def loss(params: Tree, ids: Tensor) -> Tensor:
        return scalar(task(params, ids[None]))

    found = capture(loss, params, ids[:0])
    assert found.norms().shape == (0,) and found.dot(found.params).shape == (0,)
    assert all((x == 0).all() for x in tree.leaves(found.weighted_sum(torch.zeros(0))))


def test_compiled() -> None:
    loss, params, batch = make_loss(KNOWN["linear"], KNOWN["tied"]), make_leaves(), make_examples()
    compiled = torch.compile(
        lambda p, *b: per_example_norms(loss, p, *b), backend="aot_eager", fullgraph=True
    )
    assert_close(compiled(params, *batch), per_example_norms(loss, params, *batch))
