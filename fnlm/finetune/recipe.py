"""The recipe of BERT's fine-tuning, as a run that may be killed at any time."""

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fnlm import random, tree
from fnlm.files.checkpoint import replace
from fnlm.finetune.data import Arrays, Epochs, batches, length_sorted_batches
from fnlm.train.loop import fit, read_log
from fnlm.train.optimizers import bert_adam
from fnlm.train.rows import mask_rows
from fnlm.train.state import init_state, train_step
from fnlm.train.transformations import Optimizer, except_bias_and_norm
from fnlm.tree import Tree

__all__ = ["Recipe", "TextRecipe", "claim_run_directory", "finetune", "mean_loss", "write_results"]

Loss = Callable[..., Tensor]
_fine_tuning = partial(bert_adam, decay=except_bias_and_norm)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a fine-tuning run can choose; the names are those of the well-known scripts.

    Args:
        train_batch_size: rows a step.
        gradient_accumulation_steps: parts in which a step goes through its rows, to save memory.
        learning_rate: highest.
        num_train_epochs: how often to go through the rows; 0.5 takes half of them.
        warmup_proportion: share of the steps over which the learning rate rises; then it falls.
        weight_decay: of all but norms and biases.
        seed: of new heads, the order of the rows and dropout.
        checkpoint_every: steps between checkpoints.
        device: where to compute, such as cpu or cuda.
    """

    train_batch_size: int = 32
    gradient_accumulation_steps: int = 1
    learning_rate: float = 5e-5
    num_train_epochs: float = 3.0
    warmup_proportion: float = 0.1
    weight_decay: float = 0.01
    seed: int = 42
    checkpoint_every: int = 500
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class TextRecipe(Recipe):
    """What a program that fine-tunes BERT on texts asks for besides.

    Args:
        bert_model: directory, file or hub name of a model and its tokenizer.
        output_dir: directory of the run.
        do_lower_case: lower-case the text; without, as the files or the name of the model say.
        max_seq_length: most tokens of a row.
        workers: processes that turn texts into ids.
        cache_dir: where to keep the ids of texts for the next run; without, they are not kept.
    """

    bert_model: str
    output_dir: Path
    do_lower_case: bool = False
    max_seq_length: int = 128
    workers: int = 1
    cache_dir: Path | None = None


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
    facts: Mapping[str, Any] | None = None,
) -> tuple[Tree, dict[str, float]]:
    """Train by the recipe of BERT: `bert_adam`, warm-up and linear decay, keyed dropout.

    Started again with the same arguments, a run that was killed goes on from its last checkpoint
    and ends with the same numbers.

    Args:
        loss: `loss(params, *batch, key=key) -> []`; a batch has a tensor for each array.
        params: where to start; left as they are.
        data: ids, token types, mask and labels; or these by epoch, which make up their number.
        recipe: the settings.
        directory: of the run: `state.safetensors`, `log.jsonl` and `run.json`, which tells it from
            other runs.
        held_out: rows whose mean loss joins the log at each checkpoint.
        optimizer: makes another one: called with the learning rate and `warmup`, `t_total` and
            `weight_decay`.
        masked_rows: rows of tables whose gradient counts as 0 (see `mask_rows`). That of `[PAD]`
            makes a run of BERT that of its peers, whose tables have it as their `padding_idx`.
        facts: settings of `loss` and `optimizer`, which tell the run from others, too.

    Returns:
        the trained parameters; the number of steps, "global_step", and the mean loss of those since
        the last checkpoint but one, "loss".

    Raises:
        ValueError: the directory holds a run with other settings, data or starting parameters; the
            message names what differs. Or a batch cannot be cut in equal parts, `checkpoint_every`
            is below 1, or `held_out` has no rows.
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
    order, dropout = random.split(random.key(recipe.seed))
    epochs = data if isinstance(data, Epochs) else Epochs.of(data, recipe.num_train_epochs)
    steps, batch_at = batches(epochs, order, rows, recipe.device)
    chosen = optimizer(
        recipe.learning_rate,
        warmup=recipe.warmup_proportion,
        t_total=steps,
        weight_decay=recipe.weight_decay,
    )
    masked = {path: row for path, row in (masked_rows or {}).items() if row is not None}
    chosen = mask_rows(chosen, masked)
    # A copy, as the steps write into it, and what was read from a file may share memory with that.
    params = tree.to(tree.map(torch.clone, tree.cast(params, torch.float32)), recipe.device)
    sources = {
        "data": (np.array(epochs.sizes), *epochs.arrays(0)),
        "starting parameters": [leaf.cpu().numpy() for leaf in tree.leaves(params)],
    }
    free = ("device", "checkpoint_every")
    names = [field.name for field in fields(Recipe) if field.name not in free]
    told = {"masked_rows": masked} if masked else {}
    settings = {name: getattr(recipe, name) for name in names} | told | dict(facts or {})
    claim_run_directory(directory, settings, sources)
    state = fit(
        train_step(loss, chosen, accumulate=parts, donate=True),
        init_state(params, chosen, dropout.to(recipe.device)),
        batch_at,
        steps=steps,
        directory=directory,
        evaluate=None
        if held_out is None
        else lambda state: mean_loss(loss, state.params, held_out, recipe),
        evaluate_every=recipe.checkpoint_every,
    )
    return state.params, {"global_step": steps, "loss": read_log(directory)[-1]["train_loss"]}


@torch.no_grad()
def mean_loss(loss: Loss, params: Tree, arrays: Arrays, recipe: Recipe) -> float:
    """Return the mean loss of rows, without dropout.

    Args:
        loss: `loss(params, *batch)`, a mean over the rows.
        params: on the recipe's device.
        arrays: ids, token types, mask and labels.
        recipe: says how many rows to take at a time.

    Raises:
        ValueError: there are no rows.
    """
    if not len(arrays[0]):
        raise ValueError("arrays have no rows, so no mean loss")
    parts = length_sorted_batches(arrays, recipe.train_batch_size, recipe.device)
    return sum(len(at) * float(loss(params, *x)) for at, x in parts) / len(arrays[0])


def write_results(results: dict[str, float], directory: str | Path, name: str) -> str:
    """Write numbers as `name`.json and, a line each, as `name`.txt; return the lines.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     print(write_results({"f1": 0.5, "accuracy": 0.75}, folder, "eval_results"), end="")
    accuracy = 0.75
    f1 = 0.5
    """
    lines = "".join(f"{key} = {results[key]}\n" for key in sorted(results))
    _write(Path(directory, f"{name}.txt"), lines)
    _write(Path(directory, f"{name}.json"), json.dumps(results, indent=2, sort_keys=True) + "\n")
    return lines


def claim_run_directory(
    directory: str | Path,
    facts: Mapping[str, Any],
    sources: Mapping[str, Sequence[npt.NDArray[Any]]],
) -> None:
    """Write down in `run.json` what tells a run from others; refuse a directory of another one.

    Args:
        directory: of the run, made if need be.
        facts: settings, by name; what JSON can hold.
        sources: arrays, by a name for them; told apart by a checksum.

    Raises:
        ValueError: the directory holds a run with others, and the message names them; or its
            `run.json` is damaged.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     claim_run_directory(folder, {"seed": 1}, {"data": [np.zeros(3)]})
    ...     claim_run_directory(folder, {"seed": 2}, {"data": [np.zeros(3)]})
    Traceback (most recent call last):
    ...
    ValueError: ... holds a run with other seed: give another directory, ...
    """
    checksums = dict.fromkeys(sources, 0)
    for name, arrays in sources.items():
        for array in arrays:
            checksums[name] = zlib.crc32(np.ascontiguousarray(array).data, checksums[name])
    text = json.dumps({**facts, **checksums}, indent=2, sort_keys=True) + "\n"
    path = Path(directory) / "run.json"
    if path.exists():
        try:
            found = json.loads(path.read_bytes().decode())
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise ValueError(
                f"{path} is damaged, so nobody knows which run is in {directory}: remove the file "
                "if it is this one, or give another directory"
            )
        other = [name for name, value in json.loads(text).items() if found.get(name) != value]
        if other:
            raise ValueError(
                f"{directory} holds a run with other {', '.join(other)}: give another directory, "
                "or remove this one to start anew"
            )
    _write(path, text)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, lambda partial: partial.write_text(text, encoding="utf-8"))
