"""A function and its parameters as a module: names, ties, optimizers of torch, and the way back."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, GPT2, Family, make_batch, make_params, scalar, with_heads
from test_leaves_transforms import KINDS
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fnlm import gpt2, random, train, transforms, tree
from fnlm.params.module import as_module, from_module
from fnlm.train.losses import language_model
from fnlm.tree import Tree

IDS, MASK = make_batch(GPT2)
over_families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def loss(params: Tree, ids: Tensor, mask: Tensor | None = None, *, key: Any = None) -> Tensor:
    return language_model(gpt2.apply(params, ids, mask=mask, key=key)[0], ids, mask)


@over_families
def test_it_computes_what_the_function_computes(family: Family) -> None:
    task, params = family.tasks["apply"], make_params(family, dtype=torch.float64)
    ids, mask = make_batch(family)
    module = as_module(task, params)
    for key in (None, random.key(1)):
        found, expected = module(ids, mask=mask, key=key), task(params, ids, mask=mask, key=key)
        for a, b in zip(tree.leaves(found), tree.leaves(expected), strict=True):
            torch.testing.assert_close(a.detach(), b)
    scalar(module(ids, mask)).backward()
    gradient = transforms.grad(lambda p: scalar(task(p, ids, mask)))(params)
    named = dict(module.named_parameters())
    for path, leaf in tree.named_leaves(gradient):
        found = named[path].grad
        torch.testing.assert_close(torch.zeros_like(leaf) if found is None else found, leaf)


@over_families
@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_leaves_have_their_paths_and_the_tree_comes_back(family: Family, make: Any) -> None:
    params = make(family)
    module = as_module(family.module.apply, params)
    leaves = dict(tree.named_leaves(params))
    assert list(leaves) == [path for path, _ in tree.named_leaves(module.params())]
    assert leaves.keys() == module.state_dict().keys()
    floats = {path for path, leaf in leaves.items() if leaf.is_floating_point()}
    assert floats == {name for name, _ in module.named_parameters()}
    assert tree.structure(module.params()) == tree.structure(params)
    for (path, a), b in zip(tree.named_leaves(module.params()), tree.leaves(params), strict=True):
        assert a.equal(b) and a.data_ptr() != b.data_ptr(), path
    assert module.config is params["config"]


def test_the_tree_is_live_and_the_arguments_are_not() -> None:
    params = make_params(GPT2)
    before = params["norm"]["bias"].clone()
    module = as_module(gpt2.apply, params)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(1)
    assert module.params()["norm"]["bias"].equal(before + 1)
    assert params["norm"]["bias"].equal(before)
    assert module.double().params()["norm"]["bias"].dtype == torch.float64


def test_a_leaf_in_two_places_is_one_parameter() -> None:
    table = torch.randn(5, 3)
    params = {"embed": {"table": table}, "output": {"table": table}}
    module = as_module(lambda p, i: p["embed"]["table"][i] @ p["output"]["table"].mT, params)
    assert sum(p.numel() for p in module.parameters()) == table.numel()
    module(torch.tensor(2)).sum().backward()
    found = module.params()
    assert found["embed"]["table"] is found["output"]["table"]
    expected = transforms.grad(lambda t: (t[2] @ t.mT).sum())(table)
    torch.testing.assert_close(found["embed"]["table"].grad, expected)


def test_torchs_adamw_steps_as_ours() -> None:
    params = with_heads(GPT2, (), torch.float64)  # torch's leaves parameters without gradient alone
    module = as_module(loss, params)
    theirs = torch.optim.AdamW(module.parameters(), lr=0.03, weight_decay=0.1)
    ours = train.adamw(0.03, weight_decay=0.1, decay=lambda path, leaf: True)
    state = ours.init(params)
    for number in range(3):
        key = random.fold_in(random.key(2), number)
        theirs.zero_grad()
        module(IDS, MASK, key=key).backward()
        theirs.step()
        gradient = transforms.grad(lambda p, k=key: loss(p, IDS, MASK, key=k))(params)
        params, state = ours.update(gradient, state, params)
    for (path, a), b in zip(tree.named_leaves(module.params()), tree.leaves(params), strict=True):
        torch.testing.assert_close(a.detach(), b, rtol=1e-9, atol=1e-10, msg=path)


def test_state_dicts_go_round() -> None:
    module, other = (as_module(gpt2.apply, make_params(GPT2, seed=seed)) for seed in (0, 1))
    other.load_state_dict(module.state_dict())
    assert other(IDS)[0].equal(module(IDS)[0])
    other.load_state_dict(dict(tree.named_leaves(make_params(GPT2, seed=2))))
    assert other(IDS)[0].equal(gpt2.apply(make_params(GPT2, seed=2), IDS)[0])
    with pytest.raises(RuntimeError, match=r"norm\.bias"):
        module.load_state_dict({k: v for k, v in module.state_dict().items() if k != "norm.bias"})


def test_a_model_is_saved_from_the_module(tmp_path: Path) -> None:
    module = as_module(gpt2.apply, make_params(GPT2))
    gpt2.save(module.params(), tmp_path / "model")
    again = gpt2.load(tmp_path / "model", heads=gpt2.HEADS)
    assert gpt2.apply(again, IDS)[0].equal(module(IDS)[0])


def test_a_copy_is_a_module_of_its_own() -> None:
    module = as_module(gpt2.apply, make_params(GPT2))
    other, expected = copy.deepcopy(module), module(IDS)[0]
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert module(IDS)[0].equal(expected) and not other(IDS)[0].any()


def test_modes_change_nothing_and_frozen_parameters_have_no_gradient() -> None:
    module = as_module(loss, make_params(GPT2))
    assert module.train()(IDS).equal(module.eval()(IDS))
    module.get_submodule("embed").requires_grad_(False)
    module(IDS).backward()
    embed = [p.grad is None for name, p in module.named_parameters() if name.startswith("embed")]
    assert all(embed) and module.params()["norm"]["bias"].grad is not None


def test_from_module_is_the_way_back() -> None:
    params = make_params(GPT2)
    apply, again = from_module(as_module(gpt2.apply, params))
    assert tree.structure({"config": params["config"], **again}) == tree.structure(params)
    assert apply(again, IDS)[0].equal(gpt2.apply(params, IDS)[0])


def test_transforms_reach_through_functional_call() -> None:
    params = make_params(GPT2, dtype=torch.float64)
    module = as_module(loss, params)
    flat = dict(tree.named_leaves(params))
    found = vmap(torch.func.grad(lambda p, i: functional_call(module, p, (i,))), in_dims=(None, 0))(
        flat, IDS
    )
    expected = vmap(torch.func.grad(loss), in_dims=(None, 0))(params, IDS)
    for path, leaf in tree.named_leaves(expected):
        torch.testing.assert_close(found[path], leaf)


def test_parametrizations_of_torch_apply() -> None:
    module = as_module(lambda p, x: x @ p["up"]["weight"], {"up": {"weight": torch.ones(2, 2)}})

    class Double(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    nn.utils.parametrize.register_parametrization(module.get_submodule("up"), "weight", Double())
    assert module(torch.ones(2)).equal(torch.full((2,), 4.0))


def test_compiled() -> None:
    torch.compiler.reset()
    module = as_module(loss, make_params(GPT2))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(IDS, MASK), module(IDS, MASK))
    torch.compiler.reset()


@pytest.mark.parametrize("name", ["forward", "params", "half", ""])
def test_a_key_that_is_no_attribute_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}' can't be part of a module"):
        as_module(lambda params: params, {name: torch.ones(2)})
    with pytest.raises(ValueError, match=f"'{name}.a' can't be part of a module"):
        as_module(lambda params: params, {name: {"a": torch.ones(2)}})
