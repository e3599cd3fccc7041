"""Safetensors files, and checkpoints in shards with an index."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import save_file
from torch import Tensor

from fnlm.files import _archive, _torch_pickle
from fnlm.files._checkpoint import Checkpoint, Entry, replace

__all__ = ["read", "can_read", "write"]

_INDEX = ".index.json"
_LARGEST_HEADER = 1 << 24
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "BOOL": "bool",
}


def can_read(path: str | Path) -> bool:
    """Whether a file is an index of shards (by name) or safetensors (by its first bytes).

    >>> can_read("model.safetensors.index.json"), can_read(__file__)
    (True, False)
    """
    path = Path(path)
    if path.name.endswith(_INDEX) or path.is_dir():
        return not path.is_dir()
    with open(path, "rb") as file:
        head = file.read(9)
        return head[8:] == b"{" and int.from_bytes(head[:8], "little") <= file.seek(0, 2) - 8


def read(path: str | Path) -> Checkpoint:
    """Open a .safetensors file, or the shards that an .index.json lists.

    The shards, of safetensors or of torch.save, lie beside the index. Each tensor is mapped into
    memory on access. The format has no checksums.

    Raises:
        ValueError: a file is damaged or of another format, or the index and the shards disagree.
        FileNotFoundError: a shard is missing.

    >>> import torch
    >>> from safetensors.torch import save_file
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     save_file({"w": torch.ones(2)}, f"{folder}/model.safetensors")
    ...     file = read(f"{folder}/model.safetensors")
    ...     file.format, file["w"]
    ('safetensors', tensor([1., 1.]))
    """
    path = Path(path)
    return _shards(path) if path.name.endswith(_INDEX) else _single(path)


def write(
    tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a .safetensors file, which appears whole or not at all.

    Tensors that share memory are each written in full, under their own names. With at most one key
    of metadata, equal tensors make equal files (several keys are written in any order).
    """
    separate: dict[str, Tensor] = {}
    addresses: set[int] = set()
    for name, value in tensors.items():
        tensor = _alone(value)
        address = tensor.data_ptr()
        separate[name] = tensor.clone() if address in addresses else tensor
        addresses.add(address)
    replace(path, lambda part: save_file(separate, part, dict(metadata or {"format": "pt"})))


def _alone(tensor: Tensor) -> Tensor:
    """Return the tensor contiguous and in a storage of its own, as the format requires."""
    tensor = tensor.detach().cpu().contiguous()
    alone = tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if alone else tensor.clone()


def _single(path: Path) -> Checkpoint:
    _archive.check_regular(path)
    with open(path, "rb") as opened:
        if (size := int.from_bytes(opened.read(8), "little")) > _LARGEST_HEADER:
            raise ValueError(
                f"{path} is not a whole .safetensors file: its header has {size:,} bytes"
            )
    try:
        file: Any = safetensors.safe_open(path, framework="pt")
        entries = {name: _entry(path, file, name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise _broken(path, error) from error
    return Checkpoint(path, "safetensors", entries)


def _entry(path: Path, file: Any, name: str) -> Entry:
    described = file.get_slice(name)
    dtype = described.get_dtype()
    shape = tuple(described.get_shape())
    return Entry(_DTYPES.get(dtype, dtype), shape, partial(_tensor, path, file, name))


def _tensor(path: Path, file: Any, name: str) -> Tensor:
    try:
        return file.get_tensor(name)
    except safetensors.SafetensorError as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is not a whole .safetensors file: {str(error)[:600]}")


def _shards(path: Path) -> Checkpoint:
    """Open the shards of an index, which must agree with it on every tensor.

    A shard is a file beside the index. It may be a link into the folder `blobs` of the hub's cache,
    which is made of such links, but into no other folder.
    """
    weight_map = _weight_map(path)
    listed: dict[str, set[str]] = {}
    for name, file in weight_map.items():
        listed.setdefault(file, set()).add(name)
    paths = {file: _beside(path, file) for file in listed}
    missing = [file for file, shard in paths.items() if not os.path.isfile(shard)]
    if missing:
        raise FileNotFoundError(
            f"{path} lists shards that are not beside it: {', '.join(missing[:10])}; download them"
        )
    shards = {file: _reader(shard)(shard) for file, shard in paths.items()}
    for file, shard in shards.items():
        _agree(path, file, listed[file], set(shard.entries))
    entries = {name: shards[file].entries[name] for name, file in weight_map.items()}
    formats = ", ".join(sorted({shard.format for shard in shards.values()}))
    return Checkpoint(path, f"{formats}, {len(shards)} shards", entries)


def _reader(path: Path) -> Callable[[Path], Checkpoint]:
    return _torch_pickle.read if _torch_pickle.can_read(path) else _single


def _agree(path: Path, file: str, expected: set[str], actual: set[str]) -> None:
    for names, what in (
        (expected - actual, "lacks"),
        (actual - expected, "has, and the index lacks,"),
    ):
        if names:
            listed = ", ".join(map(repr, sorted(names)[:10]))[:600]
            raise ValueError(
                f"shard {file} of {path} {what} {listed}: download the index with its shards"
            )


def _beside(path: Path, file: str) -> Path:
    """Return the path of a shard, which must lie beside its index."""
    place = path.parent / file
    if file != place.name or file == ".." or "\\" in file or not file.isprintable():
        raise ValueError(f"{path} lists {file[:200]!r}: a shard is the name of a file beside it")
    try:
        outside = _archive.leads_out(place)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path} lists {file[:200]!r}, a name of no file: {error}") from error
    if outside:
        raise ValueError(f"{path} lists {file!r}, a link out of its folder: copy the file there")
    return place


def _weight_map(path: Path) -> dict[str, str]:
    """Return the file name of each tensor, from an index."""
    content = _archive.read_json(path)
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise ValueError(f'{path} has no "weight_map" of tensors to files: download it again')
    return files
