"""DP-SGD: clipped means with noise of the size that is said, from keys."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fnlm import bert, random, tree
from fnlm.train import adamw, init_state, losses, poisson_sample, private_gradient, private_step
from fnlm.transforms import clipped_grad_sum
from fnlm.tree import Tree

GIVEN: dict[str, Any] = {"max_norm": 0.5, "noise_multiplier": 2.0, "expected_batch_size": 4}
PARAMS = {"w": random.normal(random.key(0), (40, 30)), "layers": ({"b": torch.zeros(2000)},)}
X = random.normal(random.key(1), (3, 40))


def loss(params: Tree, x: Tensor) -> Tensor:
    return (x @ params["w"]).square().sum() + (params["layers"][0]["b"] * x.sum()).sum()


def test_it_is_the_clipped_sum_and_noise() -> None:
    clipped, norms = clipped_grad_sum(loss, PARAMS, X, max_norm=0.5)
    found = private_gradient(loss, PARAMS, X, key=random.key(2), **GIVEN)
    assert torch.equal(found.norms, norms)
    noise = tree.map(lambda g, c: g - c / 4, found.gradient, clipped)
    assert found.sensitivity == 0.5 / 4 and found.noise == 2 * 0.5 / 4
    flat = torch.cat([x.flatten() for x in tree.leaves(noise)])  # 3,200 numbers
    assert abs(flat.std() / found.noise - 1) < 4 / math.sqrt(2 * len(flat))
    assert abs(flat.mean()) < 4 * found.noise / math.sqrt(len(flat))
    halves = flat[:1200], flat[1200:2400]  # of two leaves: not the same numbers
    assert abs(torch.corrcoef(torch.stack(halves))[0, 1]) < 0.12


def test_noise_is_a_function_of_the_key() -> None:
    one, same, other = (
        private_gradient(loss, PARAMS, X, key=random.key(seed), chunk_size=size, **GIVEN).gradient
        for seed, size in ((2, None), (2, None), (3, None))
    )
    assert all(map(torch.equal, tree.leaves(one), tree.leaves(same)))
    assert not any(map(torch.equal, tree.leaves(one), tree.leaves(other)))


@pytest.mark.parametrize("broken", [0.0, 1e6, math.nan, math.inf])
def test_the_sensitivity_holds_for_any_example(broken: float) -> None:
    """Without noise, one row more moves the gradient by no more than is said, whatever is in it."""
    given = GIVEN | {"noise_multiplier": 0.0}
    more = torch.cat([X, torch.full((1, 40), broken)])
    with_it, without = (
        private_gradient(loss, PARAMS, x, key=random.key(2), **given) for x in (more, X)
    )
    moved = tree.norm(tree.map(torch.sub, with_it.gradient, without.gradient))
    assert moved <= with_it.sensitivity * (1 + 1e-5)
    present = torch.tensor([True, True, True, False])
    filled = private_gradient(loss, PARAMS, more, key=random.key(2), present=present, **given)
    for a, b in zip(tree.leaves(filled.gradient), tree.leaves(without.gradient), strict=True):
        torch.testing.assert_close(a, b)


def test_a_sample_of_none_is_noise() -> None:
    found = private_gradient(loss, PARAMS, X[:0], key=random.key(2), **GIVEN)
    assert found.norms.shape == (0,)
    assert all(0.2 < x.std() < 0.3 for x in tree.leaves(found.gradient))


def test_samples_are_poisson() -> None:
    keys = random.split(random.key(0), 400)
    samples = [poisson_sample(key, 0.1, 200) for key in keys]
    sizes = torch.tensor([float(len(sample)) for sample in samples])
    assert abs(sizes.mean() - 20) < 4 * math.sqrt(18 / 400)
    assert abs(sizes.var() / 18 - 1) < 4 * math.sqrt(2 / 400)
    counts = torch.bincount(torch.cat(samples), minlength=200).float() / 400
    assert (abs(counts - 0.1) < 5 * math.sqrt(0.09 / 400)).all()
    assert len(poisson_sample(keys[0], 0.0, 9)) == 0 and len(poisson_sample(keys[0], 1.0, 9)) == 9
    assert all((sample.diff() > 0).all() for sample in samples)


def test_a_model_learns_and_resumes() -> None:
    """A classifier of ids, on Poisson samples with dropout; a run cut in two is the same."""
    config = bert.Config(
        vocab_size=20, hidden_size=24, num_hidden_layers=1, num_attention_heads=3,
        intermediate_size=24, max_position_embeddings=8,
    )  # fmt: skip
    params = bert.init(config, random.key(0), heads=("sequence_classification",))
    ids = (random.uniform(random.key(1), (64, 6)) * 20).long()
    labels = (ids[:, 0] >= 10).long()

    def loss(params: Tree, ids: Tensor, label: Tensor, key: Tensor) -> Tensor:
        logits = bert.sequence_classification(params, ids, key=key)
        return losses.cross_entropy(logits, label)

    optimizer = adamw(3e-3)
    step = private_step(
        loss, optimizer, max_norm=1.0, noise_multiplier=0.5, expected_batch_size=16, chunk_size=8
    )
    sample_key = random.key(7)  # of no other numbers

    def run(state: Any, stop: int) -> Any:
        while state.step < stop:
            rows = poisson_sample(random.fold_in(sample_key, state.step), 0.25, 64)
            state, _ = step(state, ids[rows], labels[rows])
        return state

    start = init_state(params, optimizer, random.key(2))
    middle = run(start, 20)
    end, again = run(middle, 60), run(tree.map(torch.clone, middle), 60)
    assert all(map(torch.equal, tree.leaves(end), tree.leaves(again)))
    logits = bert.sequence_classification(end.params, ids)
    assert (logits.argmax(-1) == labels).float().mean() > 0.9


def test_half_parameters_keep_their_type() -> None:
    half = tree.cast(PARAMS, torch.bfloat16)
    found = private_gradient(loss, half, X.bfloat16(), key=random.key(2), **GIVEN)
    assert {x.dtype for x in tree.leaves(found.gradient)} == {torch.bfloat16}


def test_errors_name_the_argument() -> None:
    def call(**given: Any) -> None:
        private_gradient(loss, PARAMS, X, key=random.key(0), **(GIVEN | given))

    with pytest.raises(ValueError, match="noise_multiplier must be at least 0, got -1"):
        call(noise_multiplier=-1)
    with pytest.raises(ValueError, match="noise_multiplier must be at least 0, got nan"):
        call(noise_multiplier=math.nan)
    with pytest.raises(ValueError, match="expected_batch_size must be positive, got 0"):
        call(expected_batch_size=0)
    for max_norm in (0.0, math.inf, math.nan):
        with pytest.raises(
            ValueError, match=f"max_norm must be positive and finite, got {max_norm}"
        ):
            call(max_norm=max_norm)
    with pytest.raises(ValueError, match="present must be bool, got torch.float32"):
        call(present=torch.ones(3))
    with pytest.raises(ValueError, match=r"rate must be from 0 to 1, got 1\.5"):
        poisson_sample(random.key(0), 1.5, 4)
