"""Saving and loading the state of a run, or any other tree of tensors, bit for bit."""

import hashlib
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fnlm import tree
from fnlm.files import safetensors as safe
from fnlm.tree import Tree

__all__ = ["load_state", "save_state"]

CHECKSUM = "sha256"  # key in the metadata of a state file


def save_state(state: Tree, path: str | os.PathLike[str]) -> None:
    """Write a tree of tensors, such as a `TrainState`, to a safetensors file, by dotted paths.

    The write is atomic: a run killed while it writes leaves the previous file. A tensor that occurs
    several times in the tree is written each time. The file has a checksum.

    Raises:
        OSError: the file could not be written, as on a full disk; the previous one is unchanged.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_state({"w": torch.ones(2)}, f"{folder}/state.safetensors")
    ...     load_state(f"{folder}/state.safetensors", like={"w": torch.zeros(2)})
    {'w': tensor([1., 1.])}
    """
    tensors = {name: leaf.detach().cpu().contiguous() for name, leaf in tree.named_leaves(state)}
    safe.write(tensors, Path(path), {CHECKSUM: _checksum(tensors)})


def load_state(path: str | os.PathLike[str], like: Tree) -> Tree:
    """Read a tree that `save_state` wrote.

    Args:
        path: the file.
        like: a tree of the same structure, shapes and types, for example `init_state(...)` of a new
            run. Its values are not read; devices, memory layouts and constants (a config) are taken
            from it.

    Returns:
        The tree, bit for bit as saved.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: names, shapes or types differ, and the message lists them; or the file is
            damaged: it is truncated or its checksum does not match.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no state at {path}; save_state writes one")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            checksum = (file.metadata() or {}).get(CHECKSUM)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    if checksum not in (None, _checksum(tensors)):  # none: not written by save_state
        raise ValueError(
            f"{path} is damaged: its content does not have the checksum that was written with it; "
            "copy it again, or remove it to begin anew"
        )
    _check(path, tensors, dict(tree.named_leaves(like)))
    return tree.map_with_path(lambda name, leaf: torch.empty_like(leaf).copy_(tensors[name]), like)


def _checksum(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
