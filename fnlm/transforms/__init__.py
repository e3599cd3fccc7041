"""Function transforms: gradients, and per-example gradients, their norms and clipped sums."""

from fnlm.transforms.capture import Capture, Lookup, Product, Term, capture
from fnlm.transforms.gradient import grad, grad_and_value
from fnlm.transforms.per_example import clipped_grad_sum, per_example_grads, per_example_norms

__all__ = [
    "Capture", "Lookup", "Product", "Term", "capture", "clipped_grad_sum", "grad",
    "grad_and_value", "per_example_grads", "per_example_norms",
]  # fmt: skip
