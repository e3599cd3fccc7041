"""Any `torch.nn.Module` as a pure function of its parameters."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn
from torch.func import functional_call

from fnlm.params.rename import nest
from fnlm.tree import Tree, named_leaves

__all__ = ["from_module"]


def from_module(module: nn.Module) -> tuple[Callable[..., Any], Tree]:
    """Return `(apply, params)` of a module, for the optimizers and transforms.

    Args:
        module: used as it stands: call `module.eval()` first for an answer without dropout. It is
            copied here, and never written.

    Returns:
        `apply(params, *args, **kwargs)`, which calls the module with these parameters, and a copy
        of its parameters as a tree; parameters that the module shares (ties) are one leaf. Those
        that are frozen (`requires_grad=False`) are not in the tree: like buffers, they are
        constants of `apply`.

    Raises:
        ValueError: on a call with a tree that lacks a leaf or has one too many, or that writes into
            a parameter (an embedding with `max_norm`) or a buffer (batch norm in training mode).
            The arguments stay as they were even so.

    >>> import torch
    >>> apply, params = from_module(nn.Linear(2, 3))
    >>> apply(params, torch.ones(4, 2)).shape
    torch.Size([4, 3])

    Source: `torch.func.functional_call`, which honours ties.
    """
    named = dict(module.named_parameters())
    trained = [name for name, p in named.items() if p.requires_grad]
    params = nest({name: named[name].detach().clone() for name in trained})
    frozen = {name: p for name, p in named.items() if not p.requires_grad}
    constants = {n: x.detach().clone() for n, x in (frozen | dict(module.named_buffers())).items()}

    def apply(params: Tree, *args: Any, **kwargs: Any) -> Any:
        leaves = dict(named_leaves(params))
        _check_names(leaves, trained)
        # Copies, as a module may write into what it is given, and not all writes can be noticed.
        copies = {name: x.clone() for name, x in (leaves | constants).items()}
        result = functional_call(module, copies, args, kwargs)
        if written := [name for name, x in copies.items() if x._version]:
            raise ValueError(
                f"the module wrote into its parameters or buffers {', '.join(written)}, which a "
                "function can't: call module.eval() before from_module, and set max_norm of "
                "embeddings to None"
            )
        return result

    return apply, params


def _check_names(names: Iterable[str], trained: Sequence[str]) -> None:
    """Raise ValueError unless the leaves are the module's, which would fill in what is missing."""
    missing = [name for name in trained if name not in set(names)]
    unknown = [name for name in names if name not in set(trained)]
    if missing or unknown:
        raise ValueError(
            "params must have the leaves that from_module gave: "
            f"{missing or 'none'} missing, {unknown or 'none'} too many"
        )
