"""Fine-tuning BERT: the recipe of the examples, its flags, and its batches."""

from fnlm.finetune.batches import Epochs, batches, in_order, predict, tensors
from fnlm.finetune.recipe import Recipe, TextRecipe, check_run, finetune, mean_loss, write_results

__all__ = [
    "Epochs",
    "Recipe",
    "TextRecipe",
    "batches",
    "check_run",
    "finetune",
    "in_order",
    "mean_loss",
    "predict",
    "tensors",
    "write_results",
]
