"""Training on trees and functions: optimizers, losses, per-example gradients, state of a run."""

from fnlm.train import losses, schedules
from fnlm.train.data import Epochs, batches, in_order, predict, tensors
from fnlm.train.gradient import grad, grad_and_value
from fnlm.train.links import (
    AdamState,
    Link,
    Optimizer,
    OptimizerState,
    add_decayed_weights,
    chain,
    clip_global,
    clip_per_tensor,
    correct_bias,
    decay_updated_weights,
    everything,
    except_bias_and_norm,
    global_norm,
    scale_by_adam,
    scale_by_schedule,
)
from fnlm.train.loop import fit, read_log
from fnlm.train.optimizers import adamw, bert_adam, openai_adam
from fnlm.train.per_example import per_example_grads, per_example_norms
from fnlm.train.recipe import Recipe, TextRecipe, check_run, finetune, mean_loss, write_results
from fnlm.train.rows import mask_rows
from fnlm.train.state import (
    CarryState,
    Metrics,
    TrainState,
    carry_step,
    init_state,
    load_state,
    save_state,
    train_step,
)

__all__ = [
    "AdamState",
    "CarryState",
    "Epochs",
    "Link",
    "Metrics",
    "Optimizer",
    "OptimizerState",
    "Recipe",
    "TextRecipe",
    "TrainState",
    "adamw",
    "add_decayed_weights",
    "batches",
    "bert_adam",
    "carry_step",
    "chain",
    "check_run",
    "clip_global",
    "clip_per_tensor",
    "correct_bias",
    "decay_updated_weights",
    "everything",
    "except_bias_and_norm",
    "global_norm",
    "grad",
    "grad_and_value",
    "finetune",
    "fit",
    "in_order",
    "init_state",
    "load_state",
    "losses",
    "mask_rows",
    "mean_loss",
    "openai_adam",
    "per_example_grads",
    "per_example_norms",
    "predict",
    "read_log",
    "save_state",
    "scale_by_adam",
    "scale_by_schedule",
    "schedules",
    "tensors",
    "train_step",
    "write_results",
]
