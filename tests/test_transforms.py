"""Every transform of torch.func, on every variant of every family, with default arguments.

Warnings are errors (pyproject.toml), so no slow fallback of vmap can hide here.
"""

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import FAMILIES, IDS, VARIANTS, Family, make_batch, make_params, scalar
from torch import Tensor
from torch.func import grad, jvp, vmap

from fnlm import random, tree

Tree = Any


@pytest.fixture(params=VARIANTS, ids=IDS)
def variant(request: pytest.FixtureRequest) -> tuple[Family, Callable[..., Any]]:
    family, name = request.param
    return family, family.tasks[name]


def close(a: Tree, b: Tree, tolerance: float = 1e-5) -> None:
    """Compare trees leaf by leaf, relative to the size of each leaf."""
    assert tree.structure(a) == tree.structure(b)
    for (path, x), y in zip(tree.named_leaves(a), tree.leaves(b), strict=True):
        scale = y.abs().max().clamp(min=1).item()
        assert x.dtype == y.dtype and x.shape == y.shape, path
        assert (x - y).abs().max() <= tolerance * scale, path


def make_loss(task: Callable[..., Any]) -> Callable[..., Tensor]:
    def loss(params: Tree, ids: Tensor, mask: Tensor, key: Any = None) -> Tensor:
        return scalar(task(params, ids, mask, key=key))

    return loss


def make_tangent(params: Tree, seed: int = 5) -> Tree:
    keys = iter(random.split(random.key(seed), len(tree.leaves(params))))
    return tree.map(lambda x: random.normal(next(keys), tuple(x.shape), x.dtype), params)


def dot(a: Tree, b: Tree) -> Tensor:
    return sum((x * y).sum() for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True))


def test_grad_equals_a_finite_difference(variant: Any) -> None:
    family, task = variant
    params, loss = make_params(family, dtype=torch.float64), make_loss(task)
    ids, mask = make_batch(family)
    tangent, h = make_tangent(params), 1e-5

    def at(t: float) -> Tensor:
        return loss(tree.map(lambda x, d: x + t * d, params, tangent), ids, mask)

    slope = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    torch.testing.assert_close(
        dot(grad(loss)(params, ids, mask), tangent), slope, rtol=1e-7, atol=1e-7
    )


def test_vmap_over_examples_with_masks_equals_the_batch(variant: Any) -> None:
    family, task = variant
    params, (ids, mask) = make_params(family), make_batch(family)
    close(vmap(task, in_dims=(None, 0, 0))(params, ids, mask), task(params, ids, mask))


def test_vmap_over_ids_alone(variant: Any) -> None:
    family, task = variant
    params, (ids, _) = make_params(family), make_batch(family)
    close(vmap(task, in_dims=(None, 0))(params, ids), task(params, ids))


def test_vmap_over_masks_alone(variant: Any) -> None:
    family, task = variant
    params, (ids, mask) = make_params(family), make_batch(family)
    rows = [task(params, ids[0], m) for m in mask]
    close(vmap(task, in_dims=(None, None, 0))(params, ids[0], mask), tree.stack(rows))


def test_per_example_gradients_equal_the_loop(variant: Any) -> None:
    family, task = variant
    params, loss, (ids, mask) = make_params(family), make_loss(task), make_batch(family)
    together = vmap(grad(loss), in_dims=(None, 0, 0))(params, ids, mask)
    loop = tree.stack([grad(loss)(params, i, m) for i, m in zip(ids, mask, strict=True)])
    close(together, loop)


def test_jvp_equals_the_gradient_along_the_tangent(variant: Any) -> None:
    family, task = variant
    params, loss = make_params(family, dtype=torch.float64), make_loss(task)
    ids, mask = make_batch(family)
    tangent = make_tangent(params)
    along = jvp(lambda p: loss(p, ids, mask), (params,), (tangent,))[1]
    torch.testing.assert_close(along, dot(grad(loss)(params, ids, mask), tangent))


def test_both_hessian_vector_products_equal_a_finite_difference(variant: Any) -> None:
    family, task = variant
    params, loss = make_params(family, dtype=torch.float64), make_loss(task)
    ids, mask = make_batch(family)
    tangent, h = make_tangent(params), 1e-5
    gradient = grad(lambda p: loss(p, ids, mask))
    forward_over_reverse = jvp(gradient, (params,), (tangent,))[1]
    reverse_over_reverse = grad(lambda p: dot(gradient(p), tangent))(params)
    close(forward_over_reverse, reverse_over_reverse, 1e-9)

    def moved(t: float) -> Tree:
        return gradient(tree.map(lambda x, d: x + t * d, params, tangent))

    difference = tree.map(lambda a, b: (a - b) / (2 * h), moved(h), moved(-h))
    close(forward_over_reverse, difference, 1e-6)


def test_vmap_over_stacked_parameters_equals_the_loop(variant: Any) -> None:
    family, task = variant
    members = [make_params(family, seed=s) for s in range(3)]
    ids, mask = make_batch(family)
    outputs = vmap(task, in_dims=(0, None, None))(tree.stack(members), ids, mask)
    close(outputs, tree.stack([task(p, ids, mask) for p in members]))


def test_vmap_over_stacked_parameters_and_examples(variant: Any) -> None:
    family, task = variant
    members, loss = [make_params(family, seed=s) for s in range(3)], make_loss(task)
    ids, mask = make_batch(family)
    gradients = vmap(grad(loss))(tree.stack(members), ids, mask)
    loop = [grad(loss)(p, i, m) for p, i, m in zip(members, ids, mask, strict=True)]
    close(gradients, tree.stack(loop))


def test_dropout_under_vmap_equals_the_loop_bit_for_bit(variant: Any) -> None:
    """Every dropout mask has the same bits in a loop, under vmap and with a batch of keys.

    Products round differently when batched, so the model runs in float64 and the results are
    compared bit for bit in float32.
    """
    family, task = variant
    params, (ids, mask) = make_params(family, dtype=torch.float64), make_batch(family)
    keys = random.split(random.key(3), len(ids))

    def run(ids: Tensor, mask: Tensor, key: Tensor) -> Any:
        return tree.cast(task(params, ids, mask, key=key), torch.float32)

    loop = tree.stack([run(*row) for row in zip(ids, mask, keys, strict=True)])
    plain = tree.cast(task(params, ids, mask), torch.float32)
    for a, b, c, d in zip(
        *map(tree.leaves, (vmap(run)(ids, mask, keys), run(ids, mask, keys), loop, plain)),
        strict=True,
    ):
        assert a.equal(c) and b.equal(c)
        assert (a - d).abs().max() > 1e-2  # dropout was on


def test_dropout_gradient_equals_the_loop(variant: Any) -> None:
    family, task = variant
    params, loss, (ids, mask) = make_params(family), make_loss(task), make_batch(family)
    keys = random.split(random.key(3), len(ids))
    together = vmap(grad(loss), in_dims=(None, 0, 0, 0))(params, ids, mask, keys)
    loop = [grad(loss)(params, i, m, k) for i, m, k in zip(ids, mask, keys, strict=True)]
    close(together, tree.stack(loop))


@pytest.fixture
def fresh_compiler() -> None:
    """Forget what was compiled: variants share code, and torch compiles the same code 8 times."""
    torch.compiler.reset()


def shallow(params: Tree) -> Tree:
    """Keep one block: the compiler's time grows with depth, and every block is the same code."""
    return {**params, "blocks": params["blocks"][:1]}


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on CPU needs g++")
def test_compile_equals_eager(variant: Any) -> None:
    family, task = variant
    params, (ids, mask) = shallow(make_params(family)), make_batch(family)
    compiled = torch.compile(task, fullgraph=True)
    close(compiled(params, ids, mask), task(params, ids, mask))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_compile_of_per_example_gradients_equals_eager(family: Family) -> None:
    """One variant of each family, and the compiler's front half, which traces and differentiates.

    Its code generator, and the other variants, are tested above.
    """
    params, loss = shallow(make_params(family)), make_loss(next(iter(family.tasks.values())))
    ids, mask = make_batch(family)
    per_example = vmap(grad(loss), in_dims=(None, 0, 0))
    compiled = torch.compile(per_example, fullgraph=True, backend="aot_eager")
    close(compiled(params, ids, mask), per_example(params, ids, mask))


def test_meta_device_gives_shapes_without_memory(variant: Any) -> None:
    family, task = variant
    params, (ids, mask) = make_params(family), make_batch(family)
    shapes = task(tree.to(params, "meta"), ids.to("meta"), mask.to("meta"))
    for a, b in zip(tree.leaves(shapes), tree.leaves(task(params, ids, mask)), strict=True):
        assert a.device.type == "meta" and a.shape == b.shape and a.dtype == b.dtype
