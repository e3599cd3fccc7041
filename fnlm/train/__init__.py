"""Optimizers, schedules, losses, training steps and a training loop, over parameter trees."""

from fnlm import _former
from fnlm.train import loss_scale, losses, schedules
from fnlm.train._log import describe_run, plot_log, read_log
from fnlm.train.device import choose_device
from fnlm.train.loop import Interrupted, fit
from fnlm.train.optimizers import adamw, bert_adam, openai_adam
from fnlm.train.precision import Precision
from fnlm.train.private import (
    PrivateGradient,
    poisson_sample,
    private_gradient,
    private_step,
)
from fnlm.train.rows import mask_rows
from fnlm.train.state import DamagedStateError, load_state, read_notes, save_state
from fnlm.train.step import (
    CarryState,
    Metrics,
    Skipped,
    TrainState,
    carry_step,
    describe_skipped,
    init_state,
    train_step,
)
from fnlm.train.storage import OffloadedState, half_moments, offload, round_stochastically
from fnlm.train.transformations import (
    AdamState,
    GradientTransformation,
    Optimizer,
    OptimizerState,
    add_decayed_weights,
    chain,
    clip_by_global_norm,
    clip_per_tensor,
    correct_bias,
    decay_updated_weights,
    everything,
    except_bias_and_norm,
    scale_by_adam,
    scale_by_schedule,
)

__all__ = [
    "AdamState",
    "CarryState",
    "DamagedStateError",
    "GradientTransformation",
    "Interrupted",
    "Metrics",
    "OffloadedState",
    "Optimizer",
    "OptimizerState",
    "Precision",
    "PrivateGradient",
    "Skipped",
    "TrainState",
    "adamw",
    "add_decayed_weights",
    "bert_adam",
    "carry_step",
    "chain",
    "choose_device",
    "clip_by_global_norm",
    "clip_per_tensor",
    "correct_bias",
    "decay_updated_weights",
    "describe_run",
    "describe_skipped",
    "everything",
    "except_bias_and_norm",
    "fit",
    "half_moments",
    "init_state",
    "load_state",
    "loss_scale",
    "losses",
    "mask_rows",
    "offload",
    "openai_adam",
    "plot_log",
    "poisson_sample",
    "private_gradient",
    "private_step",
    "read_log",
    "read_notes",
    "round_stochastically",
    "save_state",
    "scale_by_adam",
    "scale_by_schedule",
    "schedules",
    "train_step",
]

_explain = _former.explain_names(__name__)
