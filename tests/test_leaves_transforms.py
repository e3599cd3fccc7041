"""Every transform on every family with every kind of leaf, held to tensors and plain autograd."""

import io
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import FAMILIES, GPT2, TRANSFO_XL, Family, make_batch, make_params, scalar
from test_leaves import adapted, matrices, moved
from torch import Tensor, nn
from torch.func import grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from fnlm import gpt2, random, tree
from fnlm.leaves import is_adapter, lora, merge, quantize
from fnlm.transforms import per_example_grads

Tree = Any


def two_adapters(family: Family, **kwargs: Any) -> Tree:
    params = adapted(family, **kwargs)
    return moved(lora(params, random.key(2), rank=1, alpha=3, where=matrices, name="two"))


def in_bits(bits: int) -> Callable[..., Tree]:
    return lambda family, **kwargs: quantize(
        make_params(family, **kwargs), bits=bits, where=matrices
    )


def adapters_on_bits(family: Family, **kwargs: Any) -> Tree:
    return moved(lora(in_bits(4)(family, **kwargs), random.key(1), rank=2, where=matrices))


KINDS: dict[str, Callable[..., Tree]] = {
    "adapters": adapted,
    "two adapters": two_adapters,
    "8 bits": in_bits(8),
    "4 bits": in_bits(4),
    "adapters on 4 bits": adapters_on_bits,
}


class Case:
    """A family with leaves of a kind, as a function of its floating-point half."""

    def __init__(self, family: Family, make: Callable[..., Tree], shallow: bool = False) -> None:
        self.task = list(family.tasks.values())[-1]  # with a head, where there is one
        params = make(family, dtype=torch.float64)
        if shallow:  # every block is the same code
            params = {**params, "blocks": params["blocks"][:1]}
        self.floats, self.rest = tree.partition(params, lambda path, x: x.is_floating_point())
        self.ids, self.mask = make_batch(family)

    def loss(self, floats: Tree, ids: Tensor, mask: Tensor) -> Tensor:
        return scalar(self.task(tree.merge(floats, self.rest), ids, mask))

    def dense_loss(self, floats: Tree, ids: Tensor, mask: Tensor) -> Tensor:
        """The same number, of a model whose leaves are tensors."""
        return scalar(self.task(merge(tree.merge(floats, self.rest)), ids, mask))

    def slope(self, floats: Tree, ids: Tensor, mask: Tensor) -> Tree:
        """The gradient by plain autograd through the tensors."""
        floats = tree.map(lambda x: x.detach().requires_grad_(), floats)
        found = torch.autograd.grad(
            self.dense_loss(floats, ids, mask),
            tree.leaves(floats),
            create_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return tree.unflatten(tree.structure(floats), found)


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture(params=KINDS.values(), ids=list(KINDS))
def case(request: pytest.FixtureRequest, family: Family) -> Case:
    return Case(family, request.param)


def close(found: Tree, expected: Tree, tolerance: float = 1e-9) -> None:
    assert tree.structure(found) == tree.structure(expected)
    whole = max(float(x.detach().abs().max()) for x in tree.leaves(expected))
    for (path, a), b in zip(tree.named_leaves(found), tree.leaves(expected), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype, path
        size = max(float(b.detach().abs().max()), 1e-3 * whole)
        assert float((a - b).detach().abs().max()) <= tolerance * size, path


def directions(like: Tree) -> Tree:
    keys = iter(random.split(random.key(5), len(tree.leaves(like))))
    return tree.map(lambda x: random.normal(next(keys), tuple(x.shape), x.dtype), like)


def test_gradients_of_examples(case: Case) -> None:
    found = vmap(grad(case.loss), in_dims=(None, 0, 0))(case.floats, case.ids, case.mask)
    rows = zip(case.ids, case.mask, strict=True)
    expected = tree.stack(case.slope(case.floats, *row) for row in rows)
    close(found, expected)
    whole = tree.merge(case.floats, case.rest)
    again = per_example_grads(
        lambda p, ids, mask: scalar(case.task(p, ids, mask)), whole, case.ids, case.mask,
        chunk_size=2,
    )  # fmt: skip
    if "config" in again:  # where there are no integers, nothing is parted
        again = tree.select(again, lambda path, leaf: True)
    close(again, expected)


def test_derivatives_along_a_direction(case: Case) -> None:
    direction = directions(case.floats)
    slope = case.slope(case.floats, case.ids, case.mask)
    along = jvp(lambda p: case.loss(p, case.ids, case.mask), (case.floats,), (direction,))[1]
    torch.testing.assert_close(along, tree.dot(slope, direction).detach(), rtol=1e-9, atol=1e-9)


def test_hessian_vector_products(case: Case) -> None:
    direction = directions(case.floats)
    gradient = grad(lambda p: case.loss(p, case.ids, case.mask))
    floats = tree.map(lambda x: x.detach().requires_grad_(), case.floats)
    slope = torch.autograd.grad(
        case.dense_loss(floats, case.ids, case.mask), tree.leaves(floats), create_graph=True,
        allow_unused=True, materialize_grads=True,
    )  # fmt: skip
    along = sum((a * b).sum() for a, b in zip(slope, tree.leaves(direction), strict=True))
    found = torch.autograd.grad(
        along, tree.leaves(floats), allow_unused=True, materialize_grads=True
    )
    expected = tree.unflatten(tree.structure(floats), found)
    close(jvp(gradient, (case.floats,), (direction,))[1], expected)
    close(grad(lambda p: tree.dot(gradient(p), direction))(case.floats), expected)


def test_ensembles(case: Case) -> None:
    """Members differ in the floating-point leaves, and share what they have of integers."""
    members = [tree.map(lambda x, i=i: x * (1 + 0.1 * i), case.floats) for i in range(3)]
    found = vmap(case.loss, in_dims=(0, None, None))(tree.stack(members), case.ids, case.mask)
    expected = torch.stack([case.dense_loss(m, case.ids, case.mask) for m in members])
    torch.testing.assert_close(found, expected)
    slopes = vmap(grad(case.loss))(tree.stack(members), case.ids, case.mask)
    rows = zip(members, case.ids, case.mask, strict=True)
    close(slopes, tree.stack(case.slope(*row) for row in rows))


def test_ensembles_of_whole_trees(family: Family) -> None:
    """Integers are stacked as well, and a stacked leaf stands for stacked matrices."""
    for make in KINDS.values():
        members = [make(family, seed=seed) for seed in range(2)]
        ids, mask = make_batch(family)
        task, stacked = next(iter(family.tasks.values())), tree.stack(members)
        found = vmap(task, in_dims=(0, None, None))(stacked, ids, mask)
        expected = tree.stack(task(merge(m), ids, mask) for m in members)
        for a, b in zip(tree.leaves(found), tree.leaves(expected), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        for a, b in zip(
            tree.leaves(merge(stacked)), tree.leaves(tree.stack(map(merge, members))), strict=True
        ):
            torch.testing.assert_close(a, b)


def test_shapes_on_the_meta_device(case: Case) -> None:
    params = tree.merge(case.floats, case.rest)
    found = case.task(tree.to(params, "meta"), case.ids.to("meta"), case.mask.to("meta"))
    for a, b in zip(
        tree.leaves(found), tree.leaves(case.task(params, case.ids, case.mask)), strict=True
    ):
        assert a.device.type == "meta" and a.shape == b.shape and a.dtype == b.dtype


def test_dropout_draws_the_same_bits(case: Case) -> None:
    params = tree.merge(case.floats, case.rest)
    found = case.task(params, case.ids, case.mask, key=random.key(3))
    expected = case.task(merge(params), case.ids, case.mask, key=random.key(3))
    for a, b in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ["adapters", "adapters on 4 bits"])
def test_graphs_of_gradients(family: Family, kind: str) -> None:
    """make_fx traces the leaves away."""
    case = Case(family, KINDS[kind])

    def gradient(floats: Tree, ids: Tensor, mask: Tensor) -> Tree:
        return grad(case.loss)(floats, ids, mask)

    graph = make_fx(gradient)(case.floats, case.ids, case.mask)
    ids, mask = make_batch(family, seed=1)
    close(graph(case.floats, ids, mask), gradient(case.floats, ids, mask))


@pytest.mark.parametrize(
    ("which", "kind"),
    [(GPT2, "two adapters"), (GPT2, "8 bits"), (TRANSFO_XL, "adapters on 4 bits")],
    ids=lambda value: getattr(value, "name", value),
)
def test_compiled_gradients_of_examples(which: Family, kind: str) -> None:
    torch.compiler.reset()
    case = Case(which, KINDS[kind], shallow=True)
    per_example = vmap(grad(case.loss), in_dims=(None, 0, 0))
    compiled = torch.compile(per_example, fullgraph=True, backend="aot_eager")
    arguments = case.floats, case.ids, case.mask
    close(compiled(*arguments), per_example(*arguments))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on CPU needs g++")
@pytest.mark.parametrize("kind", ["two adapters", "8 bits"])
def test_compiled_models_take_leaves_as_arguments(kind: str) -> None:
    """The whole compiler, on one family."""
    torch.compiler.reset()
    params = KINDS[kind](GPT2)
    params = {**params, "blocks": params["blocks"][:1]}
    ids, mask = make_batch(GPT2)
    compiled = torch.compile(lambda p, i, m: gpt2.apply(p, i, mask=m)[0], fullgraph=True)
    torch.testing.assert_close(
        compiled(params, ids, mask), gpt2.apply(params, ids, mask=mask)[0], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_exported_programs_take_leaves_as_arguments(make: Callable[..., Tree]) -> None:
    class Model(nn.Module):
        def forward(self, params: Tree, ids: Tensor) -> Tensor:
            return gpt2.apply(params, ids)[0]

    params, (ids, _) = make(GPT2), make_batch(GPT2)
    program = torch.export.export(Model(), (params, ids), strict=False)
    torch.export.save(program, file := io.BytesIO())
    file.seek(0)
    other = torch.export.load(file).module()
    twice = tree.map(lambda x: 2 * x if x.is_floating_point() else x, params)
    for p in (params, twice):
        torch.testing.assert_close(other(p, ids), gpt2.apply(p, ids)[0], rtol=1e-4, atol=1e-4)


def test_adapters_alone_are_selected(family: Family) -> None:
    params = adapters_on_bits(family)
    paths = [path for path, _ in tree.named_leaves(tree.select(params, is_adapter))]
    assert len(paths) == 2 * len(tree.typed_leaves(params))
