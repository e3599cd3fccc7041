"""Function transforms: gradients of batches and examples, recomputation, curvature, influence."""

from fnlm.transforms.attribution import Attribution, Influence, attribute, influence
from fnlm.transforms.capture import Capture, Lookup, Product, Term, capture
from fnlm.transforms.curvature import empirical_fisher, fisher, ggn, hessian
from fnlm.transforms.gradient import grad, grad_and_value
from fnlm.transforms.kronecker import KroneckerOperator, Pair, ekfac, kfac
from fnlm.transforms.operator import Operator
from fnlm.transforms.per_example import clipped_grad_sum, per_example_grads, per_example_norms
from fnlm.transforms.recompute import remat
from fnlm.transforms.softmax import LinearSoftmaxCrossEntropy, SoftmaxCrossEntropy
from fnlm.transforms.solvers import (
    Estimate,
    Lanczos,
    Solution,
    dense,
    diagonal,
    lanczos,
    solve,
    trace,
)

__all__ = [
    "Attribution", "Capture", "Estimate", "Influence", "KroneckerOperator", "Lanczos",
    "LinearSoftmaxCrossEntropy", "Lookup", "Operator", "Pair", "Product", "SoftmaxCrossEntropy",
    "Solution", "Term", "attribute", "capture", "clipped_grad_sum", "dense", "diagonal", "ekfac",
    "empirical_fisher", "fisher", "ggn", "grad", "grad_and_value", "hessian", "influence", "kfac",
    "lanczos", "per_example_grads", "per_example_norms", "remat", "solve", "trace",
]  # fmt: skip
