"""`fnlm.layers._products` as one operation of a compiled graph, `fnlm::multiply`.

`torch.compile` writes `_multiply` into its graph as it stands, and takes derivatives of the graph
by calling it under the same levels, so that they are those of `_products.Multiply`. A graph of
`make_fx` or `torch.export`, which may be differentiated later, has plain operations.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fnlm.layers import _products as products
from fnlm.layers._levels import levels

__all__ = ["multiply"]


def _called_while_tracing(function: Callable[..., Any]) -> Callable[..., Any]:
    """Have the compiler call a function: `torch.compiler.assume_constant_result`.

    That one would load the compiler, which takes seconds, when this module is imported.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function


@_called_while_tracing
def _register() -> bool:
    """Make the operation, and have the compiler take `_multiply` as it stands."""
    if not hasattr(torch.ops.fnlm, "multiply"):
        name = "fnlm::multiply"
        torch.library.define(name, "(Tensor x, Tensor matrix, Tensor? bias) -> Tensor")
        torch.library.impl(name, "CPU", products._kernel)
        torch.library.register_fake(name, _empty)
    torch.compiler.allow_in_graph(_multiply)
    return True


def _empty(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], matrix.shape[1]))


def _multiply(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    if levels(x, matrix, *([] if bias is None else [bias])).forward:
        result = x @ matrix
        return result if bias is None else result + bias
    return products.Multiply.apply(torch.ops.fnlm.multiply.default, x, matrix, bias)


def multiply(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """Return x @ matrix + bias: x [..., K], matrix [K, N], bias [N] -> [..., N]."""
    _register()
    return _multiply(x, matrix, bias)
