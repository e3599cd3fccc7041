"""Function transforms: gradients, recomputation, and per-example gradients and their norms."""

from fnlm.transforms.gradient import grad, grad_and_value
from fnlm.transforms.per_example import per_example_grads, per_example_norms
from fnlm.transforms.recompute import remat

__all__ = ["grad", "grad_and_value", "per_example_grads", "per_example_norms", "remat"]
