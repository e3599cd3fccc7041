"""Examples of training, transforms and fine-tuning."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calls.common import (
    IDS,
    KEY,
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
    taps,
    train,
    transforms,
)
from fnlm.train import schedules


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


def finetuned(folder: Path) -> Example:
    """A call of `finetune`; the second one finds that all steps were made."""
    return on(finetune.finetune, row_loss, SMALL, EPOCHS, finetune.Recipe(), folder / "tuned")


RATES: dict[str, Any] = {"warmup": 0.1, "t_total": 10}
TRAINING: dict[str, Make] = {
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
TRANSFORMS: dict[str, Make] = {
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
    "Epochs.of": lambda _: on(finetune.Epochs.of, ROWED, 2.5, seen=lambda epochs: epochs.sizes),
    "batches": lambda _: on(finetune.batches, EPOCHS, KEY, 2, seen=lambda made: made[1](0)),
    "predict": lambda _: on(finetune.predict, row_squares, SMALL, ROWED, 2, "cpu"),
    "finetune": finetuned,
    "mean_loss": lambda _: on(finetune.mean_loss, row_loss, SMALL, ROWED, finetune.Recipe()),
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
