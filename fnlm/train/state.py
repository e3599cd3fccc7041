"""Saving and loading the state of a run, or any other tree of tensors, bit for bit."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fnlm import tree
from fnlm.files import _safetensors as safe
from fnlm.tree import Tree

__all__ = ["DamagedStateError", "load_state", "load_with_notes", "read_notes", "save_state"]

METADATA = "fnlm"  # the one key of a state file's metadata: several are written in any order
_ELSEWHERE = "copy it again, or remove it to begin anew"


class DamagedStateError(ValueError):
    """Raised where the file of a state does not hold what was saved."""


class _Content(NamedTuple):
    tensors: dict[str, Tensor]
    ties: dict[str, str]  # name of a leaf -> name of the leaf that it is
    notes: Any


def save_state(state: Tree, path: str | os.PathLike[str], *, notes: Any = None) -> None:
    """Write a tree of tensors, such as a `TrainState`, to a safetensors file, by dotted paths.

    The write is atomic: a run killed while it writes leaves the previous file. The file has a
    checksum of all that it holds. A tensor that occurs several times in the tree is written once.

    Args:
        state: the tree.
        path: of the file.
        notes: anything that JSON can represent, to be kept beside the tree; `read_notes` returns
            it.

    Raises:
        OSError: the file could not be written, as on a full disk; the previous one is unchanged.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_state({"w": torch.ones(2)}, f"{folder}/state.safetensors")
    ...     load_state(f"{folder}/state.safetensors", like={"w": torch.zeros(2)})
    {'w': tensor([1., 1.])}
    """
    tensors: dict[str, Tensor] = {}
    ties: dict[str, str] = {}
    places: dict[tuple[Any, ...], str] = {}
    for name, leaf in tree.named_leaves(state):
        first = places.setdefault(_place(leaf), name) if leaf.numel() else name
        if first == name:
            tensors[name] = leaf.detach().cpu().contiguous()
        else:
            ties[name] = first
    content = _Content(tensors, ties, json.loads(json.dumps(notes)))
    described = {"notes": content.notes, "sha256": _checksum(content), "ties": ties}
    safe.write(tensors, Path(path), {METADATA: json.dumps(described, sort_keys=True)})


def load_state(path: str | os.PathLike[str], like: Tree) -> Tree:
    """Read a tree that `save_state` wrote.

    Args:
        path: the file.
        like: a tree of the same structure, shapes and types, for example `init_state(...)` of a new
            run. Its values are not read; devices, memory layouts and constants (a config) are taken
            from it.

    Returns:
        The tree, bit for bit as saved; leaves that were one tensor are one tensor again.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: names, shapes or types differ, and the message lists them; or, as a
            `DamagedStateError`, the file is truncated, a bit of it has changed, or it was not
            written by `save_state`.
    """
    return load_with_notes(path, like)[0]


def load_with_notes(path: str | os.PathLike[str], like: Tree) -> tuple[Tree, Any]:
    """Return what `load_state` and `read_notes` return, by reading the file once.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_state({"w": torch.ones(1)}, f"{folder}/state.safetensors", notes=[1])
    ...     load_with_notes(f"{folder}/state.safetensors", {"w": torch.zeros(1)})
    ({'w': tensor([1.])}, [1])
    """
    content = _read(path)
    tensors = content.tensors | {name: content.tensors[of] for name, of in content.ties.items()}
    _check(path, tensors, dict(tree.named_leaves(like)))
    made: dict[str, Tensor] = {}

    def restore(name: str, leaf: Tensor) -> Tensor:
        first = content.ties.get(name, name)
        if first not in made:
            made[first] = torch.empty_like(leaf).copy_(tensors[name])
        return made[first]

    return tree.map_with_path(restore, like), content.notes


def read_notes(path: str | os.PathLike[str]) -> Any:
    """Return the notes that `save_state` was given, None if there were none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as a `DamagedStateError`, the file does not hold what was saved.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     state = {"w": torch.ones(1)}
    ...     save_state(state, f"{folder}/state.safetensors", notes={"losses": [0.5]})
    ...     read_notes(f"{folder}/state.safetensors")
    {'losses': [0.5]}
    """
    return _read(path).notes


def _read(path: str | os.PathLike[str]) -> _Content:
    """Read a file, and compare it with its checksum."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no state at {path}; save_state writes one")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            metadata = file.metadata() or {}
    except (SafetensorError, UnicodeDecodeError) as error:
        raise DamagedStateError(
            f"{path} is not a whole safetensors file: {error}; {_ELSEWHERE}"
        ) from error
    if METADATA not in metadata:
        raise DamagedStateError(
            f"{path} has no checksum: it was not written by save_state, or is damaged; of another "
            "safetensors file read the tensors with safetensors.torch.load_file"
        )
    try:
        described = json.loads(metadata[METADATA])
        content = _Content(tensors, described["ties"], described["notes"])
        whole = len(metadata) == 1 and described["sha256"] == _checksum(content)
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise DamagedStateError(
            f"{path} is damaged: its content does not have the checksum that was written with it; "
            f"{_ELSEWHERE}"
        )
    return content


def _checksum(content: _Content) -> str:
    """Return the SHA-256 of notes and ties, and of names, types, shapes and values."""
    digest = hashlib.sha256(json.dumps([content.notes, content.ties], sort_keys=True).encode())
    for name in sorted(content.tensors):
        tensor = content.tensors[name]
        digest.update(f"\n{name!r} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _place(leaf: Tensor) -> tuple[Any, ...]:
    """Return what two tensors share that are one."""
    return leaf.device, leaf.data_ptr(), leaf.dtype, leaf.shape, leaf.stride()


def _check(
    path: str | os.PathLike[str], tensors: dict[str, Tensor], expected: dict[str, Tensor]
) -> None:
    """Raise unless a file has the names, shapes and types of `like`."""
    problems = [f"missing {name}" for name in expected.keys() - tensors.keys()]
    problems += [f"unexpected {name}" for name in tensors.keys() - expected.keys()]
    for name in expected.keys() & tensors.keys():
        a, b = tensors[name], expected[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            problems.append(
                f"mismatched {name}: {tuple(a.shape)} {a.dtype} in the file, "
                f"{tuple(b.shape)} {b.dtype} in `like`"
            )
    if problems:
        raise ValueError(
            f"{path} is not a state like `like` ({'; '.join(sorted(problems))}); "
            "pass the state of a run with the same model and optimizer"
        )
