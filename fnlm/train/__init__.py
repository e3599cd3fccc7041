"""Optimizers, schedules, losses, training steps and a training loop, over parameter trees."""

from fnlm.train import loss_scale, losses, schedules
from fnlm.train.loop import fit, read_log
from fnlm.train.optimizers import adamw, bert_adam, openai_adam
from fnlm.train.precision import Precision
from fnlm.train.rows import mask_rows
from fnlm.train.state import load_state, save_state
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
    "GradientTransformation",
    "Metrics",
    "OffloadedState",
    "Optimizer",
    "OptimizerState",
    "Precision",
    "Skipped",
    "TrainState",
    "adamw",
    "add_decayed_weights",
    "bert_adam",
    "carry_step",
    "chain",
    "clip_by_global_norm",
    "clip_per_tensor",
    "correct_bias",
    "decay_updated_weights",
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
    "read_log",
    "round_stochastically",
    "save_state",
    "scale_by_adam",
    "scale_by_schedule",
    "schedules",
    "train_step",
]
