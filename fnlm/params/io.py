"""Loading and saving parameters: strict reading of every format, exact writing.

Opening a file costs its headers; where the format allows, tensors are mapped into memory and read
from disk when they are first used.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fnlm import tree
from fnlm.files import _archive, _folder, _numpy, _safetensors, _tensorflow, _torch_pickle, hub
from fnlm.files._checkpoint import Checkpoint
from fnlm.files._text import printable_errors
from fnlm.files.hub import NameOrPath
from fnlm.params import _rename, _saving, _settings
from fnlm.params._assembly import SpecOf, assemble
from fnlm.params.config import BaseConfig
from fnlm.params.names import Family
from fnlm.tree import Tree

__all__ = ["NameOrPath", "PathLike", "assemble", "config_from", "load", "read", "save", "write"]

PathLike = str | Path  # where a folder is

_READERS = {
    ".safetensors": _safetensors,
    **dict.fromkeys((".bin", ".pt", ".pth"), _torch_pickle),
    **dict.fromkeys((".npz", ".npy"), _numpy),
    ".index": _tensorflow,
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
    >>> file = read(hub.locate("tiny").weights)
    >>> file.format, file.entries["transformer.ln_f.weight"].shape
    ('safetensors', (128,))
    """
    path = Path(path)
    path = path.parent if path.name == _numpy.SHAPES else path
    if not path.is_dir():
        _archive.check_regular(path)
    if not path.is_dir() or _numpy.can_read(path):
        for reader in (_tensorflow, _safetensors, _numpy, _torch_pickle):
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
        _torch_pickle.write(tensors, path, legacy=True)
    else:
        _safetensors.write(tensors, path)


@printable_errors()
def load(
    name_or_path: NameOrPath,
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
        name_or_path: a directory, a file that `read` knows, a bundled model, a hub name or a
            `hub.Source`.
        heads: the heads to load; None takes those of the file.
        key: initializes requested heads that the file lacks, and a pooler that they need.
        ignore: shell patterns of tensor names in the file that are left out.

    Returns:
        params; where the format allows, tensors are read from disk on first use.

    Raises:
        FileNotFoundError: no such model.
        ValueError: a tensor is missing, unexpected, of another shape or unlike the one that it is
            tied to; an ambiguous head; another family's config; a damaged file.
    """
    source = hub.locate(name_or_path)
    tensors = read(source.weights)
    return assemble(
        tensors,
        config_from(source.config, family, config_class, tensors, heads),
        family,
        spec,
        source=str(source.weights),
        heads=heads,
        key=key,
        ignore=ignore,
    )


def save(
    params: Tree,
    directory: PathLike,
    family: Family,
    spec: SpecOf,
    dialect: str,
    *,
    file: str | None = None,
    tokenizer: _folder.Files | None = None,
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
    written_as = _rename.dialect_named(dialect, family)
    directory, heads = Path(directory), tuple(sorted(params.get("heads", {})))
    config = family.stated(params["config"], heads, dialect)
    leaves = {name: value for name, value in params.items() if name != "config"}
    paths = _saving.check(params, spec, family)
    foreign = _rename.to_foreign(leaves, written_as)
    name = file or written_as.file
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
    return _folder.replace_files(directory, "model", files, owned, tokenizer=tokenizer)


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
