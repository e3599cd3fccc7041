"""Any `torch.nn.Module` as a function of its parameters."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.func import functional_call

from fnlm.params.rename import nest
from fnlm.params.tree import Tree, named_leaves

__all__ = ["from_module"]


def from_module(module: nn.Module) -> tuple[Callable[..., Any], Tree]:
    """Turn a module into `(apply, params)`, so that it joins the optimizers and transforms.

    Args:
        module: used as it stands: call `module.eval()` first for an answer without dropout. Its
            buffers are read, never written.

    Returns:
        `apply(params, *args, **kwargs)`, which calls the module with these parameters, and a copy
        of its parameters as a tree; parameters that the module shares (ties) are one leaf.

    Raises:
        RuntimeError: on a call that writes into a buffer (batch norm in training mode).

    >>> import torch
    >>> apply, params = from_module(nn.Linear(2, 3))
    >>> apply(params, torch.ones(4, 2)).shape
    torch.Size([4, 3])

    Source: `torch.func.functional_call`, which honours ties.
    """
    params = nest({name: p.detach().clone() for name, p in module.named_parameters()})
    buffers = {name: b.detach().clone() for name, b in module.named_buffers()}

    def apply(params: Tree, *args: Any, **kwargs: Any) -> Any:
        own = {name: b.clone() for name, b in buffers.items()}  # not all writes can be noticed
        result = functional_call(module, {**dict(named_leaves(params)), **own}, args, kwargs)
        if written := [name for name, b in own.items() if b._version]:
            raise RuntimeError(
                f"the module wrote into its buffers {', '.join(written)}, which a function can't: "
                "call module.eval() before from_module"
            )
        return result

    return apply, params
