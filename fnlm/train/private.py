"""DP-SGD: gradients that are differentially private by the example.

Sources: Abadi et al. 2016, "Deep Learning with Differential Privacy" (arXiv:1607.00133); Mironov et
al. 2019 (arXiv:1908.10530) on sampling. Deviations: nothing is added to a norm, and a gradient that
is not finite counts as 0, so that the sensitivity holds for any example.

How much privacy a number of steps leaves is for an accountant to say: of a Gaussian mechanism with
this noise multiplier on Poisson samples of this rate, where neighbours differ by one example more
or less. `fnlm.random` is no cryptographic generator, and sums of floats leak by their rounding: the
guarantee is for those who see the parameters, not for those who know the key.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnlm import random, tree
from fnlm.train.step import TrainState
from fnlm.train.transformations import Optimizer
from fnlm.transforms.per_example import clipped_grad_sum
from fnlm.tree import Tree

__all__ = ["PrivateGradient", "poisson_sample", "private_gradient", "private_step"]

Loss = Callable[..., Tensor]


class PrivateGradient(NamedTuple):
    """A noised mean of clipped gradients; the norms beside it are not private."""

    gradient: Tree  # (sum of clipped gradients + noise) / expected batch size
    sensitivity: Tensor  # [] how far one example more or less moves it, by the Euclidean norm
    noise: Tensor  # [] standard deviation of each number of it
    norms: Tensor  # [B] of the gradients before clipping


def poisson_sample(key: Tensor, rate: float, size: int) -> Tensor:
    """Return a Poisson sample: each example is in it with probability `rate`, on its own.

    Args:
        key: [], from `fnlm.random`.
        rate: from 0 to 1: expected batch size / size.
        size: number of examples in all.

    Returns:
        int64 [n], rising indices; n differs from sample to sample, and may be 0.

    Raises:
        ValueError: rate is not a probability.

    >>> poisson_sample(random.key(0), 0.5, 8)
    tensor([2, 3, 5, 6, 7])
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must be from 0 to 1, got {rate}")
    return random.bernoulli(key, rate, (size,)).nonzero()[:, 0]


def private_gradient(
    loss: Loss,
    params: Tree,
    *batch: Any,
    key: Tensor,
    max_norm: float,
    noise_multiplier: float,
    expected_batch_size: float,
    present: Tensor | None = None,
    chunk_size: int | None = None,
) -> PrivateGradient:
    """Return the mean of clipped gradients, with Gaussian noise.

    It is (sum_i g_i min(1, max_norm / |g_i|) + noise) / expected_batch_size, where each number of
    the noise has the standard deviation noise_multiplier * max_norm.

    Args:
        loss: `loss(params, *example) -> []`, where an example has no batch axis.
        params: the parameters.
        *batch: tensors, or trees of tensors, with a first axis of length B, which may be 0.
        key: of the noise: a fresh one for every call.
        max_norm: to which each gradient is clipped.
        noise_multiplier: standard deviation of the noise over `max_norm`; 0 is no privacy.
        expected_batch_size: the mean of B over samples, not B, which would tell of the sample.
        present: bool [B], False for rows that only fill a batch to its size.
        chunk_size: number of examples computed at a time.

    Raises:
        ValueError: a negative noise multiplier, a batch size or norm that is not positive, present
            of another type, or batches that do not fit (see `clipped_grad_sum`).

    >>> params = {"w": torch.tensor([1.0, 2.0])}
    >>> found = private_gradient(
    ...     lambda p, x: (p["w"] * x).sum(), params, torch.eye(2), key=random.key(0),
    ...     max_norm=0.5, noise_multiplier=0.0, expected_batch_size=2,
    ... )
    >>> found.gradient, found.sensitivity, found.norms
    ({'w': tensor([0.2500, 0.2500])}, tensor(0.2500), tensor([1., 1.]))
    """
    if not 0 < max_norm < math.inf:
        raise ValueError(f"max_norm must be positive and finite, got {max_norm}")
    if not noise_multiplier >= 0:
        raise ValueError(f"noise_multiplier must be at least 0, got {noise_multiplier}")
    if not expected_batch_size > 0:
        raise ValueError(f"expected_batch_size must be positive, got {expected_batch_size}")
    if present is not None and present.dtype != torch.bool:
        raise ValueError(f"present must be bool, got {present.dtype}: give `present != 0`")
    weights = None if present is None else present.to(torch.float32)
    total, norms = clipped_grad_sum(
        loss, params, *batch, max_norm=max_norm, weights=weights, chunk_size=chunk_size
    )
    scale = noise_multiplier * max_norm
    keys = iter(random.split(key, max(1, len(tree.leaves(total)))))

    def noised(x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        noise = scale * random.normal(next(keys), tuple(x.shape), wide)
        return ((x.to(wide) + noise) / expected_batch_size).to(x.dtype)

    gradient = tree.map(noised, total)
    sensitivity = norms.new_tensor(max_norm / expected_batch_size)
    return PrivateGradient(gradient, sensitivity, noise_multiplier * sensitivity, norms)


def private_step(
    loss: Loss,
    optimizer: Optimizer,
    *,
    max_norm: float,
    noise_multiplier: float,
    expected_batch_size: float,
    chunk_size: int | None = None,
) -> Callable[..., tuple[TrainState, PrivateGradient]]:
    """Return a step of DP-SGD, with any optimizer: `step(state, *batch, present=None)`.

    Args:
        loss: `loss(params, *example, key=key) -> []`, where an example has no batch axis and a
            dropout key of its own. Noise and dropout are functions of `state.key` and `state.step`.
        optimizer: turns gradients into new parameters.
        max_norm, noise_multiplier, expected_batch_size, chunk_size: as for `private_gradient`.

    Returns:
        the step, which returns the new state and the `PrivateGradient` that it took.

    >>> from fnlm.train import adamw, init_state
    >>> step = private_step(
    ...     lambda params, x, key: (params["w"] * x).sum(), adamw(0.1),
    ...     max_norm=1.0, noise_multiplier=1.0, expected_batch_size=2,
    ... )
    >>> state = init_state({"w": torch.zeros(2)}, adamw(0.1), random.key(0))
    >>> state, found = step(state, torch.eye(2))
    >>> state.step, found.norms
    (tensor(1), tensor([1., 1.]))
    """

    def of_example(params: Tree, example: tuple[Any, ...], key: Tensor) -> Tensor:
        return loss(params, *example, key=key)

    def step(
        state: TrainState, *batch: Any, present: Tensor | None = None
    ) -> tuple[TrainState, PrivateGradient]:
        noise_key, example_key = random.split(random.fold_in(state.key, state.step), 2)
        size = int(tree.leaves(batch)[0].shape[0])
        keys = random.split(example_key, max(1, size))[:size]
        found = private_gradient(
            of_example,
            state.params,
            batch,
            keys,
            key=noise_key,
            max_norm=max_norm,
            noise_multiplier=noise_multiplier,
            expected_batch_size=expected_batch_size,
            present=present,
            chunk_size=chunk_size,
        )
        params, opt_state = optimizer.update(found.gradient, state.opt_state, state.params)
        return state._replace(params=params, opt_state=opt_state, step=state.step + 1), found

    return step
