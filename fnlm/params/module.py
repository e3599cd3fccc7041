"""Any `torch.nn.Module` as a pure function of its parameters, and any function as a module."""

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from fnlm import tree
from fnlm.params._rename import nest
from fnlm.tree import Tree, named_leaves

__all__ = ["TreeModule", "as_module", "from_module"]


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


class TreeModule(nn.Module):
    """A module of a function and its parameters: see `as_module`."""

    def __init__(self, apply: Callable[..., Any], params: Tree) -> None:
        super().__init__()
        leaves = named_leaves(params)
        self._function = apply
        # The tree with paths in place of tensors; torch's description of a tree can't be copied.
        self._paths = tree.unflatten(tree.structure(params), [path for path, _ in leaves])
        if isinstance(params, dict) and "config" in params and not tree.leaves(params["config"]):
            self.config = params["config"]
        made: dict[int, Tensor] = {}  # a leaf that stands in two places is one parameter
        for path, leaf in leaves:
            if id(leaf) not in made:
                copy = leaf.detach().clone()
                made[id(leaf)] = nn.Parameter(copy) if copy.is_floating_point() else copy
            _register(self, path, made[id(leaf)])

    def params(self) -> Tree:
        """Return the tree of the parameters: the live tensors, which an optimizer goes on writing.

        >>> import torch
        >>> module = as_module(lambda params, x: x * params["scale"], {"scale": torch.ones(2)})
        >>> module.params()["scale"] is module.scale
        True
        """
        return tree.map(lambda path: reduce(getattr, path.split("."), self), self._paths)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return `apply(params, *args, **kwargs)`."""
        return self._function(self.params(), *args, **kwargs)


def as_module(apply: Callable[..., Any], params: Tree) -> TreeModule:
    """Return a module that calls `apply(params, *args, **kwargs)` with parameters of its own.

    For code that wants a module: the optimizers of torch, data-parallel wrappers, trainers. A pure
    function has no modes, so `train()` and `eval()` change nothing: dropout is on when a key is
    given. `from_module` is the other way.

    Args:
        apply: a function of a tree and data, such as `gpt2.apply`, or a loss.
        params: copied. Floating leaves become parameters, others buffers, under their paths
            ("blocks.0.attention.qkv.weight"), those of typed leaves included.

    Returns:
        the module. `module.params()` is the tree again, of its live tensors; `module.config` the
        config, where the tree has one.

    Raises:
        ValueError: a key that no attribute of a module can have.

    >>> import torch
    >>> from fnlm import gpt2, random
    >>> config = gpt2.Config(vocab_size=50, n_positions=8, n_embd=12, n_layer=2, n_head=3)
    >>> module = as_module(gpt2.apply, gpt2.init(config, random.key(0)))
    >>> optimizer = torch.optim.AdamW(module.parameters())
    >>> logits, cache = module(torch.tensor([[3, 1, 4]]))
    >>> logits.sum().backward()
    >>> optimizer.step()
    >>> sorted(module.state_dict())[-1]
    'norm.scale'
    """
    return TreeModule(apply, params)


def _register(root: nn.Module, path: str, leaf: Tensor) -> None:
    """Put a leaf into nested modules, so that the module knows it by its path."""
    *parents, name = path.split(".")
    try:
        for parent in parents:
            if parent not in root._modules:
                root.add_module(parent, nn.Module())
            root = root.get_submodule(parent)
        if isinstance(leaf, nn.Parameter):
            root.register_parameter(name, leaf)
        else:
            root.register_buffer(name, leaf)
    except KeyError as error:
        raise ValueError(
            f"the leaf {path!r} can't be part of a module ({error.args[0]}): rename that key of "
            "params"
        ) from error


def _check_names(names: Iterable[str], trained: Sequence[str]) -> None:
    """Raise ValueError unless the leaves are the module's, which would fill in what is missing."""
    missing = [name for name in trained if name not in set(names)]
    unknown = [name for name in names if name not in set(trained)]
    if missing or unknown:
        raise ValueError(
            "params must have the leaves that from_module gave: "
            f"{missing or 'none'} missing, {unknown or 'none'} too many"
        )
