"""Any module as a function of a tree: ties, buffers, transforms, optimizers, and the peer."""

import copy
from typing import Any

import pytest
import torch
from families import GPT2, make_batch, make_params
from peers import hf, quiet
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional as F

from fnlm import gpt2, random, train, transforms, tree
from fnlm.params import _rename
from fnlm.params.module import from_module
from fnlm.params.names.gpt2 import FAMILY


class Words(nn.Module):
    """A small language model of a user's own: layer norm, dropout, a buffer, a tied embedding."""

    bias: Tensor

    def __init__(self, words: int = 11, width: int = 6) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.norm = nn.LayerNorm(width, eps=1e-3)
        self.inner = nn.Sequential(nn.Linear(width, 5), nn.GELU(), nn.Linear(5, width))
        self.dropout = nn.Dropout(0.5)
        self.out = nn.Linear(width, words, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("bias", torch.randn(words))

    def forward(self, ids: Tensor, scale: float = 1.0) -> Tensor:
        x = self.norm(self.embed(ids))
        return scale * self.out(self.dropout(x + self.inner(x))) + self.bias


IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3], [5, 8, 9, 7, 10]])


def picture(module: nn.Module) -> list[Tensor]:
    return [x.detach().clone() for x in module.state_dict().values()]


def unchanged(module: nn.Module, before: list[Tensor]) -> bool:
    pairs = zip(module.state_dict().values(), before, strict=True)
    return all(a.equal(b) for a, b in pairs) and all(p.grad is None for p in module.parameters())


def make_loss(apply: Any) -> Any:
    def loss(params: Any, ids: Tensor) -> Tensor:
        return train.losses.language_model(apply(params, ids), ids)

    return loss


def close(a: Any, b: Any, tolerance: float = 1e-5) -> None:
    assert tree.structure(a) == tree.structure(b)
    for (path, x), y in zip(tree.named_leaves(a), tree.leaves(b), strict=True):
        scale = y.abs().max().clamp(min=1).item()
        error = (x - y).abs().max().item()
        assert x.shape == y.shape and error <= tolerance * scale, f"{path}: off by {error}"


def test_it_computes_what_the_module_computes() -> None:
    module = Words().eval()
    apply, params = from_module(module)
    assert apply(params, IDS).equal(module(IDS))
    assert apply(params, IDS, scale=0.3).equal(module(IDS, scale=0.3))


def test_parameters_are_a_tree_with_ties_as_one_leaf_and_tuples_for_layers() -> None:
    module = Words()
    _, params = from_module(module)
    assert tree.count(params) == sum(p.numel() for p in module.parameters())
    assert sorted(params) == ["embed", "inner", "norm"]  # no "out": it is tied to "embed"
    assert set(dict(tree.named_leaves(params))) == {n for n, _ in module.named_parameters()}


def test_a_tied_leaf_acts_in_both_places_and_collects_both_gradients() -> None:
    module = Words().eval()
    apply, params = from_module(module)
    gradient = grad(make_loss(apply))(params, IDS)
    train.losses.language_model(module(IDS), IDS).backward()
    for name, p in module.named_parameters():
        torch.testing.assert_close(dict(tree.named_leaves(gradient))[name], p.grad)
    doubled = tree.map_with_path(lambda path, x: x * 2 if path == "embed.weight" else x, params)
    with torch.no_grad():
        module.embed.weight.mul_(2)
    assert apply(doubled, IDS).equal(module(IDS))


def test_the_tree_and_the_buffers_are_copies() -> None:
    module = Words().eval()
    apply, params = from_module(module)
    expected = apply(params, IDS)
    with torch.no_grad():
        for x in (*module.parameters(), *module.buffers()):
            x.fill_(7)
    assert apply(params, IDS).equal(expected)
    assert not any(x.requires_grad for x in tree.leaves(params))


def test_nothing_of_the_module_is_written() -> None:
    module = Words().eval()
    before = picture(module)
    apply, params = from_module(module)
    vmap(grad(make_loss(apply)), in_dims=(None, 0))(params, IDS)
    apply(tree.map(lambda x: x + 1, params), IDS)
    assert unchanged(module, before)


def test_per_example_gradients_equal_the_loop() -> None:
    apply, params = from_module(Words().eval())
    loss = make_loss(apply)
    loop = tree.stack([grad(loss)(params, ids) for ids in IDS])
    close(vmap(grad(loss), in_dims=(None, 0))(params, IDS), loop)
    close(transforms.per_example_grads(loss, params, IDS, chunk_size=2), loop)
    norms = torch.stack([tree.norm(g) for g in tree.unstack(loop)])
    torch.testing.assert_close(transforms.per_example_norms(loss, params, IDS), norms)


def test_an_ensemble_and_directional_derivatives() -> None:
    apply, params = from_module(Words().eval())
    members = [tree.map(lambda x, i=i: x * (1 + i), params) for i in range(3)]
    together = vmap(apply, in_dims=(0, None))(tree.stack(members), IDS)
    torch.testing.assert_close(together, torch.stack([apply(p, IDS) for p in members]))
    tangent = tree.map(torch.ones_like, params)
    loss = make_loss(apply)
    along = jvp(lambda p: loss(p, IDS), (params,), (tangent,))[1]
    total = sum(g.sum() for g in tree.leaves(grad(loss)(params, IDS)))
    torch.testing.assert_close(along, total)


def test_it_trains_as_torch_trains_the_module() -> None:
    """The tree under `fnlm.train.adamw` and the module under `torch.optim.AdamW` stay together."""
    module = Words().eval()
    apply, params = from_module(module)
    optimizer = train.adamw(0.02, weight_decay=0.1)
    step = train.train_step(lambda p, ids, *, key: make_loss(apply)(p, ids), optimizer)
    state = train.init_state(params, optimizer, random.key(0))
    peer = torch.optim.AdamW(module.parameters(), lr=0.02, weight_decay=0.1)
    first = None
    for _ in range(30):
        state, metrics = step(state, IDS)
        first = metrics.loss if first is None else first
        peer.zero_grad()
        loss = train.losses.language_model(module(IDS), IDS)
        loss.backward()
        peer.step()
    assert first is not None and metrics.loss < 0.5 * first
    torch.testing.assert_close(metrics.loss, loss.detach(), atol=1e-5, rtol=1e-5)
    for name, p in module.named_parameters():
        found = dict(tree.named_leaves(state.params))[name]
        torch.testing.assert_close(found, p.detach(), atol=1e-4, rtol=1e-4)


def test_batch_norm_in_evaluation_works_and_in_training_is_an_error() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    x = torch.randn(5, 4)
    apply, params = from_module(copy.deepcopy(module).eval())
    assert apply(params, x).equal(copy.deepcopy(module).eval()(x))
    per_row = vmap(grad(lambda p, row: apply(p, row[None]).square().sum()), (None, 0))(params, x)
    assert tree.leaves(per_row)[0].shape == (5, 3, 4)
    before = picture(module)
    apply, params = from_module(module.train())
    for call in (lambda: apply(params, x), lambda: grad(lambda p: apply(p, x).sum())(params)):
        with pytest.raises(
            ValueError, match=r"wrote into its parameters or buffers 1\..*call module\.eval\(\)"
        ):
            call()
    assert unchanged(module, before)


def test_a_refused_call_leaves_no_trace_in_later_ones() -> None:
    """Batch norm moved its running mean before the write was noticed; the next call reads none."""
    module, x = nn.BatchNorm1d(3).train(), torch.randn(5, 3)
    expected = copy.deepcopy(module).eval()(x)
    apply, params = from_module(module)
    with pytest.raises(ValueError, match="wrote into"):
        apply(params, x)
    module.eval()
    assert apply(params, x).equal(expected)


def test_the_peer_run_this_way_equals_the_family_with_gradients_over_trees() -> None:
    """`transformers`' GPT-2 as a function of a tree: logits and gradients are those of ours."""
    params = make_params(GPT2)
    params = {name: leaf for name, leaf in params.items() if name != "heads"}
    config = {k: v for k, v in GPT2.config.to_dict().items() if k != "extra"}
    with quiet():
        module = hf().GPT2LMHeadModel(hf().GPT2Config(**config, attn_implementation="eager"))
    apply, theirs = from_module(module.eval())
    ids, mask = make_batch(GPT2, rows=1)
    ours = {name: leaf for name, leaf in params.items() if name != "config"}
    filled = _rename.nest(_rename.to_foreign(ours, FAMILY.dialects[0]))
    assert set(dict(tree.named_leaves(filled))) == set(dict(tree.named_leaves(theirs)))

    def peer_loss(params: Any, ids: Tensor) -> Tensor:
        logits = apply(params, input_ids=ids, use_cache=False).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    def loss(params: Any, ids: Tensor) -> Tensor:
        return train.losses.language_model(gpt2.apply(params, ids)[0], ids)

    torch.testing.assert_close(
        apply(filled, input_ids=ids).logits, gpt2.apply(params, ids)[0], atol=1e-5, rtol=1e-5
    )
    gradient = {k: v for k, v in grad(loss)(params, ids).items() if k != "config"}
    expected = grad(peer_loss)(filled, ids)
    flat = _rename.to_foreign(gradient, FAMILY.dialects[0])
    for name, leaf in tree.named_leaves(expected):
        torch.testing.assert_close(flat[name], leaf, atol=1e-5, rtol=1e-4, msg=name)


def test_it_is_functional_call_over_a_nested_tree() -> None:
    module = Words().eval()
    apply, params = from_module(module)
    moved = tree.map(lambda x: x - 0.1, params)
    flat = dict(tree.named_leaves(moved)) | {"bias": module.bias}
    assert apply(moved, IDS).equal(functional_call(module, flat, (IDS,)))


class Pipeline(nn.Module):
    """A module that writes into its weight: openly, or behind the back of version counters."""

    def __init__(self, write: str) -> None:
        super().__init__()
        self.weight, self.write = nn.Parameter(torch.ones(3)), write

    def forward(self, x: Tensor) -> Tensor:
        if self.write == "data":
            self.weight.data.mul_(2)
        else:
            with torch.no_grad():
                self.weight.mul_(2)
        return x * self.weight


@pytest.mark.parametrize("write", ["max_norm", "in place", "data"])
def test_no_module_writes_into_the_tree_that_it_is_given(write: str) -> None:
    module = nn.Embedding(4, 3, max_norm=1.0) if write == "max_norm" else Pipeline(write)
    x = torch.tensor([1, 2]) if write == "max_norm" else torch.ones(3)
    before = picture(module)
    apply, params = from_module(module)
    params = tree.map(lambda leaf: leaf * 10, params)
    kept = params["weight"].clone()
    for call in (apply, lambda p, x: grad(lambda p: apply(p, x).sum())(p)):
        if write == "data":  # nothing tells, and nothing is changed
            assert call(params, x).equal(call(params, x)) if call is apply else call(params, x)
        else:
            with pytest.raises(ValueError, match=r"wrote into .* weight, which .*max_norm"):
                call(params, x)
    assert params["weight"].equal(kept)
    assert unchanged(module, before)


def test_frozen_parameters_stay_frozen() -> None:
    """They are constants of the function, as they were when it was made."""
    module = Words().eval()
    module.embed.weight.requires_grad_(False)
    module.inner.requires_grad_(False)
    expected = module(IDS)
    apply, params = from_module(module)
    assert sorted(dict(tree.named_leaves(params))) == ["norm.bias", "norm.weight"]
    with torch.no_grad():
        module.embed.weight.fill_(7)
    assert apply(params, IDS).equal(expected)
    assert grad(make_loss(apply))(params, IDS)["norm"]["weight"].abs().sum() > 0


def test_a_tree_that_is_not_the_modules_is_refused() -> None:
    """A leaf that is missing would be the module's own, a leaf too many would count for nothing."""
    apply, params = from_module(nn.Linear(2, 3))
    x = torch.ones(4, 2)
    with pytest.raises(ValueError, match=r"\['bias'\] missing, none too many"):
        apply({"weight": params["weight"]}, x)
    with pytest.raises(ValueError, match=r"\['bias'\] missing, \['bais'\] too many"):
        apply({"weight": params["weight"], "bais": params["bias"]}, x)
