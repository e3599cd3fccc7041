"""Fine-tuning BERT: the training recipe of the examples, its flags, batches and prediction."""

from fnlm.finetune.data import (
    Epochs,
    batches,
    length_sorted_batches,
    over_ranks,
    predict,
    tensors,
)
from fnlm.finetune.directory import claim_run_directory, last_line, write_results
from fnlm.finetune.flags import (
    MAY_DIFFER,
    Computation,
    Recipe,
    Steps,
    TextRecipe,
    mixed_precision,
)
from fnlm.finetune.recipe import finetune, mean_loss, whole
from fnlm.finetune.spread import Spread

__all__ = [
    "MAY_DIFFER",
    "Computation",
    "Epochs",
    "Recipe",
    "Spread",
    "Steps",
    "TextRecipe",
    "batches",
    "claim_run_directory",
    "finetune",
    "last_line",
    "length_sorted_batches",
    "mean_loss",
    "mixed_precision",
    "over_ranks",
    "predict",
    "tensors",
    "whole",
    "write_results",
]
