"""The flags that training programs share, as dataclasses, and what those of precision mean."""

from dataclasses import dataclass
from pathlib import Path

import torch

from fnlm.finetune.spread import Plan
from fnlm.train import loss_scale
from fnlm.train.loss_scale import LossScale
from fnlm.train.precision import Precision

__all__ = ["MAY_DIFFER", "Computation", "Recipe", "Steps", "TextRecipe", "mixed_precision"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Computation:
    """Where a training program computes, and how precisely: the flags that all of them have.

    Args:
        device: cpu, cuda, or auto for CUDA where there is a GPU.
        dtype: of the computation: float32, bfloat16 or float16; the weights stay float32.
        loss_scale: of a computation in half precision; 0 for a dynamic one in float16 and none
            otherwise.
        optimize_on_cpu: keep the state of the optimizer on the CPU, and update there.
        plan: of the processes that torchrun starts: replicate, each has the whole model; shard,
            each a part of every tensor; tensor, each computes a part of every product.
    """

    device: str = "auto"
    dtype: str = "float32"
    loss_scale: float = 0.0
    optimize_on_cpu: bool = False
    plan: Plan = "replicate"


# Flags in which a run and its continuation may differ.
MAY_DIFFER = ("device", "plan", "checkpoint_every")


@dataclass(frozen=True, kw_only=True)
class Steps(Computation):
    """A `Computation` with what a step of BERT's training is.

    Args:
        train_batch_size: rows per step, of all processes together.
        gradient_accumulation_steps: micro-batches per step, to save memory.
        learning_rate: peak learning rate.
        weight_decay: decoupled weight-decay coefficient, for all but norms and biases.
        seed: of new weights, the order of the rows and dropout.
    """

    train_batch_size: int = 32
    gradient_accumulation_steps: int = 1
    learning_rate: float = 5e-5
    weight_decay: float = 0.01
    seed: int = 42


@dataclass(frozen=True, kw_only=True)
class Recipe(Steps):
    """The hyperparameters of a fine-tuning run, named as in the scripts of pytorch-pretrained-BERT.

    Args:
        num_train_epochs: passes over the rows; 0.5 takes half of them.
        warmup_proportion: fraction of the steps in the warm-up; then the learning rate decays.
        checkpoint_every: steps between checkpoints.
    """

    num_train_epochs: float = 3.0
    warmup_proportion: float = 0.1
    checkpoint_every: int = 500


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
