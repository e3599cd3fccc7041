"""Optimizers as sentences of links.

With `count` the number of updates made before this one::

    bert_adam    clip each tensor, Adam without bias correction, decay, rate at count
    openai_adam  clip each tensor, Adam, bias correction with e outside, rate at
                 count + 1, decay of the updated weights
    adamw        clip all tensors together, Adam with bias correction, decay, rate at count

`state = optimizer.init(params)`, then `params, state = optimizer.update(grads, state, params)`.

Sources: `BertAdam` and `OpenAIAdam` of pytorch-pretrained-bert 0.6.2, equal step by step, and
`torch.optim.AdamW`.
Deviations from the first two: the clipping is a link and changes no gradient of the caller; which
leaves decay is a predicate and not a list of groups; a schedule is a function. All numbers may be
0-d tensors in the pure update where they are said to be a rate, so members of an ensemble can have
their own.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnlm import tree
from fnlm.layers.precision import at_least_float32
from fnlm.train import _fused
from fnlm.train._checks import check_clip, check_keeps, check_rates
from fnlm.train.schedules import Schedule, warmup_linear
from fnlm.train.transformations import (
    AdamState,
    Donated,
    Optimizer,
    OptimizerState,
    add_decayed_weights,
    chain,
    clip_by_global_norm,
    clip_per_tensor,
    correct_bias,
    decay_updated_weights,
    everything,
    scale_by_adam,
    scale_by_schedule,
)
from fnlm.tree import Predicate, Tree

__all__ = ["adamw", "bert_adam", "openai_adam"]

Rate = float | Tensor | Schedule


def bert_adam(
    lr: Rate,
    *,
    warmup: float = -1,
    t_total: float = -1,
    schedule: Callable[[float, float], Schedule] = warmup_linear,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    weight_decay: float = 0.01,
    max_grad_norm: float = 1.0,
    decay: Predicate = everything,
) -> Optimizer:
    """Make the Adam of BERT: no bias correction, decoupled decay, clipping tensor by tensor.

    With mu and nu the moving averages of the clipped gradients and of their squares::

        p <- p - lr schedule(count) (mu / (sqrt(nu) + eps) + weight_decay p)

    Args:
        lr: a number, a 0-d tensor, or a function of the step that gives one.
        warmup: share of `t_total` over which the rate rises; -1 for none.
        t_total: number of steps planned; -1 leaves the rate alone, whatever the schedule.
        schedule: makes a schedule of `warmup` and `t_total`; any of `fnlm.train.schedules`.
        b1, b2: how much the averages of gradients and of their squares keep.
        eps: added to the root of the average of squares.
        weight_decay: multiple of the weights that joins the update.
        max_grad_norm: limit of the norm of each gradient tensor; not above 0 for none.
        decay: says by path and leaf what decays; `except_bias_and_norm` is the usual choice of
            fine-tuning.

    Returns:
        the optimizer; its state holds two averages of the size of the parameters.

    >>> from fnlm.train import except_bias_and_norm
    >>> optimizer = bert_adam(5e-5, warmup=0.1, t_total=1000, decay=except_bias_and_norm)

    Source: `BertAdam` of pytorch-pretrained-bert 0.6.2; the schedule is read before the count
    advances, so the first update of a warm-up moves nothing.
    """
    check_rates(lr=lr, eps=eps, weight_decay=weight_decay)
    check_keeps(b1=b1, b2=b2)
    check_clip(max_grad_norm=max_grad_norm)
    rate = _product(lr, schedule(warmup, t_total))

    def numbers(count: int) -> _fused.FusedStep:
        now = float(rate(count))
        return _fused.FusedStep(now, now, now * weight_decay, math.inf, b1, b2, eps)

    links = (
        clip_per_tensor(max_grad_norm),
        scale_by_adam(b1, b2, eps, bias_correction=False),
        add_decayed_weights(weight_decay, decay),
        scale_by_schedule(rate),
    )
    return chain(
        *links, donated=_donated(chain(*links), numbers, decay, _Clip(max_grad_norm, True))
    )


def openai_adam(
    lr: Rate,
    *,
    warmup: float = -1,
    t_total: float = -1,
    schedule: Callable[[float, float], Schedule] = warmup_linear,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    vector_l2: bool = False,
    max_grad_norm: float = -1,
) -> Optimizer:
    """Make the Adam of OpenAI GPT: bias correction, and decay after the update, of matrices only.

    With mu and nu the moving averages of the clipped gradients and of their squares::

        t    = count + 1
        rate = lr schedule(t)
        p   <- p - rate sqrt(1 - b2^t) / (1 - b1^t) mu / (sqrt(nu) + eps)
        p   <- p - rate weight_decay p

    Args:
        lr: a number, a 0-d tensor, or a function of the step that gives one.
        warmup: share of `t_total` over which the rate rises; -1 for none.
        t_total: number of steps planned; -1 leaves the rate alone, whatever the schedule.
        schedule: makes a schedule of `warmup` and `t_total`; any of `fnlm.train.schedules`.
        b1, b2: how much the averages of gradients and of their squares keep.
        eps: added to the root of the average of squares.
        weight_decay: share of a weight that a step at rate 1 takes off.
        vector_l2: decay vectors (biases, norms) too, and not only leaves of two or more dimensions.
        max_grad_norm: limit of the norm of each gradient tensor; not above 0 for none.

    Returns:
        the optimizer; its state holds two averages of the size of the parameters.

    >>> optimizer = openai_adam(6.25e-5, warmup=0.002, t_total=1000, weight_decay=0.01)

    Source: `OpenAIAdam` of pytorch-pretrained-bert 0.6.2; the schedule is read after the count
    advanced.
    """
    check_rates(lr=lr, eps=eps, weight_decay=weight_decay)
    check_keeps(b1=b1, b2=b2)
    check_clip(max_grad_norm=max_grad_norm)
    rate = _product(lr, schedule(warmup, t_total))

    def where(path: str, leaf: Any) -> bool:
        return vector_l2 or leaf.ndim > 1

    def numbers(count: int) -> _fused.FusedStep:
        now = float(rate(count + 1))
        step = now * math.sqrt(1 - b2 ** (count + 1)) / (1 - b1 ** (count + 1))
        shrink = now * weight_decay
        return _fused.FusedStep(step, step * (1 - shrink), shrink, math.inf, b1, b2, eps)

    links = (
        clip_per_tensor(max_grad_norm),
        scale_by_adam(b1, b2, eps, bias_correction=False),
        correct_bias(b1, b2),
        scale_by_schedule(rate, first=1),
        decay_updated_weights(weight_decay, rate, first=1, where=where),
    )
    return chain(
        *links, donated=_donated(chain(*links), numbers, where, _Clip(max_grad_norm, True))
    )


def adamw(
    lr: Rate,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    max_grad_norm: float = -1,
    decay: Predicate = everything,
) -> Optimizer:
    """Make AdamW: bias correction of both averages, decoupled decay, clipping by the global norm.

    With mu and nu the moving averages of the clipped gradients and of their squares::

        t    = count + 1
        rate = lr(count)
        p   <- p - rate (mu / (1 - b1^t) / (sqrt(nu / (1 - b2^t)) + eps) + weight_decay p)

    Args:
        lr: a number, a 0-d tensor, or a function of the step that gives one.
        b1, b2: how much the averages of gradients and of their squares keep.
        eps: added to the root of the average of squares.
        weight_decay: multiple of the weights that joins the update.
        max_grad_norm: limit of the norm of all gradients together; not above 0 for none.
        decay: says by path and leaf what decays.

    Returns:
        the optimizer; its state holds two averages of the size of the parameters.

    >>> from fnlm.train import schedules
    >>> schedule = schedules.warmup_cosine(0.1, 1000)
    >>> optimizer = adamw(lambda step: 1e-3 * schedule(step), max_grad_norm=1.0)

    Source: Decoupled Weight Decay Regularization (arXiv:1711.05101), as `torch.optim.AdamW`
    computes it.
    """
    check_rates(lr=lr, eps=eps, weight_decay=weight_decay)
    check_keeps(b1=b1, b2=b2)
    check_clip(max_grad_norm=max_grad_norm)
    rate = _product(lr, None)

    def numbers(count: int) -> _fused.FusedStep:
        now = float(rate(count))
        return _fused.FusedStep(now, now, now * weight_decay, count + 1, b1, b2, eps)

    links = (
        clip_by_global_norm(max_grad_norm),
        scale_by_adam(b1, b2, eps),
        add_decayed_weights(weight_decay, decay),
        scale_by_schedule(rate),
    )
    return chain(
        *links, donated=_donated(chain(*links), numbers, decay, _Clip(max_grad_norm, False))
    )


class _Clip(NamedTuple):
    max_norm: float  # not above 0: none
    per_tensor: bool  # else all together


def _donated(
    chained: Optimizer, numbers: Callable[[int], _fused.FusedStep], where: Predicate, clip: _Clip
) -> Donated:
    """Make the donated road of an Adam: `chained` says it by links, `numbers` by numbers."""

    @torch.no_grad()
    def update(grads: Tree, state: OptimizerState, params: Tree) -> tuple[Tree, OptimizerState]:
        adam = next(link for link in state.links if isinstance(link, AdamState))
        named, step = tree.named_leaves(params), numbers(int(state.step))
        # The kernel wants parameters of the type of the averages, which is never a half type.
        wide = [at_least_float32(leaf) for _, leaf in named]
        mu, nu = tree.leaves(adam.mu), tree.leaves(adam.nu)
        if not (_fused.can_say(step) and _fused.can_fuse(wide, mu, nu)):
            return chained.update(grads, state, params, donate=True)
        gradients = [at_least_float32(g) for g in tree.leaves(grads)]
        _fused.fused_adam_(
            wide,
            gradients,
            mu,
            nu,
            step=step,
            decayed=[where(path, leaf) for path, leaf in named],
            divisors=_fused.clip_divisors(gradients, clip.max_norm, per_tensor=clip.per_tensor),
        )
        for (_, leaf), result in zip(named, wide, strict=True):
            if leaf is not result:
                leaf.copy_(result)
        state.step.add_(1)
        return params, state

    return update


def _product(lr: Rate, schedule: Schedule | None) -> Schedule:
    """Return the function of the step that gives lr * schedule."""

    def rate(step: Any, /) -> Any:
        value = lr(step) if callable(lr) else lr
        return value if schedule is None else value * schedule(step)

    return rate
