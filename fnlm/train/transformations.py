"""Composable gradient transformations, the building blocks of optimizers.

A transformation maps a tree of updates (the first one sees the gradients) to another one, and keeps
a state::

    init(params) -> state
    update(updates, state, params, count) -> (updates, state)

`count` is a 0-d int64 tensor, the number of updates made before this one. `chain` applies
transformations in order and subtracts the result from the parameters. All of it is plain
out-of-place tensor arithmetic, so an update can be differentiated, vmapped over the members of an
ensemble and compiled.

Half-precision parameters are updated in float32: gradients are cast before the first
transformation, moment estimates are kept in float32, and the new parameters are rounded once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fnlm import _former, tree
from fnlm.layers.precision import at_least_float32
from fnlm.train._checks import (
    check_clip,
    check_decay_rates,
    check_gradients,
    check_rates,
    check_trainable,
)
from fnlm.train.schedules import Schedule
from fnlm.tree import Predicate, Tree

__all__ = [
    "AdamState", "GradientTransformation", "Optimizer", "OptimizerState", "add_decayed_weights",
    "chain", "clip_by_global_norm", "clip_per_tensor", "correct_bias", "decay_updated_weights",
    "everything", "except_bias_and_norm", "scale_by_adam", "scale_by_schedule",
]  # fmt: skip


class GradientTransformation(NamedTuple):
    """A pair of pure functions, `init` and `update`, as the module's docstring describes them."""

    init: Callable[[Tree], Tree]
    update: Callable[[Tree, Tree, Tree, Tensor], tuple[Tree, Tree]]


class UpdateFn(Protocol):
    """The signature of `Optimizer.update`."""

    def __call__(
        self, grads: Tree, state: "OptimizerState", params: Tree, *, donate: bool = False
    ) -> tuple[Tree, "OptimizerState"]: ...


@_former.explained
class Optimizer(NamedTuple):
    """A pair: `init(params) -> state` and `update(grads, state, params) -> (params, state)`.

    `update` is pure. With `donate=True` it works in place: the tensors of `params` and `state` are
    overwritten with the results, and those of `grads` hold unspecified values afterwards.

    >>> import torch
    >>> from fnlm.train import adamw
    >>> optimizer, params = adamw(0.1), {"w": torch.ones(2)}
    >>> state = optimizer.init(params)
    >>> params, state = optimizer.update({"w": torch.ones(2)}, state, params)
    >>> params["w"], state.step
    (tensor([0.8990, 0.8990]), tensor(1))
    """

    init: Callable[[Tree], "OptimizerState"]
    update: UpdateFn


class OptimizerState(NamedTuple):
    """The state of an optimizer: a tree of tensors, saved, stacked and vmapped like parameters."""

    step: Tensor  # [] int64, number of updates made
    links: tuple[Any, ...]  # the state of each transformation, () for a stateless one


class AdamState(NamedTuple):
    """The moment estimates of `scale_by_adam`."""

    mu: Tree  # first moment: shapes and dtypes of the parameters, at least float32
    nu: Tree  # second moment, likewise


Fused = Callable[[Tree, OptimizerState, Tree, bool], tuple[Tree, OptimizerState] | None]


def chain(*transformations: GradientTransformation, fused: Fused | None = None) -> Optimizer:
    """Compose gradient transformations into an optimizer.

    The new parameters are::

        params - transformations[-1](... transformations[0](grads))

    Args:
        transformations: in the order in which they are applied.
        fused: an equivalent `update(grads, state, params, donate)`, or one that returns None: then
            the pure update is computed, and copied into the buffers if donated.

    >>> import torch
    >>> sgd = chain(clip_by_global_norm(1.0), scale_by_schedule(lambda step: 0.5))
    >>> params = {"w": torch.tensor([1.0, 1.0])}
    >>> sgd.update({"w": torch.tensor([0.0, 4.0])}, sgd.init(params), params)[0]
    {'w': tensor([1.0000, 0.5000])}
    """

    def init(params: Tree) -> OptimizerState:
        check_trainable(params)
        device = next((leaf.device for leaf in tree.leaves(params)), None)
        count = torch.zeros((), dtype=torch.int64, device=device)
        return OptimizerState(count, tuple(t.init(params) for t in transformations))

    def pure(updates: Tree, state: OptimizerState, params: Tree) -> tuple[Tree, OptimizerState]:
        states = []
        updates = tree.map(at_least_float32, updates)
        for transformation, before in zip(transformations, state.links, strict=True):
            updates, after = transformation.update(updates, before, params, state.step)
            states.append(after)
        # The difference is taken in float32 and rounded once to the type of the parameter.
        params = tree.map(lambda p, u: (p - u).to(p.dtype), params, updates)
        return params, OptimizerState(state.step + 1, tuple(states))

    def copied(grads: Tree, state: OptimizerState, params: Tree) -> tuple[Tree, OptimizerState]:
        with torch.no_grad():
            results = pure(grads, state, params)
            tree.map(lambda buffer, value: buffer.copy_(value), (params, state), results)
        return params, state

    def update(
        grads: Tree, state: OptimizerState, params: Tree, *, donate: bool = False
    ) -> tuple[Tree, OptimizerState]:
        if not isinstance(state, OptimizerState):
            raise TypeError(
                "state must be what optimizer.init(params) or the last update returned, got "
                f"{type(state).__name__}; the order is update(grads, state, params)"
            )
        check_gradients(grads, params)
        found = None if fused is None else fused(grads, state, params, donate)
        return found or (copied if donate else pure)(grads, state, params)

    return Optimizer(init, update)


def clip_per_tensor(max_norm: float) -> GradientTransformation:
    """Scale each gradient tensor down to a norm of at most `max_norm` (no clipping if <= 0).

    Source: `torch.nn.utils.clip_grad_norm_` called on one tensor, with its 1e-6 in the denominator.

    >>> import torch
    >>> clip_per_tensor(1.0).update({"a": torch.tensor([3.0, 4.0])}, (), {}, torch.tensor(0))[0]
    {'a': tensor([0.6000, 0.8000])}
    """
    check_clip(max_norm=max_norm)

    def clip(updates: Tree, params: Tree, count: Tensor) -> Tree:
        if max_norm <= 0:
            return updates
        norms = tree.unflatten(tree.structure(updates), tree.norms(updates))
        return tree.map(lambda g, norm: _times(g, _clip_factor(norm, max_norm)), updates, norms)

    return _stateless(clip)


def clip_by_global_norm(max_norm: float) -> GradientTransformation:
    """Scale all gradients by one factor to a global norm of at most `max_norm` (none if <= 0).

    Source: `torch.nn.utils.clip_grad_norm_`.

    >>> import torch
    >>> grads = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}
    >>> clip_by_global_norm(1.0).update(grads, (), {}, torch.tensor(0))[0]
    {'a': tensor([0.6000]), 'b': tensor([0.8000])}
    """
    check_clip(max_norm=max_norm)

    def clip(updates: Tree, params: Tree, count: Tensor) -> Tree:
        if max_norm <= 0:
            return updates
        factor = _clip_factor(tree.norm(updates), max_norm)
        return tree.map(lambda g: _times(g, factor), updates)

    return _stateless(clip)


def scale_by_adam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, *, bias_correction: bool = True
) -> GradientTransformation:
    """Scale updates by the Adam rule.

    For the gradient g of a leaf::

        mu     <- b1 mu + (1 - b1) g
        nu     <- b2 nu + (1 - b2) g^2
        update  = mu / (sqrt(nu) + eps)

    With `bias_correction`, the last line has mu / (1 - b1^t) and nu / (1 - b2^t) instead, where
    t = count + 1.

    Args:
        b1, b2: decay rates of the first and second moment estimates, in [0, 1).
        eps: added to the denominator for numerical stability.
        bias_correction: correct both estimates for their initialization at 0.

    Deviation: nu is clamped to the smallest normal number under the root. This changes no digit of
    the denominator for eps >= 1e-12, and keeps derivatives of the update finite where a gradient is
    exactly 0.

    >>> import torch
    >>> adam, params = scale_by_adam(), {"w": torch.zeros(2)}
    >>> adam.update({"w": torch.tensor([3.0, -0.1])}, adam.init(params), params, torch.tensor(0))[0]
    {'w': tensor([ 1.0000, -1.0000])}
    """
    check_decay_rates(b1=b1, b2=b2)
    check_rates(eps=eps)

    def zeros(params: Tree) -> Tree:
        return tree.map(lambda p: torch.zeros_like(at_least_float32(p)), params)

    def init(params: Tree) -> AdamState:
        return AdamState(zeros(params), zeros(params))

    def update(
        grads: Tree, state: AdamState, params: Tree, count: Tensor
    ) -> tuple[Tree, AdamState]:
        grads = tree.map(lambda g, m: g.to(m.dtype), grads, state.mu)
        mu = tree.map(lambda m, g: m.lerp(g, 1 - b1), state.mu, grads)
        nu = tree.map(lambda v, g: (v * b2).addcmul(g, g, value=1 - b2), state.nu, grads)
        if bias_correction:
            c1, c2 = _bias_corrections(b1, b2, count)
            updates = tree.map(lambda m, v: _over(m, c1) / (_root(_over(v, c2)) + eps), mu, nu)
        else:
            updates = tree.map(lambda m, v: m / (_root(v) + eps), mu, nu)
        return updates, AdamState(mu, nu)

    return GradientTransformation(init, update)


def correct_bias(b1: float, b2: float) -> GradientTransformation:
    """Multiply by sqrt(1 - b2^t) / (1 - b1^t), t = count + 1: bias correction after eps.

    The correction is a factor of the whole update, so eps is added to the uncorrected root of nu.

    Source: the last paragraph of section 2 of the Adam paper (arXiv:1412.6980), as OpenAI's GPT
    used it.

    >>> import torch
    >>> correct_bias(0.9, 0.99).update({"w": torch.ones(1)}, (), {}, torch.tensor(0))[0]
    {'w': tensor([1.0000])}
    """
    check_decay_rates(b1=b1, b2=b2)

    def correct(updates: Tree, params: Tree, count: Tensor) -> Tree:
        c1, c2 = _bias_corrections(b1, b2, count)
        return tree.map(lambda u: _times(u, c2.sqrt() / c1), updates)

    return _stateless(correct)


def add_decayed_weights(
    weight_decay: float, where: Predicate | None = None
) -> GradientTransformation:
    """Add `weight_decay * params` to the updates of the leaves selected by `where(path, leaf)`.

    Args:
        weight_decay: decoupled weight-decay coefficient.
        where: predicate of path and leaf; None selects every leaf.

    >>> import torch
    >>> params = {"weight": torch.ones(1), "bias": torch.ones(1)}
    >>> updates = {"weight": torch.zeros(1), "bias": torch.zeros(1)}
    >>> decay = add_decayed_weights(0.1, except_bias_and_norm)
    >>> decay.update(updates, (), params, torch.tensor(0))[0]
    {'weight': tensor([0.1000]), 'bias': tensor([0.])}
    """
    check_rates(weight_decay=weight_decay)
    where = where or everything

    def decay(path: str, p: Tensor, u: Tensor) -> Tensor:
        return u.add(p, alpha=weight_decay) if where(path, p) else u

    return _stateless(
        lambda updates, params, count: (
            tree.map_with_path(decay, params, updates) if weight_decay else updates
        )
    )


def scale_by_schedule(schedule: Schedule, first: int = 0) -> GradientTransformation:
    """Scale updates by `schedule(count + first)`: the first update reads the schedule at `first`.

    >>> import torch
    >>> scale = scale_by_schedule(lambda step: 0.5**step)
    >>> scale.update({"w": torch.ones(1)}, (), {}, torch.tensor(2))[0]
    {'w': tensor([0.2500])}
    """

    def scale(updates: Tree, params: Tree, count: Tensor) -> Tree:
        value = schedule(count + first)
        return tree.map(lambda u: _times(u, value), updates)

    return _stateless(scale)


def decay_updated_weights(
    weight_decay: float, schedule: Schedule, first: int = 0, where: Predicate | None = None
) -> GradientTransformation:
    """Apply weight decay to the updated weights, p - u, rather than to p.

    The update u of a leaf p becomes::

        rate = schedule(count + first)
        u   <- u + rate weight_decay (p - u)

    It belongs after the transformation that scales by the learning rate.

    Args:
        weight_decay: decoupled weight-decay coefficient.
        schedule: the learning rate as a function of the step.
        first: step at which the first update reads the schedule.
        where: predicate of path and leaf; None selects every leaf.

    >>> import torch
    >>> decay = decay_updated_weights(0.1, lambda step: 0.5)
    >>> decay.update({"w": torch.tensor([1.0])}, (), {"w": torch.tensor([3.0])}, torch.tensor(0))[0]
    {'w': tensor([1.1000])}
    """
    check_rates(weight_decay=weight_decay)
    where = where or everything

    def decay(updates: Tree, params: Tree, count: Tensor) -> Tree:
        if not weight_decay:
            return updates
        rate = schedule(count + first) * weight_decay
        return tree.map_with_path(
            lambda path, p, u: u + _times(p - u, rate) if where(path, p) else u, params, updates
        )

    return _stateless(decay)


def everything(path: str, leaf: Any) -> bool:
    """Select every leaf, for weight decay of all parameters.

    >>> everything("norm.bias", None)
    True
    """
    del path, leaf  # every leaf is selected
    return True


def except_bias_and_norm(path: str, leaf: Any) -> bool:
    """Select all but biases and the scales of norms, as fine-tuning recipes do for weight decay.

    >>> [except_bias_and_norm(path, None) for path in ("up.weight", "up.bias", "norm.scale")]
    [True, False, False]
    """
    del leaf  # the last name of the path decides
    return path.rpartition(".")[2] not in ("bias", "scale")


def _stateless(update: Callable[[Tree, Tree, Tensor], Tree]) -> GradientTransformation:
    return GradientTransformation(
        lambda params: (),
        lambda updates, state, params, count: (update(updates, params, count), state),
    )


def _times(x: Tensor, factor: Any) -> Tensor:
    """Multiply by a number or a 0-d tensor, in the type of `x`."""
    return x * (factor.to(x.dtype) if isinstance(factor, Tensor) else factor)


def _over(x: Tensor, divisor: Tensor) -> Tensor:
    """Divide by a 0-d tensor, in the type of `x`."""
    return x / divisor.to(x.dtype)


def _root(v: Tensor) -> Tensor:
    """Return sqrt(v), with v clamped away from 0, where the root has an infinite derivative."""
    return v.clamp_min(
        torch.finfo(v.dtype).tiny
    ).sqrt_()  # in place: clamp_min returned a new tensor


def _clip_factor(norm: Tensor, max_norm: float) -> Tensor:
    """Return the factor, at most 1, that brings a norm down to `max_norm`."""
    return (max_norm / (norm + 1e-6)).clamp_max(1.0)


def _bias_corrections(b1: float, b2: float, count: Tensor) -> tuple[Tensor, Tensor]:
    """Return 1 - b1^t and 1 - b2^t, t = count + 1, as float64 0-d tensors."""
    t = (count + 1).to(torch.float64)
    return 1 - b1**t, 1 - b2**t
