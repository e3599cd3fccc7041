"""Parameters in files: strict reading of every format, exact writing.

Opening a file costs its headers; where the format allows, tensors are mapped into memory and read
from disk when they are first used.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fnlm.params import _settings, arrays, hub, pickled, rename, safe, tensorflow, tree
from fnlm.params import spec as describe
from fnlm.params.checkpoint import Checkpoint, replace
from fnlm.params.config import BaseConfig
from fnlm.params.rename import Dialect, Family
from fnlm.params.tree import Tree

__all__ = ["assemble", "config_from", "load", "read", "save", "write"]

SpecOf = Callable[..., Tree]
_READERS = {
    ".safetensors": safe,
    **dict.fromkeys((".bin", ".pt", ".pth"), pickled),
    **dict.fromkeys((".npz", ".npy"), arrays),
    ".index": tensorflow,
}


def read(path: str | Path) -> Checkpoint:
    """Describe the tensors of a file of any format; each is read when asked for.

    Args:
        path: safetensors, torch.save's zip and legacy formats, an index of shards of either,
            TensorFlow's bundles and V1 files, .npz, .npy, or OpenAI's params_shapes.json. What a
            file is shows in its bytes; its name counts where they are damaged.

    Raises:
        ValueError: the file is damaged, hostile or of another format.
        FileNotFoundError: there is no such file.

    >>> from fnlm.params import hub
    >>> file = read(hub.weights("tiny"))
    >>> file.format, file.entries["transformer.ln_f.weight"].shape
    ('safetensors', (128,))
    """
    path = Path(path)
    path = path.parent if path.name == arrays.SHAPES else path
    if not path.is_dir() or arrays.recognises(path):
        for reader in (tensorflow, safe, arrays, pickled):
            if reader.recognises(path):
                return reader.read(path)
    if path.suffix in _READERS and path.is_file():
        return _READERS[path.suffix].read(path)
    raise ValueError(
        f"{path} is no checkpoint: neither safetensors, nor written by torch.save, TensorFlow or "
        "NumPy"
    )


def write(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Write tensors to a file, which appears whole or not at all.

    Args:
        tensors: by name.
        path: a name that ends in .bin means the form of `torch.save` that every version of torch
            reads; any other means safetensors.
    """
    if Path(path).suffix == ".bin":
        pickled.write(tensors, path, legacy=True)
    else:
        safe.write(tensors, path)


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
    weights, config = hub.locate(name_or_path)
    tensors = read(weights)
    return assemble(
        tensors,
        config_from(config, family, config_class, tensors, heads),
        family,
        spec,
        source=str(weights),
        heads=heads,
        key=key,
    )


def assemble(
    tensors: Mapping[str, Tensor],
    config: BaseConfig,
    family: Family,
    spec: SpecOf,
    *,
    source: str = "tensors",
    heads: Sequence[str] | None = None,
    key: Tensor | None = None,
) -> Tree:
    """Make parameters of a family from tensors by foreign name, every one accounted for.

    Args:
        tensors: from `read`, for example.
        config: of the family.
        family: its tables.
        spec: its `spec`.
        source: what an error calls the tensors.
        heads: as in every family's `load`, like `key`.

    Raises:
        ValueError: a tensor is missing, unexpected, or of another shape or type.
    """
    heads = (heads,) if isinstance(heads, str) else heads
    known = rename.for_heads(family, _settings.heads_of(config.to_dict(), family) or heads or ())
    known = known if getattr(config, "tie_word_embeddings", True) else rename.untied(known)
    found, unexpected = rename.from_foreign(tensors, known, source)
    dialect = rename.dialect_of(tensors, family)
    if unexpected:
        _report_shared(unexpected, family, source)
        every_head = max(family.architectures, key=len)
        _report_unexpected(unexpected, found, spec(config, every_head), family, dialect, source)
    if heads is not None:
        found = {path: x for path, x in found.items() if _part(path) in ("", *heads)}
    wanted = spec(
        config, sorted({_part(path) for path in found} - {""}) if heads is None else heads
    )
    _settings.check_use(config, family, tuple(wanted.get("heads", ())), source)
    wanted = _without_absent(wanted, found, family)
    found = rename.fit(found, [path for path, _ in tree.named_leaves(wanted)], family, source)
    found |= _new_parts(wanted, found, family, key, source)
    describe.check(wanted, found, source, _names(wanted, dialect))
    ordered = {path: found[path] for path, _ in tree.named_leaves(wanted)}
    return {"config": config, **rename.nest(ordered)}


def save(
    params: Tree, directory: str | Path, family: Family, dialect: str, *, file: str | None = None
) -> list[str]:
    """Write weights and config.json; the body of every family's `save`, which documents it.

    Returns:
        the names of the files; `file` is that of the weights, if not the usual one.
    """
    dialects = {d.name: d for d in family.dialects if d.file}
    if dialect not in dialects:
        raise ValueError(f"dialect={dialect!r} is not one of {', '.join(dialects)}")
    directory = Path(directory)
    config: BaseConfig = params["config"]
    heads = tuple(sorted(params.get("heads", {})))
    leaves = {name: value for name, value in params.items() if name != "config"}
    foreign = rename.to_foreign(leaves, dialects[dialect])
    directory.mkdir(parents=True, exist_ok=True)
    file = file or dialects[dialect].file
    write(foreign, directory / file)
    classes = family.architectures
    content = config.to_dict() | {
        "model_type": family.name,
        "architectures": [classes[h] for h in ([heads] if heads in classes else zip(heads))],
    }
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    replace(directory / "config.json", lambda path: path.write_text(text, encoding="utf-8"))
    return [file, "config.json"]


def config_from(
    path: Path,
    family: Family,
    config_class: type[BaseConfig],
    tensors: Mapping[str, Tensor] | None = None,
    heads: str | Sequence[str] | None = None,
) -> Any:
    """Read a config.json of a family.

    Args:
        path: of the file.
        family: its tables.
        config_class: its `Config`.
        tensors: the weights, which tell what the config leaves out.
        heads: as in every family's `load`.

    Raises:
        ValueError: it is of another family, invalid, or asks for arithmetic that fnlm does not do.
    """
    heads = (heads,) if isinstance(heads, str) else heads
    return _settings.read_config(path, family, config_class, tensors or {}, heads)


def _report_unexpected(
    names: list[str],
    found: dict[str, Tensor],
    wanted: Tree,
    family: Family,
    dialect: Dialect,
    source: str,
) -> None:
    """Raise, naming each unexpected tensor and the missing one it looks most like."""
    if not found:
        raise ValueError(
            f"{source} holds nothing of family {family.name!r} (its tensors: {names[0]}, ...): "
            "use the module of its own family"
        )
    foreign = [name for path, name in _names(wanted, dialect).items() if path not in found]
    problems = [f"unexpected {name}{rename.nearest(name, foreign)}" for name in names]
    heads = _names({"heads": wanted.get("heads", {})}, dialect).values()
    problems += [f"missing {name}" for name in foreign if name not in heads]
    text = describe.listed(problems)
    raise ValueError(f"{source} does not fit family {family.name!r}: {text}")


def _names(wanted: Tree, dialect: Dialect) -> dict[str, str]:
    """Say what a file in some dialect calls our paths."""
    paths = [path for path, _ in tree.named_leaves(wanted)]
    return {path: name for path in paths if (name := rename.foreign_name(path, dialect))}


def _part(path: str) -> str:
    """Return the head that a path belongs to; "" for the model below."""
    return path.split(".")[1] if path.startswith("heads.") else ""


def _report_shared(names: list[str], family: Family, source: str) -> None:
    """Raise if one of some names is unexpected only because it could belong to several heads."""
    for name in names:
        rules = [rule for dialect in family.dialects for rule in dialect.rules]
        if rename.classify(name, family).kind == "leaf":
            owners = sorted({_part(rule.ours) for rule in rules if name.endswith(rule.theirs)})
            raise ValueError(
                f"{source}: {name} may belong to {', '.join(owners)}, and config.json names no "
                f"class that tells which: pass heads=({owners[0]!r},), for example"
            )


def _without_absent(wanted: Tree, found: Mapping[str, Tensor], family: Family) -> Tree:
    """Leave out what a file may lack, does lack, and no wanted head needs."""
    there = {path.split(".")[0] for path in found}
    needed = {
        part for part, needing in family.optional.items() if {*needing} & {*wanted.get("heads", {})}
    }
    return {k: v for k, v in wanted.items() if k not in {*family.optional} - there - needed}


def _new_parts(
    wanted: Tree,
    found: dict[str, Tensor],
    family: Family,
    key: Tensor | None,
    source: str,
) -> dict[str, Tensor]:
    """Initialise the wanted heads that the file lacks altogether, and what they alone need."""
    have = {_part(path) for path in found}
    lacking = {name: leaves for name, leaves in wanted.get("heads", {}).items() if name not in have}
    if not lacking:
        return {}
    if key is None:
        raise ValueError(
            f"{source} has no head {', '.join(lacking)}: "
            "pass key=fnlm.random.key(seed) to initialise it at random"
        )
    below = {path.split(".")[0] for path in found}
    parts = {part: wanted[part] for part in family.optional if part in {*wanted} - below}
    fresh = describe.init({"heads": lacking, **parts}, key)
    dtype = next((x.dtype for x in found.values()), torch.float32)
    return dict(tree.named_leaves(tree.cast(fresh, dtype)))
