"""States of runs on many processes, in the files of `torch.distributed.checkpoint`.

Each rank writes its own parts, and a state is read with any plan, on any number of processes. What
goes to others is written by `save` of a family, of `gather(params)`.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from fnlm import tree
from fnlm.distributed import plans
from fnlm.distributed.groups import process_group, size
from fnlm.distributed.placed import Placed, Replicated, Sharded, Split
from fnlm.leaves._leaf import dense
from fnlm.tree import Tree

__all__ = ["load_state", "save_state"]


def save_state(state: Tree, directory: str | Path) -> None:
    """Write a tree, such as a `TrainState`; every rank calls it, and each writes its parts.

    A directory whose writing was cut short has no `.metadata`, and is not read.

    Args:
        state: tensors and placed leaves.
        directory: that all ranks see, for this state alone.

    Raises:
        FileExistsError: there is a state in the directory already.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_state({"w": torch.ones(2)}, folder)
    ...     load_state(folder, {"w": torch.zeros(2)})
    {'w': tensor([1., 1.])}
    """
    from torch.distributed.checkpoint.state_dict_saver import save  # reads files when imported

    if (Path(directory) / ".metadata").exists():
        raise FileExistsError(
            f"{directory} holds a state already: write each one to a directory of its own"
        )
    if dist.is_initialized():
        dist.barrier()  # all have looked before the first one writes
    tensors = {path: _stored(leaf) for path, leaf in tree.named_leaves(state, whole=Placed)}
    with _alone_is_fine():
        save(tensors, checkpoint_id=directory, no_dist=not dist.is_initialized())


def load_state(directory: str | Path, like: Tree) -> Tree:
    """Read a tree that `save_state` wrote; every rank calls it.

    Args:
        directory: the state, from a source that you trust: torch keeps its table as a pickle.
        like: a tree of the same leaves, placed in any way, on any number of processes. Its values
            are not read; types, devices and constants (a config) are taken from it.

    Returns:
        The tree, bit for bit as saved, placed like `like`.

    Raises:
        FileNotFoundError: there is no whole state in the directory.
        ValueError: names, shapes or types differ, and the message lists them.
    """
    from torch.distributed.checkpoint.state_dict_loader import load  # reads files when imported

    if not (Path(directory) / ".metadata").exists():
        raise FileNotFoundError(
            f"{directory} holds no state: it has no file .metadata, which is written last"
        )
    leaves = dict(tree.named_leaves(like, whole=Placed))
    _check(directory, leaves)
    tensors = {path: _empty(leaf) for path, leaf in leaves.items()}
    with _alone_is_fine():
        load(tensors, checkpoint_id=directory, no_dist=not dist.is_initialized())
    return tree.map_with_path(lambda path, leaf: _restored(tensors[path], leaf), like, whole=Placed)


def _alone_is_fine() -> Any:
    """Return the block without torch's warning that there is one process, as it was told."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)


def _check(directory: str | Path, leaves: dict[str, Any]) -> None:
    """Raise ValueError unless the files hold these leaves."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    stored: dict[str, Any] = FileSystemReader(directory).read_metadata().state_dict_metadata
    kept = {path: (list(x.size), x.properties.dtype) for path, x in stored.items()}
    wanted = {path: (list(x.shape), x.dtype) for path, x in leaves.items()}
    differ = [p for p in dict.fromkeys([*wanted, *kept]) if kept.get(p) != wanted.get(p)]
    if differ:
        lines = [
            f"{path}: {kept.get(path, 'absent')} in the files, {wanted.get(path, 'absent')} in like"
            for path in differ[:5]
        ]
        more = [f"and {len(differ) - 5} more"] if len(differ) > 5 else []
        raise ValueError("\n".join([f"the state in {directory} is another:", *lines, *more]))


def _cut_of(leaf: Any) -> Any:
    """Return the leaf that is cut: the leaf itself, or what each rank has a copy of."""
    while isinstance(leaf, Replicated):
        leaf = leaf.part
    return leaf


def _distributed(own: Tensor, leaf: Any) -> Any:
    """Return this rank's part as torch's tensor of the whole."""
    from torch.distributed.tensor import DTensor, Shard  # adds a filter of warnings when imported

    if size(leaf.group) == 1:
        return own
    group = process_group(leaf.group) or dist.group.WORLD
    assert group is not None
    mesh = DeviceMesh.from_group(group, own.device.type)
    shape = torch.Size(leaf.shape)
    strides = torch.empty(shape, device="meta").stride()
    placements = [Shard(len(shape) + leaf.axis)]
    return DTensor.from_local(own, mesh, placements, run_check=False, shape=shape, stride=strides)


def _stored(leaf: Any) -> Any:
    """Return what is written of a leaf."""
    leaf = _cut_of(leaf)
    if not isinstance(leaf, Placed):
        return dense(leaf).detach()
    assert isinstance(leaf, Sharded | Split)
    with torch.no_grad():
        whole = type(leaf)(dense(leaf.part).detach(), leaf.axis, leaf.length, leaf.group)
        return _distributed(whole.own.contiguous(), leaf)


def _empty(leaf: Any) -> Any:
    """Return room for what is read of a leaf, in the shape in which it is written."""
    leaf = _cut_of(leaf)
    if not isinstance(leaf, Placed):
        return torch.empty_like(leaf, memory_format=torch.contiguous_format)
    assert isinstance(leaf, Sharded | Split)
    own = torch.empty(leaf.own.shape, dtype=leaf.dtype, device=leaf.device)
    return _distributed(own, leaf)


def _restored(found: Any, like: Any) -> Any:
    """Return what was read, placed as a leaf."""
    found = found.to_local() if hasattr(found, "to_local") else found
    if not isinstance(like, Placed):
        return torch.empty_like(like).copy_(found)  # in the memory order of `like`
    if isinstance(like, Replicated):
        return Replicated(_restored(found, like.part), like.group)
    assert isinstance(like, Sharded | Split)
    missing = like.part.shape[like.axis] - found.shape[like.axis]
    if missing:
        padding = (*(0, 0) * (-1 - like.axis), 0, missing)
        found = torch.nn.functional.pad(found, padding)
    return type(like)(plans.like(found, like.part), like.axis, like.length, like.group)
