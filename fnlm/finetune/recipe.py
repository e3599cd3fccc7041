"""BERT's fine-tuning recipe, as a preemption-safe run."""

import json
import shlex
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
from fnlm.files._checkpoint import replace
from fnlm.finetune.data import Arrays, Epochs, batches, length_sorted_batches
from fnlm.train import loss_scale
from fnlm.train._log import read_log
from fnlm.train.device import choose_device
from fnlm.train.loop import fit
from fnlm.train.loss_scale import LossScale
from fnlm.train.optimizers import bert_adam
from fnlm.train.precision import Precision
from fnlm.train.rows import mask_rows
from fnlm.train.step import init_state, train_step
from fnlm.train.storage import offload
from fnlm.train.transformations import Optimizer, except_bias_and_norm
from fnlm.tree import Tree

__all__ = [
    "Recipe", "TextRecipe", "claim_run_directory", "finetune", "last_line", "mean_loss",
    "mixed_precision", "write_results",
]  # fmt: skip

Loss = Callable[..., Tensor]
_fine_tuning = partial(bert_adam, decay=except_bias_and_norm)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The hyperparameters of a fine-tuning run, named as in the scripts of pytorch-pretrained-BERT.

    Args:
        train_batch_size: rows per step.
        gradient_accumulation_steps: micro-batches per step, to save memory.
        learning_rate: peak learning rate.
        num_train_epochs: passes over the rows; 0.5 takes half of them.
        warmup_proportion: fraction of the steps in the warm-up; then the learning rate decays.
        weight_decay: decoupled weight-decay coefficient, for all but norms and biases.
        seed: of new heads, the order of the rows and dropout.
        checkpoint_every: steps between checkpoints.
        device: cpu, cuda, or auto for CUDA where there is a GPU.
        dtype: of the computation: float32, bfloat16 or float16; the weights stay float32.
        loss_scale: of a computation in half precision; 0 for a dynamic one in float16 and none
            otherwise.
        optimize_on_cpu: keep the state of the optimizer on the CPU, and update there.
    """

    train_batch_size: int = 32
    gradient_accumulation_steps: int = 1
    learning_rate: float = 5e-5
    num_train_epochs: float = 3.0
    warmup_proportion: float = 0.1
    weight_decay: float = 0.01
    seed: int = 42
    checkpoint_every: int = 500
    device: str = "auto"
    dtype: str = "float32"
    loss_scale: float = 0.0
    optimize_on_cpu: bool = False


@dataclass(frozen=True, kw_only=True)
class TextRecipe(Recipe):
    """A `Recipe` with the settings of a program that fine-tunes BERT on texts.

    Args:
        bert_model: directory, file or hub name of a model and its tokenizer.
        output_dir: directory of the run.
        do_lower_case: lower-case the text; by default as the model's files or name specify.
        max_seq_length: maximum number of tokens per row.
        workers: number of processes that tokenize.
        cache_dir: directory in which to cache token ids; by default they are not cached.
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
    settings: Mapping[str, Any] | None = None,
) -> tuple[Tree, dict[str, float]]:
    """Train with BERT's recipe: `bert_adam`, warm-up and linear decay, keyed dropout.

    An interrupted run that is started again with the same arguments resumes from its last
    checkpoint and ends with the same numbers.

    Args:
        loss: `loss(params, *batch, key=key) -> []`; a batch has a tensor for each array.
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
        the trained parameters; a dictionary of the number of steps, "global_step", and the mean
        training loss over the steps between the last two checkpoints, "loss".

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
        loss, optim, accumulate=parts, precision=precision, loss_scale=scale, donate=True
    )
    state = fit(
        step,
        init_state(params, optim, dropout_key.to(device), loss_scale=scale),
        batch_at,
        steps=steps,
        directory=directory,
        evaluate=None
        if held_out is None
        else lambda state: mean_loss(loss, state.params, held_out, recipe),
        evaluate_every=recipe.checkpoint_every,
    )
    return state.params, {"global_step": steps, "loss": read_log(directory)[-1]["train_loss"]}


def mixed_precision(dtype: str, scale: float = 0.0) -> tuple[Precision, LossScale | None]:
    """Return the precision and the loss scale that the flags of a program ask for.

    Args:
        dtype: of the computation: float32, bfloat16 or float16; the weights stay float32.
        scale: 0 for a dynamic loss scale in float16 and none otherwise.

    Raises:
        ValueError: `dtype` is none of the three, or the scale is negative or not finite.

    >>> mixed_precision("bfloat16")[0].compute, mixed_precision("float16", 128.0)[1].init().scale
    (torch.bfloat16, tensor(128.))
    """
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    precision = Precision(compute=_DTYPES[dtype])
    if scale:
        return precision, loss_scale.static(scale)
    return precision, loss_scale.dynamic() if dtype == "float16" else None


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
    may_differ = ("device", "checkpoint_every")  # between a run and its continuation
    names = [field.name for field in fields(Recipe) if field.name not in may_differ]
    identity = {name: getattr(recipe, name) for name in names} | dict(settings)
    claim_run_directory(directory, identity, fingerprinted)


@torch.no_grad()
def mean_loss(loss: Loss, params: Tree, arrays: Arrays, recipe: Recipe) -> float:
    """Return the mean loss over all rows, without dropout.

    Args:
        loss: `loss(params, *batch)`, a mean over the rows.
        params: on the recipe's device.
        arrays: ids, token types, mask and labels.
        recipe: gives the batch size and the device.

    Raises:
        ValueError: there are no rows.
    """
    if not len(arrays[0]):
        raise ValueError("arrays have no rows, so no mean loss")
    # Batches may differ in size, so each mean is weighted by its number of rows.
    pairs = length_sorted_batches(arrays, recipe.train_batch_size, recipe.device)
    return sum(len(rows) * float(loss(params, *batch)) for rows, batch in pairs) / len(arrays[0])


def write_results(
    results: dict[str, float], directory: str | Path, name: str, *, then: Sequence[str] = ()
) -> str:
    """Write results to `name`.json and, one per line, to `name`.txt; return what to print.

    Args:
        results: the numbers.
        directory: of the run; created if missing.
        name: of the files.
        then: the words of a command that uses what the run has made, if there is one.

    Returns:
        the lines of the text, and a last one that names the files of the directory and the command.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     text = write_results({"f1": 0.5, "accuracy": 0.75}, folder, "eval_results")
    >>> print(text.replace(folder, "runs/one"), end="")
    accuracy = 0.75
    f1 = 0.5
    runs/one holds eval_results.json, eval_results.txt
    """
    lines = "".join(f"{key} = {results[key]}\n" for key in sorted(results))
    _write(Path(directory, f"{name}.txt"), lines)
    _write(Path(directory, f"{name}.json"), json.dumps(results, indent=2, sort_keys=True) + "\n")
    return lines + last_line(directory, then)


def last_line(directory: str | Path, then: Sequence[str] = ()) -> str:
    """Return the last line of a program: what its directory holds, and the next command if any.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     text = write_results({"f1": 0.5}, folder, "eval_results")
    ...     line = last_line(folder, ["fnlm", "inspect", folder])
    >>> print(line.replace(folder, "runs/one"), end="")
    runs/one holds eval_results.json, eval_results.txt; next: fnlm inspect runs/one
    """
    names = sorted(path.name for path in Path(directory).iterdir() if path.name[0] != ".")
    following = f"; next: {shlex.join(then)}" if then else ""
    return f"{directory} holds {', '.join(names)}{following}\n"


def claim_run_directory(
    directory: str | Path,
    settings: Mapping[str, Any],
    fingerprinted: Mapping[str, Sequence[npt.NDArray[Any]]],
) -> None:
    """Claim a directory for a run, by the settings and checksums in its `run.json`.

    Args:
        directory: of the run; created if missing.
        settings: name -> value that JSON can represent.
        fingerprinted: name -> arrays, of which a checksum is compared.

    Raises:
        ValueError: the directory holds another run, and the message names what differs; or its
            `run.json` is damaged.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     claim_run_directory(folder, {"seed": 1}, {"data": [np.zeros(3)]})
    ...     claim_run_directory(folder, {"seed": 2}, {"data": [np.zeros(3)]})
    Traceback (most recent call last):
    ...
    ValueError: ... holds a run with other seed: give another directory, ...
    """
    checksums = dict.fromkeys(fingerprinted, 0)
    for name, arrays in fingerprinted.items():
        for array in arrays:
            checksums[name] = zlib.crc32(np.ascontiguousarray(array).data, checksums[name])
    text = json.dumps({**settings, **checksums}, indent=2, sort_keys=True) + "\n"
    path = Path(directory) / "run.json"
    try:
        _write(path, text, new=True)  # of two runs that begin at once, one is the first
    except FileExistsError:
        _compare(path, json.loads(text))  # as JSON, where a tuple is a list


def _compare(path: Path, expected: dict[str, Any]) -> None:
    """Raise unless a `run.json` has the expected values."""
    try:
        recorded = json.loads(path.read_bytes().decode())
    except (ValueError, RecursionError):
        recorded = None
    if not isinstance(recorded, dict):
        raise ValueError(
            f"{path} is damaged, so nobody knows which run is in {path.parent}: remove the file "
            "if it is this one, or give another directory"
        )
    differing = [name for name in expected if recorded.get(name) != expected[name]]
    if differing:
        raise ValueError(
            f"{path.parent} holds a run with other {', '.join(differing)}: give another "
            "directory, or remove this one to start anew"
        )


def _write(path: Path, text: str, *, new: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, lambda partial: partial.write_text(text, encoding="utf-8"), new=new)
