"""Validation of parameters before they are written: `load` must accept them."""

import json
from collections.abc import Callable

import torch
from torch import Tensor

from fnlm import tree
from fnlm.params import spec as describe
from fnlm.params._assembly import without_absent
from fnlm.params.config import BaseConfig
from fnlm.params.names import Family
from fnlm.tree import Tree

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check(params: Tree, spec: Callable[..., Tree], family: Family) -> set[str]:
    """Return the paths of the leaves, once all fit the config and can be written.

    Raises:
        ValueError: a leaf is missing, unexpected, of another shape or type, or no dense tensor.
    """
    for path, leaf in tree.typed_leaves(params):
        raise ValueError(
            f"{path} is a leaf of type {type(leaf).__name__}, which no file of this form has: save "
            "fnlm.leaves.merge(params), or adapters alone by fnlm.params.peft.save"
        )
    leaves = dict(tree.named_leaves({k: v for k, v in params.items() if k != "config"}))
    for path, leaf in leaves.items():
        if not isinstance(leaf, Tensor):
            raise ValueError(f"{path} is no tensor but of type {type(leaf).__name__}: remove it")
        if leaf.layout != torch.strided:
            raise ValueError(f"{path} is a tensor of layout {leaf.layout}: save x.to_dense()")
        if leaf.is_meta:
            raise ValueError(f"{path} is on the meta device: there are no numbers to be saved")
        if leaf.dtype not in _DTYPES:
            types = ", ".join(map(str, _DTYPES))
            raise ValueError(f"{path} has type {leaf.dtype}: cast it to one of {types}")
    expected = spec(params["config"], tuple(params.get("heads", {})))
    describe.check(without_absent(expected, leaves, family), leaves, "params")
    return set(leaves)


def config_text(config: BaseConfig, family: Family, heads: tuple[str, ...]) -> str:
    """Return the content of the config.json of a model with some heads."""
    classes = family.architectures
    content = config.to_dict() | {
        "model_type": family.name,
        "architectures": [classes[h] for h in ([heads] if heads in classes else zip(heads))],
    }
    return json.dumps(content, indent=2, sort_keys=True) + "\n"
