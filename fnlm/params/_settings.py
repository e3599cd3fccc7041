"""Keys of a config.json that change numbers: each is a field of a `Config`, or refused by name.

A family's tables say of every other key that a published library writes why it is harmless; what
nobody knows is kept and written back.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from fnlm.params import rename
from fnlm.params.config import BaseConfig, read_json, short
from fnlm.params.rename import Family

__all__ = ["check_use", "heads_of", "read_config"]

C = TypeVar("C", bound=BaseConfig)


def read_config(
    path: Path,
    family: Family,
    kind: type[C],
    tensors: Mapping[str, Tensor],
    heads: Sequence[str] | None = None,
) -> C:
    """Read a config.json of a family; what it leaves out, the file of weights tells.

    Args:
        path: of the config.json.
        family: its tables.
        kind: its `Config`.
        tensors: by foreign name; of a `Checkpoint`, no tensor is read.
        heads: that a file without names of classes is to have.

    Raises:
        ValueError: it is of another family, has an invalid field, asks for arithmetic that fnlm
            does not do, or for more blocks than the file has tensors.
    """
    values = read_json(path)
    if (found := values.get("model_type", family.name)) not in (family.name, None):
        raise ValueError(
            f"{path} is of family {short(found)}, not {family.name!r}: use the module of that "
            "family"
        )
    _refuse(values, family.required, path)
    try:
        known = rename.for_heads(family, heads_of(values, family) or heads or ())
        config = kind.from_dict(values, _shapes(tensors, known))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    depth = getattr(config, kind.depth)
    if tensors and depth > len(tensors):
        raise ValueError(
            f"{path} says {kind.depth}={depth}, more than its file has tensors ({len(tensors)}): "
            "the two do not belong together, or one is damaged"
        )
    return config


def check_use(config: BaseConfig, family: Family, heads: Sequence[str], source: str) -> None:
    """Refuse what a config says of heads that are wanted, where fnlm does not do it.

    Raises:
        ValueError: names the key and its value.
    """
    values = config.to_dict()
    for head in heads:
        _refuse(values, family.required_by_head.get(head, {}), f"the config of {source}", head)


def heads_of(values: Mapping[str, Any], family: Family) -> set[str]:
    """Return the heads of the classes that the content of a config.json names."""
    classes = values.get("architectures")
    classes = classes if isinstance(classes, list | tuple) else ()
    return {
        head for heads, name in family.architectures.items() if name in classes for head in heads
    }


def _refuse(
    values: Mapping[str, Any], required: Mapping[str, object], source: object, head: str = ""
) -> None:
    for name, value in required.items():
        if (found := values.get(name, value)) not in (value, None):
            use = f" of the head {head}" if head else ""
            other = ", or load without that head, heads=()" if head else ""
            raise ValueError(
                f"{source} asks for {name}={short(found)}, which changes the arithmetic{use}; fnlm "
                f"computes {name}={value!r} only: correct it if the model was trained so{other}"
            )


def _shapes(tensors: Mapping[str, Tensor], family: Family) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the leaves in a file, as the file has them."""
    described: Mapping[str, Any] = getattr(tensors, "entries", tensors)
    found = {name: rename.classify(name, family) for name in tensors}
    return {
        match.path: tuple(described[name].shape)
        for name, match in found.items()
        if match.kind == "leaf"
    }
