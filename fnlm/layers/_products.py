"""Matrix products in float32 by oneDNN, below every transform.

torch multiplies matrices of float32 by MKL, which leaves half of AVX-512 unused on processors of
AMD; oneDNN, which torch ships as well, uses all of it (benchmarks/products.py). Its operation has
no derivative and no rule for `vmap`. So it stands in an `autograd.Function` whose gradients are
products again, and so have derivatives of every order. In forward mode, under autocast and where
operations are recorded, products are torch's own, as they are where nothing is gained: for small
matrices, other types and other processors. `torch.compile` takes it as one operation.

Dimensions: K inputs, N outputs, R rows (all leading axes).
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import unwrap_if_dead
from torch.nn import Parameter

from fnlm.layers._levels import is_traced, levels

__all__ = ["can_multiply", "gains_by_float32", "multiply"]

# Rows, columns and multiplications below which nothing is gained, with what derivatives cost.
ROWS, COLUMNS, LEAST = 16, 128, 1 << 24
# Without derivatives, large matrices gain by any number of rows: numbers in one of them.
LARGE = 1 << 17


def _is_faster() -> bool:
    """Return whether oneDNN is faster on this processor: one of AMD, with AVX-512."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()):
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not (cpu := _CPU).exists():
        return False
    with cpu.open(errors="replace") as file:
        return "AuthenticAMD" in file.read(512)


_CPU = Path("/proc/cpuinfo")
FASTER = _is_faster()
HAS_FLOAT16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_fp16_supported()


def can_multiply(x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> bool:
    """Return whether oneDNN takes x [..., K], matrix [K, N] and bias [N], and is faster."""
    given = (x, matrix) if bias is None else (x, matrix, bias)
    if not FASTER or any(type(t) not in (Tensor, Parameter) for t in given):
        return False
    if matrix.ndim != 2 or not x.ndim or x.shape[-1] != matrix.shape[0]:
        return False
    # In this order: of a small model, a compiled graph then holds for any number of rows.
    much = x.numel() * matrix.shape[1] >= LEAST and x.numel() >= ROWS * x.shape[-1]
    if not (much or _is_long_to_read(x, matrix)):
        return False
    if torch.compiler.is_compiling():
        plain = not torch.is_grad_enabled()
        return (much or plain) and not torch.compiler.is_exporting() and _fits(x, matrix, bias)
    if not _fits(x, matrix, bias) or is_traced():
        return False
    active = levels(*given)
    plain = not (active.order or active.transforms)
    return (much or plain) and not active.forward


def gains_by_float32(x: Tensor, matrix: Tensor) -> bool:
    """Return whether a product in float16 is better made in float32 and rounded.

    Without instructions for the type, torch multiplies in plain loops: derivatives by a matrix take
    twenty times as long. For few rows, a wide copy of the matrix costs what it gains.
    """
    if x.dtype != torch.float16 or matrix.dtype != x.dtype or not x.is_cpu or HAS_FLOAT16:
        return False
    many = x.ndim > 0 and x.numel() >= ROWS * x.shape[-1]
    return many and type(matrix) in (Tensor, Parameter) and not is_traced()


def multiply(x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x @ matrix + bias, where `can_multiply`.

    Args:
        x: [..., K].
        matrix: [K, N], in any memory order.
        bias: [N].

    Returns:
        [..., N].
    """
    if torch.compiler.is_compiling():
        from fnlm.layers import _compiled_products as compiled  # it imports this module

        return compiled.multiply(x, matrix, bias)
    active = levels(x, matrix, *([] if bias is None else [bias]))
    if active.order or active.transforms:
        return Multiply.apply(_kernel, x, matrix, bias)
    return _kernel(x, matrix, bias)


def _is_long_to_read(x: Tensor, matrix: Tensor) -> bool:
    """Return whether few rows gain: one alone by a matrix in order of rows, if it is larger."""
    if matrix.numel() < LARGE or not x.numel():
        return False
    if x.numel() == x.shape[-1]:  # in order of columns, and compiled, see `linear`
        large = matrix.numel() >= 4 * LARGE
        return large and matrix.is_contiguous() and not torch.compiler.is_compiling()
    return matrix.is_contiguous() or matrix.mT.is_contiguous()  # others are copied by `_kernel`


def _fits(x: Tensor, matrix: Tensor, bias: Tensor | None) -> bool:
    """Return whether oneDNN takes these types and sizes, and is not slower."""
    given = (x, matrix) if bias is None else (x, matrix, bias)
    if any(t.dtype != torch.float32 or t.device.type != "cpu" for t in given):
        return False
    if matrix.shape[1] < COLUMNS:
        return False
    if bias is not None and bias.shape != matrix.shape[1:]:
        return False
    return not torch.is_autocast_enabled("cpu")


def _kernel(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    if not (matrix.is_contiguous() or matrix.mT.is_contiguous()):
        # Of rows or columns that stand apart, as in a slice of a matrix, oneDNN makes a plain loop.
        matrix = matrix.contiguous()
    bias = bias if bias is None else bias.contiguous()
    return torch.ops.mkldnn._linear_pointwise(x, matrix.mT, bias, "none", [], "")


class Multiply(torch.autograd.Function):
    """A product whose derivatives are products; kernel(x, matrix, bias) computes each."""

    @staticmethod
    def forward(kernel: Any, x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
        return kernel(x, matrix, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.kernel, *saved, _ = inputs
        ctx.save_for_backward(*saved)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        # A gradient may be taken when the level that saved these is gone.
        x, matrix = map(unwrap_if_dead, ctx.saved_tensors)
        plain = levels(grad_out, x, matrix).forward

        def product(a: Tensor, b: Tensor) -> Tensor:
            return a @ b if plain else Multiply.apply(ctx.kernel, a, b, None)

        grad_x = grad_matrix = grad_bias = None
        grads = grad_out.reshape(-1, grad_out.shape[-1])  # [R, N]
        if ctx.needs_input_grad[1]:
            grad_x = product(grad_out, matrix.mT)
        if ctx.needs_input_grad[2]:
            inputs = x.reshape(-1, x.shape[-1])  # [R, K]
            if matrix.stride(0) == 1:  # in the memory order of the matrix
                grad_matrix = product(grads.mT, inputs).mT
            else:
                grad_matrix = product(inputs.mT, grads)
        if ctx.needs_input_grad[3]:
            grad_bias = grads.sum(0)
        return None, grad_x, grad_matrix, grad_bias

    @staticmethod
    def vmap(info: Any, dims: Any, kernel: Any, *given: Tensor | None) -> Any:
        rows, columns, of_bias = dims[1:]
        if columns is not None:  # a matrix for each member
            pairs = zip(given, dims[1:], strict=True)
            members = [_members(t, dim, info.batch_size) for t, dim in pairs]
            found = [Multiply.apply(kernel, *one) for one in zip(*members, strict=True)]
            return torch.stack(found), 0
        x, matrix, bias = given
        assert x is not None
        x = x.expand(info.batch_size, *x.shape) if rows is None else x.movedim(rows, 0)
        if of_bias is None:
            return Multiply.apply(kernel, x, matrix, bias), 0
        assert bias is not None
        result = Multiply.apply(kernel, x, matrix, None)  # [n, ..., N]
        bias = bias.movedim(of_bias, 0)
        return result + bias.reshape(len(bias), *(1,) * (result.ndim - 2), -1), 0


def _members(t: Tensor | None, dim: int | None, count: int) -> tuple[Tensor | None, ...]:
    return (t,) * count if t is None or dim is None else t.unbind(dim)
