"""The same numbers on another device: models, derivatives, random bits, training, decoding.

FNLM_TEST_DEVICE names it, such as cuda (`make test-gpu`); without, it is the CPU, where float32 is
held to float64 all the same. What is on the device is computed in float32 without TF32.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import CAUSAL, IDS, VARIANTS, Family, make_batch, make_params, scalar
from torch import Tensor
from torch.func import grad, jvp

from fnlm import distributed, finetune, random, train, tree
from fnlm.generate import generate
from fnlm.train import losses
from fnlm.transforms import per_example_norms

NAME = os.environ.get("FNLM_TEST_DEVICE", "cpu")
elsewhere = pytest.mark.skipif(NAME == "cpu", reason="FNLM_TEST_DEVICE names no other device")


@pytest.fixture(scope="module")
def device() -> torch.device:
    """The device; a test is skipped where it cannot be had."""
    try:
        return train.choose_device(NAME)
    except ValueError as error:
        pytest.skip(str(error))


def assert_close(found: Any, wanted: Any, tolerance: float = 2e-4) -> None:
    for x, y in zip(tree.leaves(found), tree.leaves(wanted), strict=True):
        torch.testing.assert_close(x.cpu().double(), y.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("family, name", VARIANTS, ids=IDS)
def test_models_and_derivatives_are_those_of_the_cpu(
    family: Family, name: str, device: torch.device
) -> None:
    """Outputs, gradient and Hessian-vector product, with dropout, against float64."""
    ids, mask = make_batch(family)
    keys = random.split(random.key(3), len(ids))
    found = []
    for dtype, place in ((torch.float32, device), (torch.float64, torch.device("cpu"))):
        params = tree.to(make_params(family, dtype=dtype, scale=0.05), place)
        batch = tree.to((ids, mask, keys), place)

        def loss(params: Any, batch: Any = batch) -> Tensor:
            return scalar(family.tasks[name](params, *batch[:2], key=batch[2]))

        direction = tree.map(lambda x: 0.1 * x.sin(), params)
        outputs = family.tasks[name](params, *batch[:2])
        found.append((outputs, grad(loss)(params), jvp(grad(loss), (params,), (direction,))[1]))
    assert all(x.device.type == device.type for x in tree.leaves(found[0]))
    assert_close(found[0], found[1])


@elsewhere
def test_the_same_key_draws_the_same_bits(device: torch.device) -> None:
    keys = random.split(random.key(7), 3)
    there = keys.to(device)
    for shape in ((), (5,), (3, 1 << 17)):
        assert random.uniform(there, shape).cpu().equal(random.uniform(keys, shape))
        assert random.bernoulli(there, 0.3, shape).cpu().equal(random.bernoulli(keys, 0.3, shape))
    assert random.split(there, 4).cpu().equal(random.split(keys, 4))
    assert random.fold_in(there, 9).cpu().equal(random.fold_in(keys, 9))


@pytest.mark.parametrize("family", CAUSAL, ids=lambda family: family.name)
def test_decoding_takes_the_same_tokens(family: Family, device: torch.device) -> None:
    ids, _ = make_batch(family, rows=2)
    params = make_params(family)
    here = generate(family.module.apply, tree.cast(params, torch.float64), ids, 5)
    there = generate(family.module.apply, tree.to(params, device), ids.to(device), 5)
    assert there.cpu().equal(here)


def test_gradients_of_examples(device: torch.device) -> None:
    family = CAUSAL[0]
    ids, mask = make_batch(family)

    def loss(params: Any, ids: Tensor, mask: Tensor) -> Tensor:
        return scalar(family.tasks["apply"](params, ids, mask))

    params = make_params(family)
    found = per_example_norms(loss, tree.to(params, device), *tree.to((ids, mask), device))
    assert_close(found, per_example_norms(loss, tree.cast(params, torch.float64), ids, mask))


@pytest.mark.parametrize("flags", [{}, {"optimize_on_cpu": True}, {"dtype": "bfloat16"},
                                   {"dtype": "float16"}], ids=str)  # fmt: skip
def test_training_ends_near_that_of_the_cpu(
    flags: dict[str, Any], device: torch.device, tmp_path: Path
) -> None:
    """Also when it goes on elsewhere from a state of the device."""
    family = CAUSAL[0]
    ids, mask = make_batch(family, rows=8)
    arrays = (ids.numpy(), np.zeros_like(ids.numpy()), mask.numpy())

    def loss(params: Any, *batch: Tensor, key: Tensor | None = None) -> Tensor:
        logits = family.tasks["apply"](params, batch[0], batch[2], key=key)
        return losses.language_model(logits, batch[0], batch[2])

    recipe = finetune.Recipe(
        train_batch_size=4, num_train_epochs=3, learning_rate=1e-3, checkpoint_every=2, device=NAME
    )
    params, place = make_params(family), tmp_path / "there"
    wanted, _ = finetune.finetune(loss, params, arrays, replace(recipe, device="cpu"), tmp_path)
    found, _ = finetune.finetune(loss, params, arrays, replace(recipe, **flags), place)
    assert tree.leaves(found)[0].device.type == device.type
    exact = "dtype" not in flags
    assert_close(found, tree.map(lambda x: x.cpu(), wanted), 5e-4 if exact else 2e-2)
    if exact:
        (former,) = place.glob("state.step-*")
        former.replace(place / "state.safetensors")
        again = replace(recipe, **flags, device="cpu")
        assert_close(finetune.finetune(loss, params, arrays, again, place)[0], wanted, 5e-4)


@elsewhere
def test_a_session_alone_has_the_device(device: torch.device) -> None:
    with distributed.session() as found:
        assert found.type == device.type
