"""BERT's fine-tuning recipe, as a preemption-safe run."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fnlm import distributed, random, tree
from fnlm.finetune.data import Arrays, Epochs, batches, length_sorted_batches, over_ranks
from fnlm.finetune.directory import claim_run_directory
from fnlm.finetune.flags import MAY_DIFFER, Recipe, mixed_precision
from fnlm.finetune.spread import Spread
from fnlm.train._log import read_log
from fnlm.train.device import choose_device
from fnlm.train.loop import fit
from fnlm.train.optimizers import bert_adam
from fnlm.train.rows import mask_rows
from fnlm.train.step import init_state, train_step
from fnlm.train.storage import offload
from fnlm.train.transformations import Optimizer, except_bias_and_norm
from fnlm.tree import Tree

__all__ = ["finetune", "mean_loss", "whole"]

Loss = Callable[..., Tensor]
_fine_tuning = partial(bert_adam, decay=except_bias_and_norm)


def finetune(
    loss: Loss,
    params: Tree,
    data: Arrays | Epochs,
    recipe: Recipe,
    directory: str | Path,
    *,
    held_out: Arrays | None = None,
    optimizer: Callable[..., Optimizer] = _fine_tuning,
    masked_rows: Mapping[str, int | None] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> tuple[Tree, dict[str, float]]:
    """Train with BERT's recipe: `bert_adam`, warm-up and linear decay, keyed dropout.

    An interrupted run that is started again with the same arguments resumes from its last
    checkpoint and ends with the same numbers. On many processes (`fnlm.distributed.session`), each
    computes its rows of every batch; the numbers are those of one process, and the directory is
    the same, so that another number of them may resume.

    Args:
        loss: `loss(params, *batch, key=keys) -> []`; a batch has a tensor for each array, and
            there is a dropout key for each row.
        params: the initial parameters, which stay unchanged.
        data: ids, token types, mask and labels; or `Epochs` of these, which set the number of
            epochs, too.
        recipe: the hyperparameters.
        directory: of the run: `state.safetensors`, `log.jsonl`, and `run.json`, which identifies
            the run.
        held_out: validation rows, whose mean loss is logged at each checkpoint.
        optimizer: factory of the optimizer, called with the learning rate and `warmup`, `t_total`
            and `weight_decay`.
        masked_rows: rows of tables with zero gradients (see `mask_rows`). With that of `[PAD]`, a
            run of BERT equals one of pytorch-pretrained-BERT, where it is the `padding_idx`.
        settings: settings of `loss` and `optimizer`, which identify the run, too.

    Returns:
        the trained parameters, whole on every process; a dictionary of the number of steps,
        "global_step", and the mean training loss over the steps between the last two checkpoints,
        "loss".

    Raises:
        ValueError: the directory holds a run with other settings, data or initial parameters, and
            the message names what differs; a batch does not divide into equal micro-batches;
            `checkpoint_every` is below 1; `held_out` has no rows; or there is no such device.
    """
    rows, parts = recipe.train_batch_size, recipe.gradient_accumulation_steps
    if recipe.checkpoint_every < 1:
        raise ValueError(f"checkpoint_every must be at least 1, got {recipe.checkpoint_every}")
    if held_out is not None and not len(held_out[0]):
        raise ValueError("held_out has no rows: leave it out, or hold some back")
    if parts < 1 or rows % parts:
        raise ValueError(
            f"train_batch_size={rows} must be a multiple of gradient_accumulation_steps={parts}"
        )
    spread = Spread(recipe.plan)
    spread.check(rows, parts)
    device = choose_device(recipe.device)
    precision, scale = mixed_precision(recipe.dtype, recipe.loss_scale)
    order_key, dropout_key = random.split(random.key(recipe.seed))
    epochs = data if isinstance(data, Epochs) else Epochs.of(data, recipe.num_train_epochs)
    steps, batch_at = batches(epochs, order_key, rows, device)
    masked = {path: row for path, row in (masked_rows or {}).items() if row is not None}
    optim = _optimizer(optimizer, recipe, steps, masked)
    # A copy, as the steps update in place, and loaded parameters may be memory-mapped from a file.
    params = tree.to(tree.map(torch.clone, tree.cast(params, torch.float32)), device)
    settings = ({"masked_rows": masked} if masked else {}) | dict(settings or {})
    _claim(directory, recipe, settings, epochs, params)
    step = train_step(
        spread.loss(loss), optim, accumulate=parts, precision=precision, loss_scale=scale,
        donate=True,
    )  # fmt: skip
    state = fit(
        step,
        init_state(spread.place(params), optim, dropout_key.to(device), loss_scale=scale),
        spread.batches(batch_at, dropout_key),
        steps=steps,
        directory=directory,
        evaluate=None
        if held_out is None
        else lambda state: mean_loss(loss, whole(state.params), held_out, recipe),
        evaluate_every=recipe.checkpoint_every,
        processes=distributed.processes(),
    )
    last = distributed.on_first(lambda: read_log(directory)[-1])
    return whole(state.params), {"global_step": steps, "loss": last["train_loss"]}


def whole(params: Tree) -> Tree:
    """Return parameters that are whole on every process, for evaluation, without gradients.

    >>> whole({"w": torch.ones(1)})
    {'w': tensor([1.])}
    """
    with torch.no_grad():
        return distributed.gather(params)


def _optimizer(
    make: Callable[..., Optimizer], recipe: Recipe, steps: int, masked: Mapping[str, int]
) -> Optimizer:
    optimizer = make(
        recipe.learning_rate,
        warmup=recipe.warmup_proportion,
        t_total=steps,
        weight_decay=recipe.weight_decay,
    )
    return mask_rows(offload(optimizer) if recipe.optimize_on_cpu else optimizer, masked)


def _claim(
    directory: str | Path, recipe: Recipe, settings: Mapping[str, Any], epochs: Epochs, params: Tree
) -> None:
    """Claim the directory for the run of a recipe, its settings, data and first parameters."""
    fingerprinted = {
        "data": (np.array(epochs.sizes), *epochs.arrays(0)),
        "starting parameters": [leaf.cpu().numpy() for leaf in tree.leaves(params)],
    }
    names = [field.name for field in fields(Recipe) if field.name not in MAY_DIFFER]
    identity = {name: getattr(recipe, name) for name in names} | dict(settings)
    claim_run_directory(directory, identity, fingerprinted)


@torch.no_grad()
def mean_loss(loss: Loss, params: Tree, arrays: Arrays, recipe: Recipe) -> float:
    """Return the mean loss over all rows, without dropout.

    On many processes, all of which call it, each computes some of the batches.

    Args:
        loss: `loss(params, *batch)`, a mean over the rows.
        params: whole, on the recipe's device.
        arrays: ids, token types, mask and labels.
        recipe: gives the batch size and the device.

    Raises:
        ValueError: there are no rows.
    """
    if not len(arrays[0]):
        raise ValueError("arrays have no rows, so no mean loss")
    # Batches may differ in size, so each mean is weighted by its number of rows.
    pairs = length_sorted_batches(arrays, recipe.train_batch_size, recipe.device)
    parts = over_ranks(lambda pair: len(pair[0]) * float(loss(params, *pair[1])), iter, pairs)
    return sum(parts) / len(arrays[0])
