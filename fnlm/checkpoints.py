"""Inspecting and converting checkpoints of any origin and format."""

import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from fnlm import families, random, tree
from fnlm.families import FAMILIES, Record
from fnlm.files import _archive, _folder, hub
from fnlm.files._checkpoint import Checkpoint, Entry
from fnlm.files._text import printable
from fnlm.files.hub import NameOrPath, Source
from fnlm.params import _rename, io
from fnlm.params.config import BaseConfig

__all__ = ["check_vocabulary", "convert", "family_of", "inspect"]

# Files of a tokenizer that are carried along, under the names that every reader knows.
_VOCABULARIES = {
    "encoder.json": "vocab.json",
    "vocab.bpe": "merges.txt",
    "encoder_bpe_40000.json": "vocab.json",
    "vocab_40000.bpe": "merges.txt",
    **{
        name: name
        for name in (
            "vocab.txt", "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json",
            "special_tokens_map.json", "added_tokens.json", "special_tokens.txt", "vocab.bin",
        )
    },
}  # fmt: skip


class _Account(NamedTuple):
    """The meaning of a checkpoint's names to a family."""

    record: Record
    matches: dict[str, _rename.Match]

    def count(self, *kinds: str) -> int:
        return sum(match.kind in kinds for match in self.matches.values())


def family_of(path: NameOrPath) -> str:
    """Return the family of a checkpoint: the module of fnlm that knows the names of its tensors.

    Args:
        path: a file or directory of any format, a bundled model, a hub name, or a `hub.Source`.

    Raises:
        ValueError: the file is damaged, or of no known format or family.
        FileNotFoundError: no such file.

    >>> family_of("tiny")
    'gpt2'
    """
    checkpoint = io.read(hub.locate(path, config_required=False).weights)
    account = _account(checkpoint)
    if not account.count("leaf", "tie"):
        raise ValueError(f"{checkpoint.path} holds no tensor that fnlm knows: see fnlm inspect")
    return account.record.name


def check_vocabulary(name: str | Path, found: int, wanted: int, *, padded: bool = True) -> None:
    """Raise ValueError unless a tokenizer has as many tokens as a model has embeddings.

    If `padded`, it may have somewhat fewer: tables of embeddings are often padded to a multiple of
    8, 64 or, cut among several devices, 1024.
    """
    if not 0 <= wanted - found < (1024 if padded else 1):
        raise ValueError(
            f"{name}: the vocabulary has {found} tokens, the model {wanted}: they do not belong "
            "together, give a directory in which they do"
        )


def inspect(
    path: NameOrPath,
    *,
    heads: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    seed: int | None = None,
) -> Iterator[str]:
    """Yield a report on a checkpoint, line by line: its tensors, its family, and what would load.

    Args:
        path: as for `family_of`.
        heads: as in every family's `load`, like `ignore`.
        seed: of the key with which heads that the file lacks would be initialized.

    Raises:
        ValueError: the file is damaged, or of no known format.
        FileNotFoundError: no such file.
    """
    source = hub.locate(path, config_required=False)
    checkpoint = io.read(source.weights)
    account = _account(checkpoint)
    rows = [("name", "type", "shape", "size", "read as")]
    for name, entry in checkpoint.entries.items():
        shape = " x ".join(map(str, entry.shape)) or "one number"
        match = account.matches[name]
        rows.append((printable(name), entry.dtype, shape, _bytes(_size(entry)), _reading(match)))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield "  ".join([*cells, row[4]]).rstrip() + "\n"
    numbers = sum(torch.Size(entry.shape).numel() for entry in checkpoint.entries.values())
    size = _bytes(sum(map(_size, checkpoint.entries.values())))
    yield f"\n{checkpoint.path}: {checkpoint.format}, {len(checkpoint)} tensors, "
    yield f"{numbers:,} numbers, {size}\n"
    options = {"heads": heads, "ignore": ignore, "key": _key(seed)}
    yield from _verdict(source, checkpoint, account, options)


def convert(
    source: NameOrPath,
    target: str | Path,
    *,
    dialect: str = "transformers",
    config: str | Path | None = None,
    family: str | None = None,
    dtype: str | None = None,
    heads: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    seed: int | None = None,
) -> Iterator[str]:
    """Write a checkpoint in another form, and yield a report on it, line by line.

    Args:
        source: as for `family_of`.
        target: a directory, made if need be; a name that ends in .bin or .safetensors is that of
            the weights, with the config beside it. The vocabulary found beside the source goes
            with them.
        dialect: the library whose form is written, "transformers" or "pytorch-pretrained-bert".
        config: the model's configuration file; by default the one beside the source, or, where the
            family is named and there is none, that of its published model.
        family: module of the family; by default the one that knows the names of the tensors.
        dtype: floating type to cast to, such as "float16"; by default that of the source.
        heads: the heads that are written; by default those of the source.
        ignore: patterns of names of tensors of the source that are left out.
        seed: of the key with which heads that the source lacks are initialized.

    Raises:
        ValueError: the checkpoint is damaged, or does not fit its family or config; a file beside
            it is a link to somewhere else.
        FileNotFoundError: no such file.
    """
    record = None if family is None else families.find(family)
    source = hub.locate(source, config_required=config is None and family is None)
    checkpoint = io.read(source.weights)
    account = _account(checkpoint, record)
    if not account.count("leaf", "tie"):
        what = f"of family {family!r}" if family else "that fnlm knows"
        raise ValueError(
            f"{source.weights} holds no tensor {what}: fnlm inspect shows what it holds"
        )
    module, tables = account.record.module, account.record.names
    _rename.dialect_named(dialect, tables)
    settings: BaseConfig = module.Config()  # of the published model
    if config is not None or source.config.is_file():
        described = Path(config) if config is not None else _inside(source.config)
        settings = io.config_from(described, tables, module.Config, checkpoint, heads)
    with tqdm(
        total=account.count("leaf", "tie"), unit=" tensors", leave=False, disable=None
    ) as bar:
        watched = _watched(checkpoint, bar, dtype)
        params = io.assemble(
            watched, settings, tables, module.spec,
            source=str(source.weights), heads=heads, key=_key(seed), ignore=ignore,
        )  # fmt: skip
        not_finite = [
            f"{path} has {count:,} values that are not finite\n"
            for path, leaf in tree.named_leaves(params)
            if (count := int((~leaf.isfinite()).sum()))
        ]
    yield f"read {source.weights} ({checkpoint.format}) as {account.record.name}: "
    yield f"{tree.count(params):,} parameters in {account.count('leaf')} tensors; not needed: "
    yield f"{account.count('training')} of a trainer, {account.count('buffer', 'tie')} others"
    ignored = account.count("unknown")  # by the caller's patterns: others are errors
    yield f", {ignored} to be ignored\n" if ignored else "\n"
    yield from not_finite
    directory, file = Path(target), None
    if directory.suffix in (".bin", ".safetensors"):
        directory, file = directory.parent, directory.name
    vocabulary = _vocabulary(_folder.current(_folder.directory_of(source.weights), "tokenizer"))
    written = io.save(
        params, directory, tables, module.spec, dialect,
        file=file, tokenizer=vocabulary, owned=_VOCABULARIES.values() if vocabulary else (),
    )  # fmt: skip
    yield f"wrote {', '.join(written)} in {directory}\n"


def _account(checkpoint: Checkpoint, record: Record | None = None) -> _Account:
    """Return the account of the family that knows the most names, or of one that is given."""
    records = FAMILIES.values() if record is None else [record]
    accounts = [_Account(record, _rename.account(checkpoint, record.names)) for record in records]
    return max(accounts, key=lambda account: account.count("leaf", "tie"))


def _reading(match: _rename.Match) -> str:
    return {
        "leaf": match.path,
        "tie": f"{match.path}, a second time",
        "buffer": "no parameter, not read",
        "training": "of a trainer, not read",
    }.get(match.kind, "unknown")


def _verdict(
    source: Source, checkpoint: Checkpoint, account: _Account, options: dict[str, Any]
) -> Iterator[str]:
    name, recognized = account.record.name, account.count("leaf", "tie", "buffer")
    if not recognized:
        yield f"family: unknown, by 0 of {len(checkpoint)} names\n"
        return
    yield f"family: {name}, by {recognized} of {len(checkpoint)} names\n"
    if skipped := account.count("training"):
        yield f"of a trainer: {skipped} tensors, never read as parameters\n"
    try:
        params = account.record.module.load(source, **options)
    except (ValueError, OSError) as error:
        yield f"fnlm.{name}.load refuses it: {error}\n"
        return
    heads = ", ".join(params.get("heads", {})) or "none"
    count = tree.count(params)
    yield f"fnlm.{name}.load reads {count:,} parameters; heads: {heads}\n"


def _watched(checkpoint: Checkpoint, bar: "tqdm[None]", dtype: str | None) -> Checkpoint:
    """Return the checkpoint with each read advancing a progress bar, and cast if need be."""

    def watch(entry: Entry) -> Entry:
        def read() -> torch.Tensor:
            bar.update()
            x = entry.read()
            return x.to(getattr(torch, dtype)) if dtype and x.is_floating_point() else x

        kind = getattr(torch, entry.dtype, None)
        if dtype and isinstance(kind, torch.dtype) and kind.is_floating_point:
            return Entry(dtype, entry.shape, read)
        return entry._replace(read=read)

    entries = {name: watch(entry) for name, entry in checkpoint.entries.items()}
    return Checkpoint(checkpoint.path, checkpoint.format, entries)


def _key(seed: int | None) -> torch.Tensor | None:
    return None if seed is None else random.key(seed)


def _inside(file: Path) -> Path:
    """Return a file to be copied, once it is known not to be a link out of its folder."""
    if _archive.leads_out(file):
        raise ValueError(f"{file} is a link out of its folder: copy the file there, or remove it")
    return file


def _vocabulary(directory: Path) -> _folder.Files:
    """Return the functions that copy the files of a tokenizer, by their new names."""
    paths = {new: directory / name for name, new in _VOCABULARIES.items()
             if (directory / name).is_file()}  # fmt: skip
    return {new: partial(shutil.copyfile, _inside(file)) for new, file in paths.items()}


def _size(entry: Entry) -> int:
    dtype = getattr(torch, entry.dtype, None)
    item = dtype.itemsize if isinstance(dtype, torch.dtype) else 0
    return torch.Size(entry.shape).numel() * item


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
