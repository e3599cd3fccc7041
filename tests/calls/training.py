"""Examples of training, transforms and fine-tuning."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import grad

from calls.common import (
    IDS,
    KEY,
    LOGITS,
    PARAMS,
    SMALL,
    Example,
    Make,
    X,
    files,
    on,
    writes,
)
from fnlm import (
    finetune,
    gpt2,
    layers,
    random,
    taps,
    train,
    transforms,
)
from fnlm.train import loss_scale, losses, schedules
from fnlm.train import state as state_files


def updates(make: Callable[..., train.Optimizer], *args: Any, **kwargs: Any) -> Make:
    optimizer = make(*args, **kwargs)
    second = optimizer.update(SMALL, optimizer.init(SMALL), SMALL)[1]
    return lambda _: on(optimizer.update, SMALL, second, SMALL)


def links(link: train.GradientTransformation) -> Make:
    return lambda _: on(link.update, SMALL, link.init(SMALL), SMALL, torch.tensor(2))


def at_steps(schedule: train.schedules.Schedule) -> Make:
    steps = [0, 1.5, 30, torch.tensor(7)]
    return lambda _: on(lambda steps: [schedule(step) for step in steps], steps)


def square(params: Any, x: Tensor) -> Tensor:
    return (layers.linear(x, **params["up"]) ** 2).mean()


def square_with_key(params: Any, x: Tensor, *, key: Tensor) -> Tensor:
    return square(params, layers.dropout(x, 0.5, key))


STEP = train.train_step(square_with_key, train.adamw(0.1), accumulate=3)
STATE = train.init_state(SMALL, train.adamw(0.1), KEY)


def square_and_sum(params: Any, carry: Tensor, x: Tensor, *, key: Tensor) -> tuple[Tensor, Tensor]:
    return square_with_key(params, x + carry, key=key), carry + x


CARRY_STEP = train.carry_step(square_and_sum, train.adamw(0.1))
CARRIED = train.CarryState(STATE, torch.zeros_like(X))


def state_there(folder: Path) -> Path:
    train.save_state(SMALL, folder / "state.safetensors")
    return folder / "state.safetensors"


def fitted(folder: Path) -> Example:
    """A call of `fit`; the second one finds that all steps were made."""
    ends: dict[str, Any] = {"steps": 3, "evaluate_every": 2, "evaluate": lambda state: 1.0}
    return on(train.fit, STEP, STATE, lambda at: (X + at,), directory=folder / "run", **ends)


def log_there(folder: Path) -> Path:
    (folder / "log.jsonl").write_text('{"step": 2, "train_loss": 0.5}\n')
    return folder


ROWED = (np.arange(36).reshape(3, 12), np.zeros((3, 12), np.int32), np.ones((3, 12), np.bool_))
EPOCHS = finetune.Epochs.of(ROWED, 2.5)


def row_loss(params: Any, *batch: Tensor, key: Tensor | None = None) -> Tensor:
    return square(params, batch[0] / 36)


def row_squares(params: Any, *batch: Tensor) -> Tensor:
    return layers.linear(batch[0] / 36, **params["up"])


SPREAD = finetune.Spread("shard")
X_KEYS = random.split(KEY, len(X))


def finetuned(folder: Path) -> Example:
    """A call of `finetune`; the second one finds that all steps were made."""
    return on(finetune.finetune, row_loss, SMALL, EPOCHS, finetune.Recipe(), folder / "tuned")


RATES: dict[str, Any] = {"warmup": 0.1, "t_total": 10}
PRIVATE_STEP = train.private_step(
    square_with_key, train.adamw(0.1), max_norm=0.1, noise_multiplier=1.0, expected_batch_size=2
)


MIXED = train.Precision(torch.bfloat16, compute=torch.float16)
SCALE = loss_scale.dynamic(8.0)
TRAINING: dict[str, Make] = {
    "describe_run": lambda folder: on(train.describe_run, log_there(folder)),
    "plot_log": lambda folder: on(train.plot_log, log_there(folder), seen=lambda path: path.name),
    "describe_skipped": lambda _: on(train.describe_skipped, STATE),
    "choose_device": lambda _: on(train.choose_device, "cpu"),
    "offload": updates(train.offload, train.adamw(0.1)),
    "half_moments": updates(train.half_moments, train.adamw(0.1), KEY),
    "round_stochastically": lambda _: on(train.round_stochastically, X, torch.bfloat16, KEY),
    "loss_scale.static": lambda _: on(loss_scale.static, 8.0, seen=lambda scale: scale.init()),
    "loss_scale.dynamic": lambda _: on(
        SCALE.update, SCALE.init(), torch.tensor(False), seen=lambda state: state
    ),
    "Precision.to_params": lambda _: on(MIXED.to_params, SMALL),
    "Precision.to_compute": lambda _: on(MIXED.to_compute, SMALL),
    "Precision.to_output": lambda _: on(MIXED.to_output, SMALL),
    "Precision.wrap": lambda _: on(MIXED.wrap(square), SMALL, X),
    "read_notes": lambda folder: on(train.read_notes, state_there(folder)),
    "state.load_with_notes": lambda folder: on(
        state_files.load_with_notes, state_there(folder), SMALL
    ),
    "losses.mean": lambda _: on(losses.mean, LOGITS, LOGITS > 0),
    "poisson_sample": lambda _: on(train.poisson_sample, KEY, 0.5, 20),
    "private_gradient": lambda _: on(
        train.private_gradient,
        square,
        SMALL,
        X,
        key=KEY,
        max_norm=0.1,
        noise_multiplier=1.0,
        expected_batch_size=2,
    ),
    "private_step": lambda _: on(PRIVATE_STEP, STATE, X),
    "add_decayed_weights": links(train.add_decayed_weights(0.1, train.except_bias_and_norm)),
    "chain": updates(train.chain, train.clip_by_global_norm(0.1), train.scale_by_adam()),
    "clip_by_global_norm": links(train.clip_by_global_norm(0.1)),
    "clip_per_tensor": links(train.clip_per_tensor(0.1)),
    "correct_bias": links(train.correct_bias(0.9, 0.99)),
    "decay_updated_weights": links(train.decay_updated_weights(0.1, schedules.constant())),
    "scale_by_adam": links(train.scale_by_adam()),
    "scale_by_schedule": links(train.scale_by_schedule(schedules.warmup_linear(0.1, 10))),
    "adamw": updates(train.adamw, 0.1, max_grad_norm=0.1),
    "bert_adam": updates(train.bert_adam, 0.1, **RATES),
    "openai_adam": updates(train.openai_adam, 0.1, weight_decay=0.1, **RATES),
    "mask_rows": updates(train.mask_rows, train.adamw(0.1), {"up.weight": 1}),
    "init_state": lambda _: on(train.init_state, SMALL, train.adamw(0.1), KEY),
    "fit": fitted,
    "read_log": lambda folder: on(train.read_log, log_there(folder)),
    "load_state": lambda folder: on(train.load_state, state_there(folder), SMALL),
    "save_state": writes(train.save_state, STATE),
    "train_step": lambda _: on(STEP, STATE, X),
    "carry_step": lambda _: on(CARRY_STEP, CARRIED, X),
    "CarryState.step": lambda _: on(lambda state: state.step, CARRIED),
    "schedules.constant": at_steps(schedules.constant()),
    "schedules.warmup_constant": at_steps(schedules.warmup_constant(0.1, 20)),
    "schedules.warmup_linear": at_steps(schedules.warmup_linear(0.1, 20)),
    "schedules.warmup_cosine": at_steps(schedules.warmup_cosine(0.1, 20)),
    "schedules.warmup_cosine_with_hard_restarts": at_steps(
        schedules.warmup_cosine_with_hard_restarts(0.1, 20, 2)
    ),
    "schedules.warmup_cosine_with_warmup_restarts": at_steps(
        schedules.warmup_cosine_with_warmup_restarts(0.1, 20, 2)
    ),
}
CAPTURED = transforms.capture(square, SMALL, X)
TRANSFORMS: dict[str, Make] = {
    "remat": lambda _: on(grad(transforms.remat(square)), SMALL, X),
    "clipped_grad_sum": lambda _: on(
        transforms.clipped_grad_sum, square, SMALL, X, max_norm=0.1, weights=torch.arange(3.0)
    ),
    "capture": lambda _: on(transforms.capture, square, SMALL, X),
    "Capture.norms": lambda _: on(lambda found: found.norms(), CAPTURED),
    "Capture.dot": lambda _: on(lambda found, x: found.dot(x), CAPTURED, SMALL),
    "Capture.weighted_sum": lambda _: on(
        lambda found, w: found.weighted_sum(w), CAPTURED, torch.arange(3.0)
    ),
    "Capture.by_leaf": lambda _: on(lambda found: found.by_leaf(), CAPTURED),
    "grad": lambda _: on(transforms.grad(square), SMALL, X),
    "grad_and_value": lambda _: on(transforms.grad_and_value(square), SMALL, X),
    "per_example_grads": lambda _: on(transforms.per_example_grads, square, SMALL, X, chunk_size=2),
    "per_example_norms": lambda _: on(transforms.per_example_norms, square, SMALL, X),
}
EDITS: dict[str, Any] = {
    "blocks.0.out": torch.zeros(3, 7, 36),
    "blocks.*.mlp.hidden": torch.zeros_like,
}
TAPS: dict[str, Make] = {
    "read": lambda _: on(taps.read(gpt2.apply, "**"), PARAMS, IDS),
    "write": lambda _: on(taps.write(gpt2.apply, EDITS), PARAMS, IDS),
}
FINETUNING: dict[str, Make] = {
    "last_line": lambda folder: on(finetune.last_line, log_there(folder), ["fnlm", "inspect"]),
    "mixed_precision": lambda _: on(finetune.mixed_precision, "bfloat16"),
    "Epochs.of": lambda _: on(finetune.Epochs.of, ROWED, 2.5, seen=lambda epochs: epochs.sizes),
    "batches": lambda _: on(finetune.batches, EPOCHS, KEY, 2, seen=lambda made: made[1](0)),
    "predict": lambda _: on(finetune.predict, row_squares, SMALL, ROWED, 2, "cpu"),
    "finetune": finetuned,
    "mean_loss": lambda _: on(finetune.mean_loss, row_loss, SMALL, ROWED, finetune.Recipe()),
    "Spread.check": lambda _: on(SPREAD.check, 6, 3),
    "Spread.parts": lambda _: on(lambda spread: spread.parts, SPREAD),
    "Spread.place_rows": lambda _: on(SPREAD.place_rows, X),
    "Spread.batches": lambda _: on(SPREAD.batches(lambda at: (X + at,), KEY), 1),
    "Spread.loss": lambda _: on(SPREAD.loss(square_with_key), SMALL, X, X_KEYS, key=KEY),
    "Spread.carry_loss": lambda _: on(
        SPREAD.carry_loss(square_and_sum), SMALL, X, X, X_KEYS, key=KEY
    ),
    "write_results": lambda folder: on(
        finetune.write_results, {"f1": 0.5}, folder / "made", "r", seen=lambda _: files(folder)
    ),
    "claim_run_directory": lambda folder: on(
        finetune.claim_run_directory,
        folder,
        {"seed": 1},
        {"rows": [ROWED[0]]},
        seen=lambda _: files(folder),
    ),
}
