"""Gradients of single examples equal those of a loop over examples."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from families import FAMILIES, Family, scalar
from families import make_batch as make_family_batch
from families import make_params as make_family_params
from torch import Tensor
from torch.func import grad, jacfwd, jvp, vmap

from fnlm import gpt2, random, tree
from fnlm.train.losses import cross_entropy, language_model, multiple_choice
from fnlm.transforms import per_example_grads, per_example_norms
from fnlm.tree import Tree

B = 5


@tree.register_constant
@dataclass(frozen=True)
class Config:
    rate: float = 0.1


def make_params() -> Tree:
    """A tied token table, a position table, a layer, and a config."""
    keys = random.split(random.key(0), 4)
    return {
        "config": Config(),
        "embed": {
            "token": random.normal(keys[0], (11, 6)),
            "position": random.normal(keys[1], (8, 6)),
        },
        "blocks": (
            {"weight": random.normal(keys[2], (6, 6)), "bias": random.normal(keys[3], (6,))},
        ),
    }


def loss(params: Tree, ids: Tensor, mask: Tensor, key: Tensor) -> Tensor:
    """A small language model with tied embeddings and dropout, on ids [..., T]."""
    x = params["embed"]["token"][ids] + params["embed"]["position"][: ids.shape[-1]]
    x = x * random.bernoulli(key, 1 - params["config"].rate, x.shape)
    x = torch.tanh(x @ params["blocks"][0]["weight"] + params["blocks"][0]["bias"])
    return language_model(x.cumsum(-2) @ params["embed"]["token"].T, ids, mask)


def make_batch() -> tuple[Tensor, Tensor, Tensor]:
    """Ids with padding on either side (a row without any, one all padding) and a key a row."""
    ids = (random.uniform(random.key(3), (B, 7)) * 11).long()
    lengths = [(0, 7), (2, 7), (0, 4), (3, 5), (0, 0)]
    mask = torch.stack([(torch.arange(7) >= a) & (torch.arange(7) < b) for a, b in lengths])
    return ids, mask, random.split(random.key(4), B)


def loop(loss: Callable[..., Tensor], params: Tree, *batch: Any) -> Tree:
    size = tree.leaves(batch)[0].shape[0]
    examples = [tree.map(lambda x, i=i: x[i], batch) for i in range(size)]
    return tree.stack([grad(loss)(params, *example) for example in examples])


def assert_equal_trees(a: Tree, b: Tree) -> None:
    assert tree.structure(a) == tree.structure(b)
    for (path, x), y in zip(tree.named_leaves(a), tree.leaves(b), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6, msg=partial("{}: {}".format, path))


@pytest.mark.parametrize("chunk_size", [None, 1, 2, 3, 5, 9])
def test_equals_the_loop_for_any_chunk_size(chunk_size: int | None) -> None:
    params, batch = make_params(), make_batch()
    together = per_example_grads(loss, params, *batch, chunk_size=chunk_size)
    assert together["config"] == params["config"]
    assert_equal_trees(together, loop(loss, params, *batch))
    assert all((leaf[-1] == 0).all() for leaf in tree.leaves(together))  # the row of padding
    assert all((leaf[0] != 0).any() for leaf in tree.leaves(together))


def test_a_loss_that_encloses_a_tracked_tensor() -> None:
    """Plain autograd differentiates the gradients by it, as it does those of `vmap`."""
    w, x = (random.normal(random.key(s), (n, 3), torch.float64) for s, n in ((0, 3), (1, B)))
    scale = random.normal(random.key(2), (3,), torch.float64).requires_grad_()

    def loss(w: Tensor, x: Tensor) -> Tensor:
        return ((x @ w) * scale).sin().sum()

    each = vmap(grad(loss), (None, 0))(w, x)
    found = per_example_grads(loss, w, x, chunk_size=2)
    torch.testing.assert_close(found, each, rtol=1e-12, atol=1e-12)
    slopes = [torch.autograd.grad(g.square().sum(), scale)[0] for g in (found, each)]
    torch.testing.assert_close(*slopes, rtol=1e-12, atol=1e-12)
    tracked = w.clone().requires_grad_()
    (slope,) = torch.autograd.grad(per_example_grads(loss, tracked, x).square().sum(), tracked)
    expected = grad(lambda w: vmap(grad(loss), (None, 0))(w, x).square().sum())(w)
    torch.testing.assert_close(slope, expected, rtol=1e-12, atol=1e-12)


def test_a_shared_gradient_is_two_tensors() -> None:
    """Leaves whose gradients are equal do not share memory: one may be written to."""
    params = {"a": torch.zeros(3), "b": torch.zeros(3)}

    def loss(params: Tree, x: Tensor) -> Tensor:
        return (params["a"] + params["b"] + x).square().sum()

    found = per_example_grads(loss, params, torch.ones(B, 3))
    found["a"].zero_()
    assert (found["b"] == 2).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype: torch.dtype) -> None:
    """Types are those of the leaves; numbers are as near float32's as those of `vmap`."""
    params, batch = tree.cast(make_params(), dtype), make_batch()
    found = per_example_grads(loss, params, *batch)
    each = vmap(grad(loss), (None, 0, 0, 0))(params, *batch)
    exact = loop(loss, tree.cast(params, torch.float32), *batch)
    for (path, x), y, z in zip(
        tree.named_leaves(found), *map(tree.leaves, (each, exact)), strict=True
    ):
        assert x.dtype == dtype, path
        error, allowed = ((a.float() - z).norm() for a in (x, y))
        assert error <= 1.2 * allowed + 1e-6, path


def slope(fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return grad(lambda w: fn(w).cos().sum())


TRANSFORMS: dict[str, Callable[..., Any]] = {
    "vmap": lambda fn, w, _: vmap(fn)(w),
    "grad": lambda fn, w, _: slope(fn)(w[0]),
    "jvp": lambda fn, w, v: jvp(fn, (w[0],), (v[0],))[1],
    "jacfwd": lambda fn, w, _: jacfwd(fn)(w[0]),
    "Hessian-vector product": lambda fn, w, v: jvp(slope(fn), (w[0],), (v[0],))[1],
    "vmap of grad": lambda fn, w, _: vmap(slope(fn))(w),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_chunks_are_invisible_to_transforms(name: str) -> None:
    w, x = (random.normal(random.key(s), (n, 3), torch.float64) for s, n in ((0, 4), (1, B)))

    def loss(w: Tensor, x: Tensor) -> Tensor:
        return (w * x).sin().sum() ** 2

    def run(chunk_size: int | None) -> Tensor:
        return TRANSFORMS[name](
            lambda w: per_example_grads(loss, w, x, chunk_size=chunk_size), w, w.flip(0)
        )

    torch.testing.assert_close(run(2), run(None), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_dropout_does_not_depend_on_the_chunks(chunk_size: int | None) -> None:
    """Each example draws from its own key: permuting the batch permutes the gradients."""
    params, batch = make_params(), make_batch()
    order = torch.tensor([3, 1, 4, 0, 2])
    permuted = per_example_grads(loss, params, *(x[order] for x in batch), chunk_size=chunk_size)
    straight = per_example_grads(loss, params, *batch, chunk_size=chunk_size)
    assert_equal_trees(permuted, tree.map(lambda g: g[order], straight))


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_norms_are_those_of_the_gradients(chunk_size: int | None) -> None:
    params, batch = make_params(), make_batch()
    norms = per_example_norms(loss, params, *batch, chunk_size=chunk_size)
    expected = torch.stack([tree.norm(g) for g in tree.unstack(loop(loss, params, *batch))])
    torch.testing.assert_close(norms, expected, rtol=1e-5, atol=1e-6)
    assert norms[-1] == 0


def test_their_mean_is_the_gradient_of_the_mean() -> None:
    params = {"w": random.normal(random.key(0), (4, 3))}
    x, labels = random.normal(random.key(1), (B, 4)), torch.tensor([0, 1, 2, 1, 0])

    def loss(params: Tree, x: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(x @ params["w"], label)

    mean = tree.map(lambda g: g.mean(0), per_example_grads(loss, params, x, labels))
    assert_equal_trees(mean, grad(loss)(params, x, labels))


def test_a_batch_may_be_a_tree() -> None:
    params = {"w": torch.tensor([1.0, -2.0])}
    batch = {"x": random.normal(random.key(1), (B, 2)), "y": random.normal(random.key(2), (B,))}

    def loss(params: Tree, example: Tree) -> Tensor:
        return ((params["w"] * example["x"]).sum() - example["y"]) ** 2

    assert_equal_trees(per_example_grads(loss, params, batch), loop(loss, params, batch))


def test_leaves_that_are_not_floats_are_constants() -> None:
    params = {"table": torch.arange(3), "layers": ({"w": torch.tensor([1.0, 2.0, 3.0])}, {})}

    def loss(params: Tree, i: Tensor) -> Tensor:
        return (params["layers"][0]["w"] * params["table"]).sum() * i

    grads = per_example_grads(loss, params, torch.tensor([1.0, 2.0]))
    expected = torch.tensor([[0.0, 1.0, 2.0], [0.0, 2.0, 4.0]])
    assert [path for path, _ in tree.named_leaves(grads)] == ["layers.0.w"]
    assert torch.equal(grads["layers"][0]["w"], expected)
    norms = per_example_norms(loss, params, torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(norms, expected.norm(dim=1))


def test_changes_no_argument() -> None:
    params, batch = make_params(), make_batch()
    versions = [leaf._version for leaf in tree.leaves((params, batch))]
    per_example_grads(loss, params, *batch)
    assert [leaf._version for leaf in tree.leaves((params, batch))] == versions
    assert not any(leaf.requires_grad for leaf in tree.leaves(params))


def test_errors_name_the_argument() -> None:
    params = {"w": torch.ones(2)}

    def loss(params: Tree, x: Tensor, y: Tensor) -> Tensor:
        return params["w"].sum()

    with pytest.raises(ValueError, match="no batch was given"):
        per_example_grads(loss, params)
    with pytest.raises(ValueError, match=r"batch.0 \[3\], batch.1 \[4\]"):
        per_example_grads(loss, params, torch.ones(3), torch.ones(4))
    with pytest.raises(ValueError, match=r"batch.1 \[\]"):
        per_example_norms(loss, params, torch.ones(3), torch.tensor(1.0))
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        per_example_grads(loss, params, torch.ones(3), torch.ones(3), chunk_size=0)


def test_gpt2_equals_the_loop_with_padding_and_dropout() -> None:
    """Every parameter of a language model, the tied table and the positions included."""
    config = gpt2.Config(vocab_size=23, n_positions=9, n_embd=12, n_layer=2, n_head=3)
    params = gpt2.init(config, random.key(0))
    ids = (random.uniform(random.key(1), (B, 7)) * 23).long()
    _, mask, keys = make_batch()

    def loss(params: Tree, ids: Tensor, mask: Tensor, key: Tensor) -> Tensor:
        return language_model(gpt2.apply(params, ids, mask=mask, key=key)[0], ids, mask)

    expected = loop(loss, params, ids, mask, keys)
    for chunk_size in (None, 3):
        together = per_example_grads(loss, params, ids, mask, keys, chunk_size=chunk_size)
        assert together["config"] == config
        assert_equal_trees(together, expected)
    moved = {path for path, leaf in tree.named_leaves(expected) if (leaf[0] != 0).any()}
    assert moved == {path for path, _ in tree.named_leaves(params)}


def test_gpt2_double_heads_equals_the_loop() -> None:
    config = gpt2.Config(vocab_size=23, n_positions=9, n_embd=12, n_layer=1, n_head=3)
    params = gpt2.init(config, random.key(0), heads=("multiple_choice",))
    ids = (random.uniform(random.key(1), (B, 2, 5)) * 23).long()
    positions = torch.tensor([[4, 3], [4, 4], [2, 4], [0, 1], [4, 0]])
    labels = torch.tensor([0, 1, 1, 0, -1])

    def loss(params: Tree, ids: Tensor, positions: Tensor, label: Tensor) -> Tensor:
        lm, choice, _ = gpt2.double_heads(params, ids, positions)
        return language_model(lm, ids) + multiple_choice(choice, label)

    together = per_example_grads(loss, params, ids, positions, labels)
    assert_equal_trees(together, loop(loss, params, ids, positions, labels))


@pytest.mark.parametrize("chunk_size", [None, 1, 3])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_no_example_gives_no_gradient(family: Family, chunk_size: int | None) -> None:
    """As Poisson sampling makes it: [0, *shape] and [0], alone, in an ensemble, differentiated."""
    params, (ids, _) = make_family_params(family), make_family_batch(family)
    task = next(iter(family.tasks.values()))

    def loss(params: Tree, ids: Tensor) -> Tensor:
        return scalar(task(params, ids[None]))

    def both(params: Tree) -> Any:
        return [
            fn(loss, params, ids[:0], chunk_size=chunk_size)
            for fn in (per_example_grads, per_example_norms)
        ]

    grads, norms = both(params)
    full = per_example_grads(loss, params, ids[:1])
    assert tree.structure(grads) == tree.structure(full)
    for none, some in zip(tree.leaves(grads), tree.leaves(full), strict=True):
        assert none.shape == (0, *some.shape[1:]) and none.dtype == some.dtype
    assert norms.shape == (0,) and norms.dtype == torch.float32
    members = vmap(both)(tree.stack([params, params]))
    assert [x.shape[:2] for x in tree.leaves(members)] == [(2, 0)] * len(tree.leaves(members))
    slope = grad(lambda p: sum(x.sum() for x in tree.leaves(both(p))))(params)
    assert all((x == 0).all() for x in tree.leaves(slope))
