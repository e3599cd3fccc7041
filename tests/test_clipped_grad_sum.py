"""Sums of clipped gradients equal a loop; absent examples, and such that are no numbers."""

import math
from typing import Any

import pytest
import torch
from allocations import peak_bytes
from families import FAMILIES, Family, make_batch, make_params, scalar
from torch import Tensor
from torch.func import grad, vmap

from fnlm import gpt2, random, transforms, tree
from fnlm.train.losses import cross_entropy, language_model
from fnlm.transforms import clipped_grad_sum, per_example_grads, per_example_norms
from fnlm.tree import Tree

B = 5
MAX_NORM = 0.7


def make_leaves() -> Tree:
    keys = random.split(random.key(0), 3)
    return {
        "table": random.normal(keys[0], (6, 3), torch.float64),
        "layers": ({"w": random.normal(keys[1], (3, 4), torch.float64)}, {}),
        "b": random.normal(keys[2], (4,), torch.float64),
        "classes": torch.arange(4),  # no gradient
    }


def make_examples() -> tuple[Tensor, Tensor, Tensor]:
    ids = (random.uniform(random.key(1), (B, 3)) * 6).long()
    scale = torch.tensor([1.0, 0.01, 3.0, 0.0, 0.5], dtype=torch.float64)
    return ids, scale, torch.tensor([0, 1, 2, 3, 0])


def loss(params: Tree, ids: Tensor, scale: Tensor, label: Tensor) -> Tensor:
    x = torch.tanh(params["table"][ids]) @ params["layers"][0]["w"] + params["b"]
    return scale * cross_entropy(x.sum(0), label + params["classes"][0])


def loop(params: Tree, weights: Tensor, max_norm: float) -> tuple[Tree, Tensor]:
    """Clip one example after the other; an absent one is not looked at."""
    floats, rest = tree.partition(params, lambda path, x: x.is_floating_point())
    total, norms = tree.map(torch.zeros_like, floats), []
    for row, weight in enumerate(weights):
        example = (x[row] for x in make_examples())
        g = grad(lambda p, e=tuple(example): loss(tree.merge(p, rest), *e))(floats)
        norms.append(tree.norm(g))
        factor = weight * min(1.0, max_norm / norms[-1].item() if norms[-1] else math.inf)
        total = tree.map(lambda t, x, f=factor: t + f * x, total, g)
    return total, torch.stack(norms)


def assert_close(a: Tree, b: Tree) -> None:
    assert tree.structure(a) == tree.structure(b)
    for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("chunk_size", [None, 1, 2, 5, 9])
@pytest.mark.parametrize("max_norm", [MAX_NORM, 1e-3, math.inf])
def test_equals_the_loop(chunk_size: int | None, max_norm: float) -> None:
    params = make_leaves()
    found = clipped_grad_sum(
        loss, params, *make_examples(), max_norm=max_norm, chunk_size=chunk_size
    )
    assert_close(found, loop(params, torch.ones(B).double(), max_norm))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_models_with_padding_and_dropout(family: Family) -> None:
    params, (ids, mask) = make_params(family, dtype=torch.float64), make_batch(family, rows=4)
    keys = random.split(random.key(5), len(ids))
    task = list(family.tasks.values())[-1]

    def loss(params: Tree, ids: Tensor, mask: Tensor, key: Tensor) -> Tensor:
        return scalar(task(params, ids, mask, key=key))

    each = vmap(grad(loss), (None, 0, 0, 0))(params, ids, mask, keys)
    norms = torch.stack([tree.norm(g) for g in tree.unstack(each)])
    max_norm = norms.median().item()
    total, found = clipped_grad_sum(loss, params, ids, mask, keys, max_norm=max_norm, chunk_size=3)
    torch.testing.assert_close(found, norms, rtol=1e-12, atol=0)
    factors = (max_norm / norms).clamp(max=1)
    expected = tree.map(lambda g: torch.einsum("b,b...->...", factors, g), each)
    assert_close(total, expected)


def test_a_clipped_gradient_has_the_norm() -> None:
    """No epsilon: one example at a time, the sum is as long as allowed, or the gradient itself."""
    params = make_leaves()
    for row, norm in enumerate(per_example_norms(loss, params, *make_examples())):
        one = (x[row : row + 1] for x in make_examples())
        total, _ = clipped_grad_sum(loss, params, *one, max_norm=MAX_NORM)
        expected = norm.clamp(max=MAX_NORM)
        torch.testing.assert_close(tree.norm(total), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_weights(chunk_size: int | None) -> None:
    params, weights = make_leaves(), torch.tensor([1.0, 0.0, 0.25, 2.0, 0.0]).double()
    found = clipped_grad_sum(
        loss, params, *make_examples(), max_norm=MAX_NORM, weights=weights, chunk_size=chunk_size
    )
    assert_close(found, loop(params, weights, MAX_NORM))


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_no_example_harms_another(broken: float, weighted: bool, chunk_size: int | None) -> None:
    """One that is no number contributes exactly 0, and its norm tells."""
    params, (ids, scale, labels) = make_leaves(), make_examples()
    bad = scale.clone()
    bad[2] = broken
    keep = torch.tensor([True, True, False, True, True])
    weights = keep.double() if weighted else None
    total, norms = clipped_grad_sum(
        loss, params, ids, bad, labels, max_norm=MAX_NORM, weights=weights, chunk_size=chunk_size
    )
    assert not norms[2].isfinite()
    expected, others = clipped_grad_sum(
        loss, params, ids[keep], scale[keep], labels[keep], max_norm=MAX_NORM
    )
    assert_close(total, expected)
    assert_close(norms[keep], others)


@pytest.mark.parametrize("use", ["linear", "lookup", "norm", "other"])
def test_inputs_that_are_no_numbers_stay_where_they_are(use: str) -> None:
    """0 times NaN is NaN: neither inputs nor gradients of an absent example may be multiplied."""
    params = {"w": torch.eye(3), "s": torch.ones(3)}
    x = torch.ones(3, 2, 3)
    x[1] = math.nan
    ops: dict[str, Any] = {
        "linear": lambda p, x: x @ p["w"] + p["s"],
        "lookup": lambda p, x: x * p["w"][torch.tensor([0, 2])],
        "norm": lambda p, x: torch.nn.functional.layer_norm(x, (3,), p["s"], p["s"]),
        "other": lambda p, x: x @ p["w"].square(),
    }

    def loss(params: Tree, x: Tensor) -> Tensor:
        return ops[use](params, x).square().sum()

    weights = torch.tensor([1.0, 0.0, 1.0])
    for given in (weights, None):
        found, norms = clipped_grad_sum(loss, params, x, max_norm=1.0, weights=given)
        expected, _ = clipped_grad_sum(loss, params, x[::2], max_norm=1.0)
        assert_close(found, expected)
        assert norms.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("chunk_size", [None, 1, 3])
def test_no_examples(chunk_size: int | None) -> None:
    """As Poisson sampling makes it: a sum of zeros, and no norms."""
    params, examples = make_leaves(), [x[:0] for x in make_examples()]
    for weights in (None, torch.ones(0)):
        total, norms = clipped_grad_sum(
            loss, params, *examples, max_norm=1.0, weights=weights, chunk_size=chunk_size
        )
        assert norms.shape == (0,) and norms.dtype == torch.float64
        assert set(total) == {"table", "layers", "b"}
        assert all((x == 0).all() for x in tree.leaves(total))


def test_no_gradient_of_an_example_is_in_memory() -> None:
    """A tied table of 10 MB: norms need a part of it, the sum no more than the batch's gradient."""
    config = gpt2.Config(vocab_size=40000, n_positions=9, n_embd=64, n_layer=1, n_head=2)
    params = gpt2.init(config, random.key(0))
    ids = (random.uniform(random.key(1), (6, 9)) * 40000).long()

    def loss(params: Tree, ids: Tensor) -> Tensor:
        return language_model(gpt2.apply(params, ids)[0], ids)

    table = params["embed"]["token"].nbytes
    whole = peak_bytes(lambda: transforms.grad(loss)(params, ids))
    logits = 6 * 9 * 40000 * 4
    norms = peak_bytes(lambda: per_example_norms(loss, params, ids))
    clipped = peak_bytes(lambda: clipped_grad_sum(loss, params, ids, max_norm=1.0))
    assert norms < 4.5 * logits  # which are as large as the table here
    assert clipped < min(1.1 * whole, 5 * table)
    assert peak_bytes(lambda: per_example_grads(loss, params, ids)) > 6 * table


def test_under_vmap_and_grad() -> None:
    params, examples = make_leaves(), make_examples()
    floats, rest = tree.partition(params, lambda path, x: x.is_floating_point())
    weights = torch.tensor([[1.0, 0.0, 0.25, 2.0, 0.0], [0.0, 1.0, 1.0, 1.0, 1.0]])

    def clipped(floats: Tree, weights: Tensor) -> Tree:
        params = tree.merge(floats, rest)
        return clipped_grad_sum(loss, params, *examples, max_norm=MAX_NORM, weights=weights)[0]

    together = vmap(clipped, in_dims=(None, 0))(floats, weights)
    assert_close(together, tree.stack([clipped(floats, w) for w in weights]))

    def size(floats: Tree) -> Tensor:
        return sum(x.sin().sum() for x in tree.leaves(clipped(floats, weights[0])))

    slope, h = grad(size)(floats), 1e-5
    direction = tree.map(torch.cos, floats)

    def at(t: float) -> Tensor:
        return size(tree.map(lambda x, d: x + t * d, floats, direction))

    along = sum((a * b).sum() for a, b in zip(*map(tree.leaves, (slope, direction)), strict=True))
    torch.testing.assert_close((at(h) - at(-h)) / (2 * h), along, rtol=1e-6, atol=1e-8)


def test_half_parameters() -> None:
    params = tree.cast(make_leaves(), torch.bfloat16)
    ids, scale, labels = make_examples()
    total, norms = clipped_grad_sum(loss, params, ids, scale.float(), labels, max_norm=MAX_NORM)
    assert norms.dtype == torch.float32
    assert {x.dtype for x in tree.leaves(total)} == {torch.bfloat16}
    exact, _ = clipped_grad_sum(loss, make_leaves(), ids, scale, labels, max_norm=MAX_NORM)
    for x, y in zip(tree.leaves(total), tree.leaves(exact), strict=True):
        torch.testing.assert_close(x.double(), y, rtol=0.1, atol=0.05)


def test_compiled() -> None:
    params, examples = make_leaves(), make_examples()

    def clipped(params: Tree, *examples: Tensor) -> Tree:
        return clipped_grad_sum(loss, params, *examples, max_norm=MAX_NORM)[0]

    compiled = torch.compile(clipped, backend="aot_eager", fullgraph=True)
    assert_close(compiled(params, *examples), clipped(params, *examples))


def test_errors_name_the_argument() -> None:
    params, examples = make_leaves(), make_examples()
    for max_norm in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"max_norm must be positive, got {max_norm}"):
            clipped_grad_sum(loss, params, *examples, max_norm=max_norm)
    with pytest.raises(ValueError, match=r"weights must be \[5\].* got \[4\]"):
        clipped_grad_sum(loss, params, *examples, max_norm=1.0, weights=torch.ones(4))
    with pytest.raises(ValueError, match="chunk_size must be at least 1"):
        clipped_grad_sum(loss, params, *examples, max_norm=1.0, chunk_size=0)
    with pytest.raises(ValueError, match="no batch was given"):
        clipped_grad_sum(loss, params, max_norm=1.0)
