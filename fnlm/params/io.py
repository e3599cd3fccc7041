"""Loading and saving parameters: strict reading of every format, exact writing.

Opening a file costs its headers; where the format allows, tensors are mapped into memory and read
from disk when they are first used.
"""

import fnmatch
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fnlm import tree
from fnlm.files import _archive, folder, hub, numpy, safetensors, tensorflow, torch_pickle
from fnlm.files._text import printable_errors
from fnlm.files.checkpoint import Checkpoint
from fnlm.params import _saving, _settings, rename
from fnlm.params import spec as describe
from fnlm.params.config import BaseConfig
from fnlm.params.rename import Dialect, Family
from fnlm.tree import Tree

__all__ = ["assemble", "config_from", "load", "read", "save", "write"]

SpecOf = Callable[..., Tree]
_READERS = {
    ".safetensors": safetensors,
    **dict.fromkeys((".bin", ".pt", ".pth"), torch_pickle),
    **dict.fromkeys((".npz", ".npy"), numpy),
    ".index": tensorflow,
}
_SHARDS = re.compile(
    r"model-[0-9]{5}-of-[0-9]{5}\.safetensors|pytorch_model-[0-9]{5}-of-[0-9]{5}\.bin"
)


@printable_errors()
def read(path: str | Path) -> Checkpoint:
    """Open a checkpoint file of any format; each tensor is read on access.

    Args:
        path: safetensors, torch.save's zip and legacy formats, an index of shards of either,
            TensorFlow's bundles and V1 files, .npz, .npy, or OpenAI's params_shapes.json. The
            first bytes decide the format; the name does where they are damaged.

    Raises:
        ValueError: the file is damaged, hostile or of another format.
        FileNotFoundError: there is no such file.

    >>> from fnlm.files import hub
    >>> file = read(hub.weights("tiny"))
    >>> file.format, file.entries["transformer.ln_f.weight"].shape
    ('safetensors', (128,))
    """
    path = Path(path)
    path = path.parent if path.name == numpy.SHAPES else path
    if not path.is_dir():
        _archive.check_regular(path)
    if not path.is_dir() or numpy.can_read(path):
        for reader in (tensorflow, safetensors, numpy, torch_pickle):
            if reader.can_read(path):
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
        torch_pickle.write(tensors, path, legacy=True)
    else:
        safetensors.write(tensors, path)


@printable_errors()
def load(
    name_or_path: str | Path,
    family: Family,
    config_class: type[BaseConfig],
    spec: SpecOf,
    *,
    heads: Sequence[str] | None,
    key: Tensor | None,
    ignore: Iterable[str] | None = (),
) -> Tree:
    """Return a family's parameters from files; the body of every family's `load`.

    Args:
        name_or_path: a directory, a file that `read` knows, a bundled model or a hub name.
        heads: the heads to load; None takes those of the file.
        key: initializes requested heads that the file lacks, and a pooler that they need.
        ignore: shell patterns of tensor names in the file that are left out.
    """
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
        ignore=ignore,
    )


@printable_errors()
def assemble(
    tensors: Mapping[str, Tensor],
    config: BaseConfig,
    family: Family,
    spec: SpecOf,
    *,
    source: str = "tensors",
    heads: Sequence[str] | None = None,
    key: Tensor | None = None,
    ignore: Iterable[str] | None = (),
) -> Tree:
    """Return the parameters of a family from tensors by foreign name, every one accounted for.

    The names, shapes and dtypes of a file are checked against the spec before a tensor is read.

    Args:
        tensors: from `read`, for example.
        config: of the family.
        family: its tables.
        spec: its `spec`.
        source: what an error calls the tensors.
        heads: as in every family's `load`, like `key` and `ignore`.

    Raises:
        ValueError: a tensor is missing, unexpected, or of another shape or type; a pattern of
            `ignore` matches nothing.
    """
    heads = (heads,) if isinstance(heads, str) else heads
    tensors = _without_ignored(tensors, ignore, source)

    def build(tensors: Mapping[str, Tensor]) -> Tree:
        return _assembled(tensors, config, family, spec, source=source, heads=heads, key=key)

    if isinstance(tensors, Checkpoint):
        build(tensors.outlined())  # a dry run on the meta device: errors come before any reading
    return build(tensors)


def _assembled(
    tensors: Mapping[str, Tensor],
    config: BaseConfig,
    family: Family,
    spec: SpecOf,
    *,
    source: str,
    heads: Sequence[str] | None,
    key: Tensor | None,
) -> Tree:
    # 1. Rename: foreign names to our paths, by the tables narrowed to this config and its heads.
    tables = rename.for_heads(family, _settings.heads_of(config.to_dict(), family) or heads or ())
    tables = tables if getattr(config, "tie_word_embeddings", True) else rename.untied(tables)
    leaves, unexpected = rename.from_foreign(tensors, tables, source)
    dialect = rename.dialect_of(tensors, family)
    if heads is not None:  # tensors of other heads are left out, whichever head that is
        owners = {name: {*_owners(name, family)} for name in unexpected}
        unexpected = [name for name in unexpected if not owners[name] or owners[name] & {*heads}]
    if unexpected:
        _report_shared(unexpected, family, source)
        every_head = max(family.architectures, key=len)
        _report_unexpected(unexpected, leaves, spec(config, every_head), family, dialect, source)
    # 2. Select the heads: those requested, or else all that the file holds.
    if heads is None:
        heads = sorted({_head(path) for path in leaves} - {""})
    else:
        leaves = {path: x for path, x in leaves.items() if _head(path) in ("", *heads)}
    expected = spec(config, heads)
    _settings.check_use(config, family, tuple(expected.get("heads", ())), source)
    expected = rename.without_absent(expected, leaves, family)
    # 3. Tie and unstack, initialize what is new, then check names, shapes and dtypes.
    leaves = rename.fit(leaves, [path for path, _ in tree.named_leaves(expected)], family, source)
    leaves |= _new_parts(expected, leaves, family, key, source)
    describe.check(expected, leaves, source, _names(expected, dialect))
    ordered = {path: leaves[path] for path, _ in tree.named_leaves(expected)}
    return {"config": config, **rename.nest(ordered)}


def save(
    params: Tree,
    directory: str | Path,
    family: Family,
    spec: SpecOf,
    dialect: str,
    *,
    file: str | None = None,
    tokenizer: folder.Files | None = None,
    owned: Iterable[str] = (),
) -> list[str]:
    """Write weights and config.json; the body of every family's `save`.

    The folder then holds one model: weights of earlier saves go, whoever wrote them, by the names
    that `load` looks for. What was written is checked as `load` does before it takes their place.

    Args:
        params: to be written.
        directory: made if need be.
        family: its tables.
        spec: its `spec`.
        dialect: the name of one of its dialects.
        file: the name of the weights, if not the usual one; other weights then stay.
        tokenizer: files of a tokenizer to be saved with them, see `folder.replace_files`.
        owned: names of files in the directory that are removed unless they are written.

    Returns:
        the names of the files.

    Raises:
        ValueError: no such dialect; a leaf that does not fit the config, that is no dense tensor of
            floating type, or that the dialect has no name for; other weights in the directory that
            would lose their configuration to those of `file`.
    """
    dialects = {d.name: d for d in family.dialects if d.file}
    if dialect not in dialects:
        raise ValueError(f"dialect={dialect!r} is not one of {', '.join(dialects)}")
    directory, heads = Path(directory), tuple(sorted(params.get("heads", {})))
    config = family.stated(params["config"], heads, dialect)
    leaves = {name: value for name, value in params.items() if name != "config"}
    paths = _saving.check(params, spec, family)
    foreign = rename.to_foreign(leaves, dialects[dialect])
    name = file or dialects[dialect].file
    if file is None:
        owned = {*owned, *hub.WEIGHTS, *filter(_SHARDS.fullmatch, _names_in(directory))}
    else:
        _check_beside(directory, file, config, family)
    text = _saving.config_text(config, family, heads)

    def write_config(path: Path) -> None:
        path.write_text(text, encoding="utf-8")
        # Load what was written, on the meta device: it must give back the very same leaves.
        written = read(path.with_name(name)).outlined()
        loaded = assemble(written, config_from(path, family, type(config)), family, spec)
        if lost := paths.symmetric_difference(path for path, _ in tree.named_leaves(loaded)):
            raise ValueError(f"params can't be saved: load would not give back {sorted(lost)[0]}")

    files = {name: lambda path: write(foreign, path), "config.json": write_config}
    return folder.replace_files(directory, "model", files, owned, tokenizer=tokenizer)


def _check_beside(directory: Path, file: str, config: BaseConfig, family: Family) -> None:
    """Raise ValueError where the config.json to be replaced belongs to other weights."""
    ends = (".safetensors", ".bin")
    others = [name for name in _names_in(directory) if name.endswith(ends) and name != file]
    if others and (directory / "config.json").is_file():
        if config_from(directory / "config.json", family, type(config)) != config:
            raise ValueError(
                f"{directory} holds {others[0]} with another config.json, which {file} would "
                "replace: choose another directory"
            )


def _names_in(directory: Path) -> list[str]:
    return sorted(os.listdir(directory)) if directory.is_dir() else []


@printable_errors()
def config_from(
    path: Path,
    family: Family,
    config_class: type[BaseConfig],
    tensors: Mapping[str, Tensor] | None = None,
    heads: str | Sequence[str] | None = None,
) -> Any:
    """Return the config in a config.json of a family.

    Args:
        path: of the file.
        family: its tables.
        config_class: its `Config`.
        tensors: the weights, whose shapes supply what the config leaves out.
        heads: as in every family's `load`.

    Raises:
        ValueError: it is of another family, invalid, or asks for arithmetic that fnlm does not do.
    """
    _archive.check_regular(path)
    heads = (heads,) if isinstance(heads, str) else heads
    return _settings.read_config(path, family, config_class, tensors or {}, heads)


def _report_unexpected(
    names: list[str],
    leaves: dict[str, Tensor],
    expected: Tree,
    family: Family,
    dialect: Dialect,
    source: str,
) -> None:
    """Raise ValueError, naming each unexpected tensor and the missing one nearest to it."""
    if not leaves:
        raise ValueError(
            f"{source} holds nothing of family {family.name!r} (its tensors: {names[0]}, ...): "
            "use the module of its own family"
        )
    foreign = [name for path, name in _names(expected, dialect).items() if path not in leaves]
    problems = [f"unexpected {name}{rename.nearest(name, foreign)}" for name in names]
    heads = _names({"heads": expected.get("heads", {})}, dialect).values()
    problems += [f"missing {name}" for name in foreign if name not in heads]
    text = describe.listed(problems)
    shared = os.path.commonprefix(names) + "*"
    patterns = names if len(names) < 4 else [shared] if shared != "*" else [*names[:3], "..."]
    raise ValueError(
        f"{source} does not fit family {family.name!r}: {text}; to leave out what is unexpected, "
        f"pass ignore={tuple(patterns)}"
    )


def _without_ignored(
    tensors: Mapping[str, Tensor], ignore: Iterable[str] | None, source: str
) -> Mapping[str, Tensor]:
    """Return the tensors whose names match none of the patterns."""
    ignored: set[str] = set()
    for pattern in (ignore,) if isinstance(ignore, str) else ignore or ():
        if not (matching := [name for name in tensors if fnmatch.fnmatchcase(name, pattern)]):
            near = rename.nearest(pattern, list(tensors))
            raise ValueError(f"{source} holds no tensor that ignore={pattern!r} matches{near}")
        ignored.update(matching)
    if not ignored:
        return tensors
    if isinstance(tensors, Checkpoint):
        return tensors.without(ignored)
    return {name: x for name, x in tensors.items() if name not in ignored}


def _names(expected: Tree, dialect: Dialect) -> dict[str, str]:
    """Return the foreign name of each leaf that the dialect has one for, by our path."""
    paths = [path for path, _ in tree.named_leaves(expected)]
    return {path: name for path in paths if (name := rename.foreign_name(path, dialect))}


def _head(path: str) -> str:
    """Return the head that a path belongs to, "" for the body of the model."""
    return path.split(".")[1] if path.startswith("heads.") else ""


def _owners(name: str, family: Family) -> list[str]:
    """Return the heads that a foreign name may belong to, where it is ambiguous."""
    if rename.classify(name, family).kind != "leaf":
        return []
    rules = [rule for dialect in family.dialects for rule in dialect.rules]
    return sorted({_head(rule.ours) for rule in rules if name.endswith(rule.theirs)} - {""})


def _report_shared(names: list[str], family: Family, source: str) -> None:
    """Raise ValueError if a name is unexpected only because it may belong to several heads."""
    for name in names:
        if owners := _owners(name, family):
            usual = next(heads[0] for heads in family.architectures if {*heads} & {*owners})
            raise ValueError(
                f"{source}: {name} may belong to {', '.join(owners)}, and config.json names no "
                f"class that tells which: pass heads=({usual!r},), for example, or leave it out by "
                f"ignore=({name.rpartition('.')[0] + '.*'!r},)"
            )


def _new_parts(
    expected: Tree,
    leaves: dict[str, Tensor],
    family: Family,
    key: Tensor | None,
    source: str,
) -> dict[str, Tensor]:
    """Return freshly initialized leaves of the heads that the file lacks, and of what they need."""
    present = {_head(path) for path in leaves}
    missing = {
        name: spec for name, spec in expected.get("heads", {}).items() if name not in present
    }
    if not missing:
        return {}
    if key is None:
        raise ValueError(
            f"{source} has no head {', '.join(missing)}: "
            "pass key=fnlm.random.key(seed) to initialize it at random"
        )
    # Optional parts of the body (BERT's pooler) that these heads need, and the file lacks as well.
    body = {path.split(".")[0] for path in leaves}
    parts = {part: expected[part] for part in family.optional if part in {*expected} - body}
    fresh = describe.initialize({"heads": missing, **parts}, key)
    dtype = next((x.dtype for x in leaves.values()), torch.float32)
    return dict(tree.named_leaves(tree.cast(fresh, dtype)))
