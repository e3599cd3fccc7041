"""Fine-tuning BERT: the training recipe of the examples, its flags, batches and prediction."""

from fnlm.finetune.data import Epochs, batches, length_sorted_batches, predict, tensors
from fnlm.finetune.recipe import (
    Recipe,
    TextRecipe,
    claim_run_directory,
    finetune,
    last_line,
    mean_loss,
    mixed_precision,
    write_results,
)

__all__ = [
    "Epochs",
    "Recipe",
    "TextRecipe",
    "batches",
    "claim_run_directory",
    "finetune",
    "last_line",
    "length_sorted_batches",
    "mean_loss",
    "mixed_precision",
    "predict",
    "tensors",
    "write_results",
]
