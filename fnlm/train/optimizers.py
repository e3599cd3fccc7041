"""Optimizers as chains of gradient transformations.

With `count` the number of updates made before this one::

    bert_adam    clip each tensor, Adam without bias correction, weight decay,
                 learning rate at count
    openai_adam  clip each tensor, Adam, bias correction after eps, learning rate at
                 count + 1, weight decay of the updated weights
    adamw        clip by global norm, Adam with bias correction, weight decay,
                 learning rate at count

`state = optimizer.init(params)`, then `params, state = optimizer.update(grads, state, params)`.

Sources: `BertAdam` and `OpenAIAdam` of pytorch-pretrained-bert 0.6.2, equal step by step, and
`torch.optim.AdamW`.
Deviations from the first two: clipping is a transformation and leaves the caller's gradients
unchanged; a predicate selects the leaves with weight decay, not a list of parameter groups; a
schedule is a function. In the pure update, the learning rate may be a 0-d tensor, so that each
member of an ensemble can have its own under `vmap`.
"""

import math
from collections.abc import Callable
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnlm import _former, tree
from fnlm.layers._levels import is_traced, levels
from fnlm.layers.precision import at_least_float32
from fnlm.train import _fused
from fnlm.train._checks import check_clip, check_decay_rates, check_rates
from fnlm.train.schedules import Schedule, warmup_linear
from fnlm.train.transformations import (
    AdamState,
    Fused,
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


@_former.answering
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
    """Return BERT's Adam: no bias correction, decoupled weight decay, clipping per tensor.

    With mu and nu the first and second moment estimates of the clipped gradients::

        p <- p - lr schedule(count) (mu / (sqrt(nu) + eps) + weight_decay p)

    Args:
        lr: learning rate: a number, a 0-d tensor, or a function of the step that returns one.
        warmup: fraction of `t_total` over which the learning rate rises; -1 for none.
        t_total: total number of steps; -1 for a constant learning rate, whatever the schedule.
        schedule: factory called with `warmup` and `t_total`; any of `fnlm.train.schedules`.
        b1, b2: decay rates of the first and second moment estimates, in [0, 1).
        eps: added to the denominator for numerical stability.
        weight_decay: decoupled weight-decay coefficient.
        max_grad_norm: maximum norm of each gradient tensor; no clipping if <= 0.
        decay: predicate of path and leaf that selects what decays; `except_bias_and_norm` is usual
            in fine-tuning.

    Returns:
        the optimizer; its state holds two moment estimates of the size of the parameters.

    >>> from fnlm.train import except_bias_and_norm
    >>> optimizer = bert_adam(5e-5, warmup=0.1, t_total=1000, decay=except_bias_and_norm)

    Source: `BertAdam` of pytorch-pretrained-bert 0.6.2. The schedule is read before the count
    advances, so the first update of a warm-up has learning rate 0.
    """
    check_rates(lr=lr, eps=eps, weight_decay=weight_decay)
    check_decay_rates(b1=b1, b2=b2)
    check_clip(max_grad_norm=max_grad_norm)
    rate = _product(lr, _made(schedule, warmup, t_total))

    def step_at(count: int, now: float) -> _fused.FusedStep:
        return _fused.FusedStep(now, now, now * weight_decay, math.inf, b1, b2, eps)

    transformations = (
        clip_per_tensor(max_grad_norm),
        scale_by_adam(b1, b2, eps, bias_correction=False),
        add_decayed_weights(weight_decay, decay),
        scale_by_schedule(rate),
    )
    fused = _fused_update(rate, step_at, decay, _Clip(max_grad_norm, True))
    return chain(*transformations, fused=fused)


@_former.answering
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
    """Return OpenAI GPT's Adam: bias correction, and weight decay after the update, of matrices.

    With mu and nu the first and second moment estimates of the clipped gradients::

        t    = count + 1
        rate = lr schedule(t)
        p   <- p - rate sqrt(1 - b2^t) / (1 - b1^t) mu / (sqrt(nu) + eps)
        p   <- p - rate weight_decay p

    Args:
        lr: learning rate: a number, a 0-d tensor, or a function of the step that returns one.
        warmup: fraction of `t_total` over which the learning rate rises; -1 for none.
        t_total: total number of steps; -1 for a constant learning rate, whatever the schedule.
        schedule: factory called with `warmup` and `t_total`; any of `fnlm.train.schedules`.
        b1, b2: decay rates of the first and second moment estimates, in [0, 1).
        eps: added to the denominator for numerical stability.
        weight_decay: decoupled weight-decay coefficient, applied to the updated weights.
        vector_l2: decay vectors (biases, norms) too, and not only leaves of two or more dimensions.
        max_grad_norm: maximum norm of each gradient tensor; no clipping if <= 0.

    Returns:
        the optimizer; its state holds two moment estimates of the size of the parameters.

    >>> optimizer = openai_adam(6.25e-5, warmup=0.002, t_total=1000, weight_decay=0.01)

    Source: `OpenAIAdam` of pytorch-pretrained-bert 0.6.2. The schedule is read after the count
    has advanced.
    """
    check_rates(lr=lr, eps=eps, weight_decay=weight_decay)
    check_decay_rates(b1=b1, b2=b2)
    check_clip(max_grad_norm=max_grad_norm)
    rate = _product(lr, _made(schedule, warmup, t_total))

    def where(path: str, leaf: Any) -> bool:
        return vector_l2 or leaf.ndim > 1

    def step_at(count: int, now: float) -> _fused.FusedStep:
        # The bias correction is a number, which joins the learning rate of the fused kernel.
        step = now * math.sqrt(1 - b2 ** (count + 1)) / (1 - b1 ** (count + 1))
        shrink = now * weight_decay
        return _fused.FusedStep(step, step * (1 - shrink), shrink, math.inf, b1, b2, eps)

    transformations = (
        clip_per_tensor(max_grad_norm),
        scale_by_adam(b1, b2, eps, bias_correction=False),
        correct_bias(b1, b2),
        scale_by_schedule(rate, first=1),
        decay_updated_weights(weight_decay, rate, first=1, where=where),
    )
    fused = _fused_update(rate, step_at, where, _Clip(max_grad_norm, True), first=1)
    return chain(*transformations, fused=fused)


@_former.answering
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
    """Return AdamW: bias correction, decoupled weight decay, clipping by the global norm.

    With mu and nu the first and second moment estimates of the clipped gradients::

        t    = count + 1
        rate = lr(count)
        p   <- p - rate (mu / (1 - b1^t) / (sqrt(nu / (1 - b2^t)) + eps) + weight_decay p)

    Args:
        lr: learning rate: a number, a 0-d tensor, or a function of the step that returns one.
        b1, b2: decay rates of the first and second moment estimates, in [0, 1).
        eps: added to the denominator for numerical stability.
        weight_decay: decoupled weight-decay coefficient.
        max_grad_norm: maximum global norm of the gradients; no clipping if <= 0.
        decay: predicate of path and leaf that selects what decays.

    Returns:
        the optimizer; its state holds two moment estimates of the size of the parameters.

    >>> from fnlm.train import schedules
    >>> schedule = schedules.warmup_cosine(0.1, 1000)
    >>> optimizer = adamw(lambda step: 1e-3 * schedule(step), max_grad_norm=1.0)

    Source: Decoupled Weight Decay Regularization (arXiv:1711.05101), as `torch.optim.AdamW`
    computes it.
    """
    check_rates(lr=lr, eps=eps, weight_decay=weight_decay)
    check_decay_rates(b1=b1, b2=b2)
    check_clip(max_grad_norm=max_grad_norm)
    rate = _product(lr, None)

    def step_at(count: int, now: float) -> _fused.FusedStep:
        return _fused.FusedStep(now, now, now * weight_decay, count + 1, b1, b2, eps)

    transformations = (
        clip_by_global_norm(max_grad_norm),
        scale_by_adam(b1, b2, eps),
        add_decayed_weights(weight_decay, decay),
        scale_by_schedule(rate),
    )
    fused = _fused_update(rate, step_at, decay, _Clip(max_grad_norm, False))
    return chain(*transformations, fused=fused)


class _Clip(NamedTuple):
    max_norm: float  # no clipping if <= 0
    per_tensor: bool  # else by the global norm


def _fused_update(
    rate: Schedule,
    step_at: Callable[[int, float], _fused.FusedStep],
    where: Predicate,
    clip: _Clip,
    first: int = 0,
) -> Fused:
    """Return the update of an Adam by the fused kernel, which is None where it does not apply.

    It applies outside of all transforms, where nothing is differentiated or recorded.
    `step_at(count, rate)` gives the scalars of one update to the kernel.
    """

    def update(
        grads: Tree, state: OptimizerState, params: Tree, donate: bool
    ) -> tuple[Tree, OptimizerState] | None:
        if is_traced() or not (donate or _is_constant((grads, state, params))):
            return None
        # A rate may have a derivative, as a tensor of a caller who differentiates.
        now = rate(int(state.step) + first if donate else state.step + first)
        if not (donate or _is_constant(now)):
            return None
        step = step_at(int(state.step), float(now))
        wide = [at_least_float32(leaf) for leaf in tree.leaves(params)]
        if not (_fused.can_express(step) and _fused.can_fuse(wide, *_moments(state))):
            return None
        del wide
        if not donate:
            state, params = tree.map(_copy, (state, params))
        _step_(grads, state, params, step, where, clip, donate=donate)
        return params, state

    return update


@torch.no_grad()
def _step_(
    grads: Tree,
    state: OptimizerState,
    params: Tree,
    step: _fused.FusedStep,
    where: Predicate,
    clip: _Clip,
    *,
    donate: bool,
) -> None:
    """Take a step in place; what `donate` allows to overwrite, besides, are gradients."""
    named = tree.named_leaves(params)
    # The kernel needs parameters in the type of the moments, which is at least float32.
    wide = [at_least_float32(leaf) for _, leaf in named]
    gradients = [at_least_float32(g) for g in tree.leaves(grads)]
    # Of a gradient that lies on several processes, the norm of the whole clips.
    whole = tree.norms(grads) if clip.max_norm > 0 and tree.spanning_leaves(grads) else None
    max_norm, per_tensor = clip
    divisors = _fused.clip_divisors(gradients, max_norm, per_tensor=per_tensor, whole=whole)
    decayed = [where(path, leaf) for path, leaf in named]
    _fused.fused_adam_(
        wide, gradients, *_moments(state),
        step=step, decayed=decayed, divisors=divisors, donate=donate,
    )  # fmt: skip
    for (_, leaf), result in zip(named, wide, strict=True):
        if leaf is not result:  # half precision: round the float32 result once
            leaf.copy_(result)
    state.step.add_(1)


def _copy(x: Tensor) -> Tensor:
    return x.detach().clone()


def _moments(state: OptimizerState) -> tuple[list[Tensor], list[Tensor]]:
    adam = next(part for part in state.links if isinstance(part, AdamState))
    return tree.leaves(adam.mu), tree.leaves(adam.nu)


def _is_constant(values: Tree) -> bool:
    """Return whether no transform is active, and plain autograd tracks none of these."""
    active = levels(*(x for x in tree.leaves(values) if isinstance(x, Tensor)))
    return not (active.transforms or active.order)


def _made(schedule: Any, warmup: float, t_total: float) -> Schedule:
    """Return the schedule of a factory, or raise TypeError if it is none."""
    if not callable(schedule) or len(signature(schedule).parameters) < 2:
        kind = repr(schedule) if isinstance(schedule, str) else type(schedule).__name__
        raise TypeError(
            f"schedule must be a factory of fnlm.train.schedules, got {kind}: give "
            "schedules.warmup_linear itself; a schedule that is made, or one of your own, goes "
            "into lr=lambda step: 1e-3 * schedule(step)"
        )
    return schedule(warmup, t_total)


def _product(lr: Rate, schedule: Schedule | None) -> Schedule:
    """Return the learning rate as a function of the step: lr * schedule(step)."""

    def rate(step: Any, /) -> Any:
        value = lr(step) if callable(lr) else lr
        return value if schedule is None else value * schedule(step)

    return rate
