"""Training steps: pure functions from the state of a run and a batch to the next state."""

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnlm import random, tree
from fnlm.train._accumulation import accumulated, is_readable, times, unscaled
from fnlm.train._autocast import without_autocast
from fnlm.train.loss_scale import LossScale, LossScaleState
from fnlm.train.precision import Precision
from fnlm.train.transformations import Optimizer
from fnlm.transforms.gradient import grad_and_value
from fnlm.tree import Tree

__all__ = [
    "CarryState", "Metrics", "Skipped", "TrainState", "carry_step", "describe_skipped",
    "init_state", "train_step",
]  # fmt: skip

Loss = Callable[..., Tensor]


class Skipped(NamedTuple):
    """The steps without an update, because a gradient was NaN or infinite."""

    steps: Tensor  # [] int64, how many
    in_a_row: Tensor  # [] int64, how many up to the last step; 0 where that was a good one
    last: Tensor  # [] int64, the last of them, counted from 1; 0 for none
    leaf: Tensor  # [] int64, its first leaf with such a gradient; -1 where only the loss was such


class TrainState(NamedTuple):
    """The complete state of a training run, from which it can resume."""

    params: Tree  # the trained parameters
    opt_state: Tree  # the state of the optimizer
    key: Tensor  # [] int64, the source of all randomness of the run; constant
    step: Tensor  # [] int64, number of steps made, which is the position in the data
    loss_scale: LossScaleState | tuple[()]  # () for a run without
    skipped: Skipped  # the steps that left parameters and optimizer as they were


class CarryState(NamedTuple):
    """The state of a run whose model carries state from batch to batch, such as memories."""

    train: TrainState
    carry: Tree  # the state that the model carries, without gradient

    @property
    def step(self) -> Tensor:
        """Number of steps made: [] int64."""
        return self.train.step


class Metrics(NamedTuple):
    """The metrics of a training step."""

    loss: Tensor  # [] before the update
    gradient_norm: Tensor  # [] global norm of the gradients, before any clipping
    finite: Tensor  # [] bool, False where the step was skipped


StepFn = Callable[..., tuple[TrainState, Metrics]]
CarryStepFn = Callable[..., tuple[CarryState, Metrics]]


def init_state(
    params: Tree, optimizer: Optimizer, key: Tensor, *, loss_scale: LossScale | None = None
) -> TrainState:
    """Return the state before the first step.

    Args:
        params: the initial parameters; the state holds these tensors, not copies.
        optimizer: the optimizer given to `train_step`.
        key: [] int64, from `fnlm.random.key`.
        loss_scale: the loss scale given to `train_step`.

    >>> from fnlm.train import adamw
    >>> init_state({"w": torch.zeros(2)}, adamw(0.1), random.key(0)).step
    tensor(0)
    """
    _check_optimizer(optimizer, "init_state(params, optimizer, key)")
    random.check_key(key)
    zero = torch.zeros_like(key)
    scale = () if loss_scale is None else tree.map(lambda x: x.to(key.device), loss_scale.init())
    skipped = Skipped(zero.clone(), zero.clone(), zero.clone(), zero - 1)
    return TrainState(params, optimizer.init(params), key, zero, scale, skipped)


def train_step(
    loss: Loss,
    optimizer: Optimizer,
    *,
    accumulate: int = 1,
    precision: Precision | None = None,
    loss_scale: LossScale | None = None,
    donate: bool = False,
) -> StepFn:
    """Return a training step: `step(state, *batch) -> (state, metrics)`.

    Where the loss or a gradient is NaN or infinite, the step changes neither parameters nor
    optimizer: it only advances `state.step` and is noted in `state.skipped`.

    Args:
        loss: `loss(params, *batch, key=key) -> []`. The key is `fold_in(state.key, state.step)`
            (folded once more with the index of the micro-batch if there are several), so a run that
            resumes draws the same numbers.
        optimizer: turns gradients into new parameters.
        accumulate: number of micro-batches (gradient accumulation), equal parts of the first axis
            of the batch. Means of `fnlm.train.losses` are over the whole batch, however many tokens
            each micro-batch counts; of any other loss, the step takes the mean. A loss of several
            such means, in micro-batches of different counts, costs a forward pass more.
        precision: dtypes of the computation; by default those of the parameters. The batch is left
            as it is, so that targets of a regression are not rounded.
        loss_scale: of `fnlm.train.loss_scale`, for a computation in float16.
        donate: update in place: the tensors of the state are overwritten with the results.

    Returns:
        the step, which is pure (without `donate`): it can be vmapped over states and compiled. It
        raises ValueError if the state has no loss scale though the step has one, if parameters are
        not of the dtype of `precision`, or if a batch does not divide into micro-batches.

    >>> from fnlm.train import adamw
    >>> step = train_step(lambda params, x, key: ((params["w"] - x) ** 2).sum(), adamw(0.1))
    >>> state = init_state({"w": torch.zeros(2)}, adamw(0.1), random.key(0))
    >>> state, metrics = step(state, torch.ones(2))
    >>> state.step, metrics.loss
    (tensor(1), tensor(2.))
    """
    _check_loss(loss)
    _check_optimizer(optimizer, "train_step(loss, optimizer)")
    if accumulate < 1:
        raise ValueError(f"accumulate must be at least 1, got {accumulate}: 1 is the whole batch")
    loss = loss if precision is None else precision.wrap(loss, arguments=1)
    gradient = accumulated(loss, accumulate)

    def step(state: TrainState, *batch: Any) -> tuple[TrainState, Metrics]:
        _check_state(state, precision, loss_scale)
        key = random.fold_in(state.key, state.step)
        with nullcontext() if precision is None else without_autocast(state.params):
            grads, value = gradient(state.params, key, _scale_of(state), batch)
        return _advance(state, grads, value, optimizer, loss_scale, donate=donate)

    return step


def carry_step(
    loss: Callable[..., tuple[Tensor, Tree]],
    optimizer: Optimizer,
    *,
    precision: Precision | None = None,
    loss_scale: LossScale | None = None,
    donate: bool = False,
) -> CarryStepFn:
    """Return a training step that carries model state: `train_step` over a `CarryState`.

    Args:
        loss: `loss(params, carry, *batch, key=key) -> ([], carry)`. Gradients are truncated at the
            boundary of steps; the carry of a step that is skipped is the former one.
        optimizer, precision, loss_scale, donate: as for `train_step`.

    >>> from fnlm.train import adamw
    >>> def loss(params, carry, x, key):  # of the sum of all batches so far
    ...     carry = carry + x
    ...     return ((params["w"] - carry) ** 2).sum(), carry
    >>> start = init_state({"w": torch.zeros(2)}, adamw(0.1), random.key(0))
    >>> state = CarryState(start, torch.zeros(2))
    >>> step = carry_step(loss, adamw(0.1))
    >>> step(step(state, torch.ones(2))[0], torch.ones(2))[0].carry
    tensor([2., 2.])
    """
    loss = loss if precision is None else precision.wrap(loss, arguments=2)

    def scaled(params: Tree, scale: Tensor | None, *args: Any, key: Tensor) -> Any:
        value, carry = loss(params, *args, key=key)
        return times(value, scale), (value, carry)

    def step(state: CarryState, *batch: Any) -> tuple[CarryState, Metrics]:
        train, old = state
        _check_state(train, precision, loss_scale)
        scale, key = _scale_of(train), random.fold_in(train.key, train.step)
        differentiate = grad_and_value(scaled, has_aux=True)
        with nullcontext() if precision is None else without_autocast(train.params):
            grads, (_, (value, carry)) = differentiate(train.params, scale, old, *batch, key=key)
        carry = tree.map(lambda x, y: x.detach().to(y.dtype), carry, old)
        train, metrics = _advance(
            train, unscaled(grads, scale), value.detach(), optimizer, loss_scale, donate=donate
        )
        return CarryState(train, _choose(metrics.finite, lambda: carry, old)), metrics

    return step


def describe_skipped(state: TrainState | CarryState) -> str:
    """Return one line on the steps that were skipped; "" if there were none.

    >>> from fnlm.train import adamw
    >>> step = train_step(lambda params, x, key: (params["w"] * x).sum(), adamw(0.1))
    >>> state = init_state({"w": torch.ones(2)}, adamw(0.1), random.key(0))
    >>> describe_skipped(step(state, torch.tensor(torch.inf))[0])
    '1 step skipped, the last one step 1: the gradient of w was not finite'
    """
    train = state.train if isinstance(state, CarryState) else state
    count, leaf = int(train.skipped.steps), int(train.skipped.leaf)
    if not count:
        return ""
    what = "the loss" if leaf < 0 else f"the gradient of {tree.named_leaves(train.params)[leaf][0]}"
    steps = f"{count} step{'s' * (count > 1)} skipped, the last one step {int(train.skipped.last)}"
    scale = f"; the loss scale is {float(train.loss_scale[0]):g}" if train.loss_scale else ""
    return f"{steps}: {what} was not finite{scale}"


def _advance(
    state: TrainState,
    grads: Tree,
    value: Tensor,
    optimizer: Optimizer,
    loss_scale: LossScale | None,
    *,
    donate: bool,
) -> tuple[TrainState, Metrics]:
    """Return the next state: updated, or with a step skipped where a number is none."""
    norms = torch.stack(tree.norms(grads) or [tree.norm(grads)])  # which raises: nothing to train
    bad = ~norms.isfinite()  # [leaves]
    finite = value.isfinite() & ~bad.any()
    metrics = Metrics(value, torch.linalg.vector_norm(norms), finite)
    old = (state.params, state.opt_state)
    donate = donate and is_readable(finite)  # else the former values are needed afterwards
    params, opt_state = _choose(
        finite, lambda: optimizer.update(grads, state.opt_state, state.params, donate=donate), old
    )
    step, skipped = state.step + 1, state.skipped
    leaf = torch.where(bad.any(), bad.to(torch.uint8).argmax(), -1)
    skipped = Skipped(
        skipped.steps + ~finite,
        torch.where(finite, 0, skipped.in_a_row + 1),
        torch.where(finite, skipped.last, step),
        torch.where(finite, skipped.leaf, leaf),
    )
    scale: Any = state.loss_scale
    if loss_scale is not None:
        scale = loss_scale.update(scale, finite)
    return TrainState(params, opt_state, state.key, step, scale, skipped), metrics


def _choose(condition: Tensor, new: Callable[[], Tree], old: Tree) -> Tree:
    """Return `new()` or `old`: by a branch where the condition can be read, else by selection."""
    if is_readable(condition):
        return new() if bool(condition) else old
    return tree.map(lambda a, b: torch.where(condition, a, b), new(), old)


def _scale_of(state: TrainState) -> Tensor | None:
    return state.loss_scale.scale if isinstance(state.loss_scale, LossScaleState) else None


def _check_optimizer(optimizer: Any, order: str) -> None:
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(
            "optimizer must be one of fnlm.train, such as adamw(1e-3), got "
            f"{type(optimizer).__name__}: the order is {order}"
        )


def _check_loss(loss: Any) -> None:
    """Raise TypeError unless a loss is a function that takes a key."""
    if not callable(loss):
        raise TypeError(
            f"loss must be a function loss(params, *batch, key), got {type(loss).__name__}: the "
            "order is train_step(loss, optimizer)"
        )
    parameters = inspect.signature(loss).parameters.values()
    if not any(p.name == "key" or p.kind is p.VAR_KEYWORD for p in parameters):
        raise TypeError(
            f"loss must take key, got loss({', '.join(p.name for p in parameters)}): write "
            "loss(params, *batch, key) and give the key to the model for dropout, or leave it "
            "unused"
        )


def _check_state(
    state: TrainState, precision: Precision | None, loss_scale: LossScale | None
) -> None:
    """Raise unless a state has what the step needs."""
    if not isinstance(state, TrainState):
        raise TypeError(
            f"state must be what init_state or the last step returned, got {type(state).__name__}: "
            "state = init_state(params, optimizer, key)"
        )
    if (loss_scale is not None) != isinstance(state.loss_scale, LossScaleState):
        has, other = ("a", "none") if loss_scale is not None else ("no", "one")
        raise ValueError(
            f"the step has {has} loss scale and the state {other}: give the same loss_scale to "
            "init_state and train_step"
        )
    if precision is None:
        return
    for path, leaf in tree.named_leaves(state.params):
        if leaf.is_floating_point() and leaf.dtype != precision.params:
            raise ValueError(
                f"params.{path} is {leaf.dtype}, precision.params is {precision.params}: "
                "init_state(precision.to_params(params), ...), or another precision"
            )
