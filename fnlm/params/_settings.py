"""Reading a config.json: every key that changes a number is a field of `Config`, or an error.

A family's tables give, for every other key that a published library writes, the reason why it is
harmless; unknown keys are kept and written back.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from fnlm.params import _rename
from fnlm.params.config import BaseConfig, read_json, short
from fnlm.params.names import Family

__all__ = ["check_use", "heads_of", "read_config"]

C = TypeVar("C", bound=BaseConfig)


def read_config(
    path: Path,
    family: Family,
    kind: type[C],
    tensors: Mapping[str, Tensor],
    heads: Sequence[str] | None = None,
) -> C:
    """Read a config.json of a family; the shapes of the weights supply what it leaves out.

    Args:
        path: of the config.json.
        family: its tables.
        kind: its `Config`.
        tensors: by foreign name; of a `Checkpoint`, no tensor is read.
        heads: those of a file that names no class (`architectures`).

    Raises:
        ValueError: it is of another family, has an invalid field, asks for arithmetic that fnlm
            does not do, or for more blocks than the file has tensors.
    """
    values = read_json(path)
    if (model_type := values.get("model_type", family.name)) not in (family.name, None):
        raise ValueError(
            f"{path} is of family {short(model_type)}, not {family.name!r}: use the module of that "
            "family"
        )
    _refuse(values, family.required, path)
    try:
        narrowed = _rename.for_heads(family, heads_of(values, family) or heads or ())
        config = kind.from_dict(values, _shapes(tensors, narrowed))
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
    """Raise ValueError where the config asks of a requested head what fnlm does not compute.

    Raises:
        ValueError: names the key and its value.
    """
    values = config.to_dict()
    for head in heads:
        _refuse(values, family.required_by_head.get(head, {}), f"the config of {source}", head)


def heads_of(values: Mapping[str, Any], family: Family) -> set[str]:
    """Return the heads of the `architectures` in a config.json."""
    classes = values.get("architectures")
    classes = classes if isinstance(classes, list | tuple) else ()
    return {
        head for heads, name in family.architectures.items() if name in classes for head in heads
    }


def _refuse(
    values: Mapping[str, Any], required: Mapping[str, object], source: object, head: str = ""
) -> None:
    for name, value in required.items():
        if (actual := values.get(name, value)) not in (value, None):
            use = f" of the head {head}" if head else ""
            other = ", or load without that head, heads=()" if head else ""
            raise ValueError(
                f"{source} asks for {name}={short(actual)}, which changes the arithmetic{use}; "
                f"fnlm computes {name}={value!r} only: correct it if the model was trained so"
                f"{other}"
            )


def _shapes(tensors: Mapping[str, Tensor], family: Family) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the leaves by our path, in the axis order of the file."""
    described: Mapping[str, Any] = getattr(tensors, "entries", tensors)
    matches = {name: _rename.classify(name, family) for name in tensors}
    return {
        match.path: tuple(described[name].shape)
        for name, match in matches.items()
        if match.kind == "leaf"
    }
