"""Every family can be traced, linearized and exported, with parameters and states as arguments.

Tracing takes seconds: the gate traces with one state of each family, FNLM_TEST_FULL=1 with all.
"""

import dataclasses
import io
import os
from typing import Any

import pytest
import torch
from families import BERT, FAMILIES, GPT2, TRANSFO_XL, Family, make_batch, make_params
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from fnlm import bert, gpt, gpt2, transfo_xl, tree

each = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def outputs(family: Family, params: Any, ids: Tensor, state: Any) -> Any:
    """What a family computes, state and all."""
    if family is BERT:
        return bert.pretraining(params, ids, ids % 2, ids > 3)
    if family is TRANSFO_XL:
        losses, _ = transfo_xl.negative_log_likelihood(params, ids, ids, state)
        return losses, transfo_xl.apply(params, ids, state)
    made = family.module.apply(params, ids, state)
    if not family.module.HEADS:
        return made
    choices = torch.stack([ids, ids], -2)
    return made, family.module.double_heads(params, choices, torch.ones_like(choices[..., 0]))


def states(family: Family, params: Any, ids: Tensor) -> list[Any]:
    if family is BERT:
        return [None]
    if family is TRANSFO_XL:
        return [family.module.init_mems(params, len(ids), empty=True), None]
    _, cache = family.module.apply(params, ids)
    return [cache, None, family.module.init_cache(params, len(ids), 9)]


def traced_states(family: Family, params: Any, ids: Tensor) -> list[Any]:
    return states(family, params, ids)[: None if os.environ.get("FNLM_TEST_FULL") else 1]


def small(family: Family) -> Any:
    """Parameters of one block: tracing takes a time in proportion."""
    depth = {family.module.Config.depth: 1}
    return make_params(family._replace(config=dataclasses.replace(family.config, **depth)))


def close(found: Any, expected: Any) -> None:
    for x, y in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")  # torch's own
@each
def test_make_fx_and_linearize_compute_the_same(family: Family) -> None:
    params = tree.cast(small(family), torch.float64)  # what is traced rounds otherwise
    ids, _ = make_batch(family, rows=2, length=3)
    structure, flat = tree.structure(params), tree.leaves(params)
    tangents = [torch.ones_like(x) for x in flat]
    for state in traced_states(family, params, ids):

        def run(*leaves: Tensor, state: Any = state) -> list[Tensor]:
            made = outputs(family, tree.unflatten(structure, leaves), ids, state)
            return [x for x in tree.leaves(made) if x.is_floating_point()]

        close(make_fx(run)(*flat)(*flat), run(*flat))
        value, push = torch.func.linearize(run, *flat)
        close(value, run(*flat))
        close(push(*tangents), torch.func.jvp(run, tuple(flat), tuple(tangents))[1])


class Model(nn.Module):
    def __init__(self, family: Family) -> None:
        super().__init__()
        self.family = family

    def forward(self, params: Any, ids: Tensor, state: Any) -> Any:
        return outputs(self.family, params, ids, state)


@each
def test_exported_saved_and_loaded_programs_compute_the_same(family: Family) -> None:
    params = small(family)
    ids, _ = make_batch(family, rows=2, length=4)
    for state in traced_states(family, params, ids):
        program = torch.export.export(Model(family), (params, ids, state))
        torch.export.save(program, file := io.BytesIO())
        file.seek(0)
        loaded = torch.export.load(file).module()
        found, expected = (run(params, ids, state) for run in (loaded, Model(family)))
        close(found, expected)
        assert tree.structure(found) == tree.structure(expected)


@each
def test_params_and_states_go_through_torch_save(family: Family) -> None:
    """A plain torch.load, which takes no class that it does not know."""
    params = small(family)
    ids, _ = make_batch(family, rows=2, length=4)
    for state in states(family, params, ids):
        torch.save((params, state), file := io.BytesIO())
        file.seek(0)
        loaded = torch.load(file)
        assert loaded[0]["config"] == params["config"]
        assert tree.structure(loaded) == tree.structure((params, state))
        close(loaded, (params, state))


def test_a_config_in_a_pickle_is_checked() -> None:
    params = make_params(GPT2)
    state = dict(vars(params["config"])) | {"n_head": "3"}
    with pytest.raises(ValueError, match="n_head must be an integer"):
        gpt2.Config().__setstate__(state)
    assert gpt.Config() == torch.load(_saved(gpt.Config()))


def _saved(value: Any) -> io.BytesIO:
    torch.save(value, file := io.BytesIO())
    file.seek(0)
    return file
