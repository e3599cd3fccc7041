"""Parameters in files: strict reading, exact writing.

Reading maps the file into memory: opening costs the header, and a tensor is read from disk when it
is first used.
"""

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from fnlm.params import hub, rename, tree
from fnlm.params import spec as describe
from fnlm.params.config import BaseConfig
from fnlm.params.rename import Family
from fnlm.params.tree import Tree

__all__ = ["load", "read", "save", "write"]

SpecOf = Callable[..., Tree]


def read(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors file by name, memory-mapped.

    Raises:
        ValueError: the file is damaged or of another format.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a whole .safetensors file: {error}") from error


def write(tensors: dict[str, Tensor], path: str | Path) -> None:
    """Write tensors to a .safetensors file, which appears whole or not at all."""
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    os.close(handle)
    try:
        whole = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        safetensors.torch.save_file(whole, name, metadata={"format": "pt"})
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def load(
    name_or_path: str | Path,
    family: Family,
    config_class: type[BaseConfig],
    spec: SpecOf,
    *,
    heads: Sequence[str] | None,
    key: Tensor | None,
) -> Tree:
    """Read a family's parameters; the body of every family's `load`, which documents it."""
    weights, config_path = hub.locate(name_or_path)
    config = _config(config_path, family, config_class)
    found, unexpected = rename.from_foreign(read(weights), family, str(weights))
    if unexpected:
        every_head = max(family.architectures, key=len)
        _report_unexpected(unexpected, found, spec(config, every_head), family, weights)
    present = tuple(sorted({path.split(".")[1] for path in found if path.startswith("heads.")}))
    wanted = spec(config, present if heads is None else tuple(heads))
    found |= _new_heads(wanted, found, heads, key, weights)
    describe.check(wanted, found, str(weights))
    ordered = {path: found[path] for path, _ in tree.named_leaves(wanted)}
    return {"config": config, **rename.nest(ordered)}


def save(params: Tree, directory: str | Path, family: Family) -> None:
    """Write model.safetensors and config.json; the body of every family's `save`."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config: BaseConfig = params["config"]
    heads = tuple(sorted(params.get("heads", {})))
    leaves = {name: value for name, value in params.items() if name != "config"}
    write(rename.to_foreign(leaves, family.dialects[0]), directory / "model.safetensors")
    content = config.to_dict() | {
        "model_type": family.name,
        "architectures": [family.architectures[heads]],
    }
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    (directory / "config.json").write_text(text, encoding="utf-8")


def _config(path: Path, family: Family, config_class: type[BaseConfig]) -> Any:
    config = config_class.from_json_file(path)
    values = config.to_dict()
    if (found := values.get("model_type", family.name)) != family.name:
        raise ValueError(
            f"{path} is of family {found!r}, not {family.name!r}: use the module of that family"
        )
    for name, value in family.required.items():
        if values.get(name, value) != value:
            raise ValueError(
                f"{path} asks for {name}={values[name]!r}, which changes the arithmetic; "
                f"fnlm computes {name}={value!r} only"
            )
    return config


def _report_unexpected(
    names: list[str], found: dict[str, Tensor], wanted: Tree, family: Family, source: Path
) -> None:
    """Raise, naming each unexpected tensor and the missing one it looks most like."""
    leaves = tree.named_leaves(describe.meta(wanted))
    absent = {path: leaf for path, leaf in leaves if path not in found}
    foreign = rename.to_foreign(rename.nest(absent), family.dialects[0]) if absent else {}
    missing = [name for name, path in zip(foreign, absent, strict=True) if path[:6] != "heads."]
    text = "; ".join(f"unexpected {name}{rename.nearest(name, list(foreign))}" for name in names)
    lost = f"; missing {', '.join(missing)}" if missing else ""
    raise ValueError(f"{source} does not fit family {family.name!r}: {text}{lost}")


def _new_heads(
    wanted: Tree,
    found: dict[str, Tensor],
    heads: Sequence[str] | None,
    key: Tensor | None,
    source: Path,
) -> dict[str, Tensor]:
    """Initialise the wanted heads that the file lacks altogether."""
    have = {path.split(".")[1] for path in found if path.startswith("heads.")}
    lacking = [head for head in heads or () if head not in have]
    if not lacking:
        return {}
    if key is None:
        raise ValueError(
            f"{source} has no head {', '.join(lacking)}: "
            "pass key=fnlm.random.key(seed) to initialise it at random"
        )
    fresh = describe.init({"heads": {head: wanted["heads"][head] for head in lacking}}, key)
    return dict(tree.named_leaves(fresh))
