"""Memory layout (strides) of the weights, optimized for decoding."""

from torch import Tensor

from fnlm import tree
from fnlm.tree import Tree

__all__ = ["for_decoding"]

TABLES = ("embed.token", "output.table")  # used as x @ table.mT by an output layer


def for_decoding(params: Tree) -> Tree:
    """Return the parameters with strides that make decoding one token at a time fastest.

    Decoding on a CPU is a chain of vector-matrix products x @ w that read every weight once a
    token, so its speed is that of memory, where the kernel keeps up. It does where the columns of w
    [in, out] are contiguous (`fnlm.layers.linear`); half types are 20 times slower otherwise. A
    tied table [V, D] is used as table.mT, and is in order as it is. `benchmarks/decode_gpt2.py`
    times it.

    Args:
        params: a family's parameters. Matrices named "weight" and the table `embed.token`, and
            what adapters of them stand on, are laid out; other leaves and those on other devices
            than the CPU are returned as they are, and what is in order already shares its memory
            with the result.

    Returns:
        a tree with equal values, shapes and types; gradients flow through it.

    Raises:
        TypeError: it is no tree.

    >>> import torch
    >>> params = {"weight": torch.eye(3).bfloat16()[:, :2]}
    >>> for_decoding(params)["weight"].stride()
    (1, 3)
    """
    if not isinstance(params, dict | list | tuple):
        raise TypeError(
            f"params must be the parameters of a family, got {type(params).__name__}: make them "
            "with its init or load"
        )
    return tree.map_with_path(_lay_out, params)


def _lay_out(path: str, x: Tensor) -> Tensor:
    path = path.removesuffix(".base")  # of a weight with adapters
    table = path in TABLES
    if x.ndim != 2 or x.device.type != "cpu" or not (table or path.split(".")[-1] == "weight"):
        return x
    return x.contiguous() if table else x.mT.contiguous().mT
