"""The state of a training run, training steps, and saving and loading the state."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fnlm import random, tree
from fnlm.files import safetensors as safe
from fnlm.train.transformations import Optimizer
from fnlm.transforms.gradient import grad_and_value
from fnlm.tree import Tree

__all__ = [
    "CarryState", "Metrics", "TrainState", "carry_step", "init_state", "load_state", "save_state",
    "train_step",
]  # fmt: skip

CHECKSUM = "sha256"  # key in the metadata of a state file
Loss = Callable[..., Tensor]


class TrainState(NamedTuple):
    """The complete state of a training run, from which it can resume."""

    params: Tree  # the trained parameters
    opt_state: Tree  # the state of the optimizer
    key: Tensor  # [] int64, the source of all randomness of the run; constant
    step: Tensor  # [] int64, number of steps made


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


StepFn = Callable[..., tuple[TrainState, Metrics]]


def init_state(params: Tree, optimizer: Optimizer, key: Tensor) -> TrainState:
    """Return the state before the first step.

    Args:
        params: the initial parameters; the state holds these tensors, not copies.
        optimizer: the optimizer given to `train_step`.
        key: [] int64, from `fnlm.random.key`.

    >>> from fnlm.train import adamw
    >>> init_state({"w": torch.zeros(2)}, adamw(0.1), random.key(0)).step
    tensor(0)
    """
    return TrainState(params, optimizer.init(params), key, torch.zeros_like(key))


def train_step(
    loss: Loss, optimizer: Optimizer, *, accumulate: int = 1, donate: bool = False
) -> StepFn:
    """Return a training step: `step(state, *batch) -> (state, metrics)`.

    Args:
        loss: `loss(params, *batch, key=key) -> []`. The key is `fold_in(state.key, state.step)`
            (folded once more with the index of the micro-batch if there are several), so a run that
            resumes draws the same numbers.
        optimizer: turns gradients into new parameters.
        accumulate: number of micro-batches (gradient accumulation), equal parts of the first axis
            of the batch. The step takes the mean of their losses, which is the loss of the whole
            batch if all micro-batches have the same number of labels.
        donate: update in place: the tensors of the state are overwritten with the results.

    Returns:
        the step, which is pure (without `donate`): it can be vmapped over states and compiled.

    >>> from fnlm.train import adamw
    >>> step = train_step(lambda params, x, key: ((params["w"] - x) ** 2).sum(), adamw(0.1))
    >>> state = init_state({"w": torch.zeros(2)}, adamw(0.1), random.key(0))
    >>> state, metrics = step(state, torch.ones(2))
    >>> state.step, metrics.loss
    (tensor(1), tensor(2.))
    """
    if accumulate < 1:
        raise ValueError(f"accumulate must be at least 1, got {accumulate}")
    differentiate = grad_and_value(lambda params, *batch, key: loss(params, *batch, key=key))

    def gradient(params: Tree, key: Tensor, batch: tuple[Any, ...]) -> tuple[Tree, Tensor]:
        if accumulate == 1:
            return differentiate(params, *batch, key=key)
        total: Any = None  # sums of gradients and losses
        for i, micro_batch in enumerate(_micro_batches(batch, accumulate)):
            pair = differentiate(params, *micro_batch, key=random.fold_in(key, i))
            total = pair if total is None else tree.map(torch.add, total, pair)
        return tree.map(lambda x: x / accumulate, total)

    def step(state: TrainState, *batch: Any) -> tuple[TrainState, Metrics]:
        grads, value = gradient(state.params, random.fold_in(state.key, state.step), batch)
        metrics = Metrics(value, tree.norm(grads))
        params, opt_state = optimizer.update(grads, state.opt_state, state.params, donate=donate)
        return TrainState(params, opt_state, state.key, state.step + 1), metrics

    return step


def carry_step(
    loss: Callable[..., tuple[Tensor, Tree]], optimizer: Optimizer, *, donate: bool = False
) -> Callable[..., tuple[CarryState, Metrics]]:
    """Return a training step that carries model state: `train_step` over a `CarryState`.

    Args:
        loss: `loss(params, carry, *batch, key=key) -> ([], carry)`. Gradients are truncated at the
            boundary of steps.
        optimizer, donate: as for `train_step`.

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
    differentiate = grad_and_value(loss, has_aux=True)

    def step(state: CarryState, *batch: Any) -> tuple[CarryState, Metrics]:
        params, opt_state, key, count = state.train
        step_key = random.fold_in(key, count)
        grads, (value, carry) = differentiate(params, state.carry, *batch, key=step_key)
        metrics = Metrics(value, tree.norm(grads))
        params, opt_state = optimizer.update(grads, opt_state, params, donate=donate)
        carry = tree.map(torch.Tensor.detach, carry)
        return CarryState(TrainState(params, opt_state, key, count + 1), carry), metrics

    return step


def save_state(state: Tree, path: str | os.PathLike[str]) -> None:
    """Write a tree of tensors, such as a `TrainState`, to a safetensors file, by dotted paths.

    The write is atomic: a run killed while it writes leaves the previous file. A tensor that occurs
    several times in the tree is written each time. The file has a checksum.

    Raises:
        OSError: the file could not be written, as on a full disk; the previous one is unchanged.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_state({"w": torch.ones(2)}, f"{folder}/state.safetensors")
    ...     load_state(f"{folder}/state.safetensors", like={"w": torch.zeros(2)})
    {'w': tensor([1., 1.])}
    """
    tensors = {name: leaf.detach().cpu().contiguous() for name, leaf in tree.named_leaves(state)}
    safe.write(tensors, Path(path), {CHECKSUM: _checksum(tensors)})


def load_state(path: str | os.PathLike[str], like: Tree) -> Tree:
    """Read a tree that `save_state` wrote.

    Args:
        path: the file.
        like: a tree of the same structure, shapes and types, for example `init_state(...)` of a new
            run. Its values are not read; devices, memory layouts and constants (a config) are taken
            from it.

    Returns:
        The tree, bit for bit as saved.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: names, shapes or types differ, and the message lists them; or the file is
            damaged: it is truncated or its checksum does not match.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no state at {path}; save_state writes one")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            checksum = (file.metadata() or {}).get(CHECKSUM)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    if checksum not in (None, _checksum(tensors)):  # none: not written by save_state
        raise ValueError(
            f"{path} is damaged: its content does not have the checksum that was written with it; "
            "copy it again, or remove it to begin anew"
        )
    _check(path, tensors, dict(tree.named_leaves(like)))
    return tree.map_with_path(lambda name, leaf: torch.empty_like(leaf).copy_(tensors[name]), like)


def _checksum(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _micro_batches(batch: tuple[Any, ...], number: int) -> list[tuple[Any, ...]]:
    """Split the first axis of every leaf into equal parts."""
    for path, leaf in tree.named_leaves(batch):
        if leaf.ndim == 0 or leaf.shape[0] % number:
            raise ValueError(
                f"accumulate={number} must divide the first axis of batch.{path}, "
                f"which has shape {tuple(leaf.shape)}"
            )
    # [B, ...] -> [number, B / number, ...]
    stacked = tree.map(lambda leaf: leaf.unflatten(0, (number, -1)), batch)
    return [tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(number)]


def _check(
    path: str | os.PathLike[str], tensors: dict[str, Tensor], expected: dict[str, Tensor]
) -> None:
    """Raise unless a file has the names, shapes and types of `like`."""
    problems = [f"missing {name}" for name in expected.keys() - tensors.keys()]
    problems += [f"unexpected {name}" for name in tensors.keys() - expected.keys()]
    for name in expected.keys() & tensors.keys():
        a, b = tensors[name], expected[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            problems.append(
                f"mismatched {name}: {tuple(a.shape)} {a.dtype} in the file, "
                f"{tuple(b.shape)} {b.dtype} in `like`"
            )
    if problems:
        raise ValueError(
            f"{path} is not a state like `like` ({'; '.join(sorted(problems))}); "
            "pass the state of a run with the same model and optimizer"
        )
