"""Mixed precision as a value: the dtypes of parameters, of the computation and of its results."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fnlm import tree
from fnlm.train._autocast import without_autocast
from fnlm.tree import Tree

__all__ = ["Precision"]


@dataclass(frozen=True)
class Precision:
    """The dtypes of a computation, with functions that cast trees to them.

    Models normalize in float32 whatever `compute` is, torch's softmax accumulates in it, and
    `fnlm.train.losses` cast logits to it. Autocast is never read: where a precision is given, it is
    off, so the dtypes are the same under `vmap` as without.

    Args:
        params: in which parameters are kept. With float32, these are the master weights of a
            computation in half precision.
        compute: to which parameters are cast where they are used.
        output: to which floating-point results are cast, the loss of a step among them.

    Raises:
        TypeError: a dtype is not floating point.

    >>> mixed = Precision(torch.float32, compute=torch.bfloat16, output=torch.float32)
    >>> mixed.to_compute({"w": torch.ones(2), "ids": torch.tensor([1])})
    {'w': tensor([1., 1.], dtype=torch.bfloat16), 'ids': tensor([1])}

    Source: jmp's `Policy`.
    """

    params: torch.dtype = torch.float32
    compute: torch.dtype = torch.float32
    output: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        """Check the dtypes."""
        for name in ("params", "compute", "output"):
            value = getattr(self, name)
            if not isinstance(value, torch.dtype) or not value.is_floating_point:
                raise TypeError(
                    f"{name} must be a floating-point dtype such as torch.bfloat16, got {value!r}"
                )

    def to_params(self, values: Tree) -> Tree:
        """Return a tree with floating-point leaves in the dtype of parameters.

        >>> Precision(torch.float16).to_params(torch.ones(1)).dtype
        torch.float16
        """
        return _cast(values, self.params)

    def to_compute(self, values: Tree) -> Tree:
        """Return a tree with floating-point leaves in the dtype of the computation.

        >>> Precision(compute=torch.bfloat16).to_compute(torch.ones(1)).dtype
        torch.bfloat16
        """
        return _cast(values, self.compute)

    def to_output(self, values: Tree) -> Tree:
        """Return a tree with floating-point leaves in the dtype of results.

        >>> Precision(output=torch.float64).to_output(torch.ones(1)).dtype
        torch.float64
        """
        return _cast(values, self.output)

    def wrap(self, fn: Callable[..., Any], arguments: int | None = None) -> Callable[..., Any]:
        """Return `fn` with its positional arguments cast to `compute`, its result to `output`.

        Args:
            fn: a function of trees, such as `gpt2.apply`.
            arguments: how many of the arguments are cast, from the first on; all by default.

        Returns:
            a function of the same arguments.

        >>> dot = Precision(compute=torch.bfloat16).wrap(lambda a, b: (a * b).sum())
        >>> dot(torch.tensor([1.0, 2.0**-9]), torch.ones(2))
        tensor(1.)
        """

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with without_autocast(args):
                computed = [self.to_compute(x) for x in args[:arguments]]
                return self.to_output(fn(*computed, *args[len(computed) :], **kwargs))

        return wrapped


def _cast(values: Tree, dtype: torch.dtype) -> Tree:
    """Cast what has a floating-point dtype; other leaves, such as numbers, stay."""
    return tree.map(
        lambda x: x.to(dtype) if hasattr(x, "dtype") and x.dtype.is_floating_point else x, values
    )
