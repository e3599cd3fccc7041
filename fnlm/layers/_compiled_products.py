"""`fnlm.layers._products` as one operation of a compiled graph, `fnlm::multiply`.

It is imported while `torch.compile` traces, and not before, as the compiler takes seconds to load.
The compiler writes `multiply` into its graph as it stands, and takes derivatives of the graph by
calling it under the same levels, so that they are those of `_products.Multiply`. A graph of
`make_fx` or `torch.export`, which may be differentiated later, has plain operations.
"""

import torch
from torch import Tensor

from fnlm.layers import _products as products
from fnlm.layers._levels import levels

__all__ = ["multiply"]

_operation = "fnlm::multiply"
torch.library.define(_operation, "(Tensor x, Tensor matrix, Tensor? bias) -> Tensor")
torch.library.impl(_operation, "CPU", products._kernel)


@torch.library.register_fake(_operation)
def _empty(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], matrix.shape[1]))


@torch.compiler.allow_in_graph
def multiply(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """Return x @ matrix + bias: x [..., K], matrix [K, N], bias [N] -> [..., N]."""
    if levels(x, matrix, *([] if bias is None else [bias])).forward:
        result = x @ matrix
        return result if bias is None else result + bias
    return products.Multiply.apply(torch.ops.fnlm.multiply.default, x, matrix, bias)
