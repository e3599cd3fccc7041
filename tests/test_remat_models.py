"""Models that recompute their blocks: the same numbers, the same dropout, less memory."""

import inspect
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from allocations import peak_bytes
from compositions import Function, compose, error
from families import CAUSAL, FAMILIES, IDS, VARIANTS, Family, make_batch, make_params, scalar
from torch import Tensor

from fnlm import random, transforms, tree
from fnlm.tree import Tree

over_variants = pytest.mark.parametrize(("family", "task"), VARIANTS, ids=IDS)
over_families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
KEYS = [None, random.key(3)]
# Their results leave the blocks in several places, so that gradients add up in another order.
BRANCHED = {("bert", "layers"), ("transfo_xl", "apply")}


@over_variants
@pytest.mark.parametrize("key", KEYS, ids=["", "dropout"])
def test_values_and_gradients_are_the_same_bit_for_bit(
    family: Family, task: str, key: Tensor | None
) -> None:
    params, (ids, mask) = make_params(family), make_batch(family)

    def results(params: Tree, remat: bool) -> Any:
        return family.tasks[task](params, ids, mask, key=key, remat=remat)

    for a, b in zip(*(tree.leaves(results(params, remat)) for remat in (True, False)), strict=True):
        assert a.equal(b)
    gradient = transforms.grad(lambda p, remat: scalar(results(p, remat)))
    for (path, a), b in zip(
        tree.named_leaves(gradient(params, True)), tree.leaves(gradient(params, False)), strict=True
    ):
        if (family.name, task) in BRANCHED:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=path)
        else:
            assert a.equal(b), path


COMPOSITIONS = [
    ("jvp", "grad"), ("grad", "grad"), ("grad", "jvp"), ("vmap", "grad"), ("vmap", "jvp", "grad"),
    ("grad", "vmap", "grad"), ("jvp", "jvp", "grad"), ("hessian",), ("autograd", "grad"),
]  # fmt: skip


@over_families
def test_derivatives_of_higher_order(family: Family) -> None:
    params = make_params(family, dtype=torch.float64)
    ids, mask = make_batch(family, 2, 5)
    keys = iter(random.split(random.key(0), 3 * len(tree.leaves(params))))
    along = [
        tree.map(lambda x: 0.1 * random.normal(next(keys), tuple(x.shape), x.dtype), params)
        for _ in range(3)
    ]

    def h(remat: bool) -> Function:
        def call(p: Tree, i: Tensor) -> Tensor:
            rows = (x.index_select(0, i[None]) for x in (ids, mask))
            return scalar(family.tasks["apply"](p, *rows, key=random.key(1), remat=remat))

        return call

    for names in COMPOSITIONS:
        found, expected = (
            compose(h(remat), names, along[: len(names)])(params, torch.tensor(1))
            for remat in (True, False)
        )
        assert error(found, expected) < 1e-10, " of ".join(names)


@pytest.mark.parametrize("family", CAUSAL, ids=lambda family: family.name)
def test_through_a_state(family: Family) -> None:
    """What was read before has derivatives through recomputed blocks, too."""
    params, (ids, _) = make_params(family, dtype=torch.float64), make_batch(family)
    options = {"detach": False} if family.takes("detach") else {}

    def loss(params: Tree, remat: bool) -> Tensor:
        how = {"remat": remat, **options}
        first, state = family.module.apply(params, ids[:, :3], **how)
        return scalar((first, family.module.apply(params, ids[:, 3:], state, **how)[0]))

    found, expected = (transforms.grad(loss)(params, remat) for remat in (True, False))
    assert error(found, expected) < 1e-10


@over_families
@pytest.mark.parametrize("gradient", [torch.func.grad, transforms.grad], ids=["torch", "fnlm"])
def test_memory_is_that_of_one_block(family: Family, gradient: Any) -> None:
    """Of six blocks, by the bytes that tensors hold at most."""
    config = replace(family.config, **{family.config.depth: 6})
    params = make_params(family._replace(config=config))
    ids, _ = make_batch(family, 8, 20)

    def loss(params: Tree, remat: bool) -> Tensor:
        return scalar(tree.leaves(family.module.hidden_states(params, ids, remat=remat))[0])

    ours, plain = (peak_bytes(partial(gradient(loss), params, remat)) for remat in (True, False))
    assert 2 * ours < plain, (ours, plain)


@over_families
def test_every_function_of_parameters_and_ids_has_the_switch(family: Family) -> None:
    found = 0
    for name in family.module.__all__:
        function = getattr(family.module, name)
        arguments = inspect.signature(function).parameters if inspect.isfunction(function) else {}
        if {"params", "ids"} <= arguments.keys():
            remat = arguments["remat"]
            assert remat.default is False and remat.kind is inspect.Parameter.KEYWORD_ONLY, name
            found += 1
    assert found >= 3
