"""Tensors by foreign name to parameters: rename, select heads, tie, complete, check."""

import fnmatch
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fnlm import tree
from fnlm.files._checkpoint import Checkpoint
from fnlm.files._text import printable_errors
from fnlm.params import _rename, _settings
from fnlm.params import spec as describe
from fnlm.params._path import head_of, part_of
from fnlm.params.config import BaseConfig
from fnlm.params.names import Dialect, Family
from fnlm.tree import Tree

__all__ = ["SpecOf", "assemble", "without_absent"]

SpecOf = Callable[..., Tree]  # spec(config, heads), of a family
Leaves = dict[str, Tensor]  # by our path


class _Request(NamedTuple):
    """What is to be assembled."""

    config: BaseConfig
    family: Family
    spec: SpecOf
    source: str  # what an error calls the tensors
    heads: tuple[str, ...] | None  # None for all that the file holds
    key: Tensor | None


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
    names = (heads,) if isinstance(heads, str) else heads
    request = _Request(config, family, spec, source, None if names is None else tuple(names), key)
    tensors = _without_ignored(tensors, ignore, source)
    if isinstance(tensors, Checkpoint):
        # A dry run on the meta device: errors come before any tensor is read.
        _assembled(tensors.outlined(), request)
    return _assembled(tensors, request)


def _assembled(tensors: Mapping[str, Tensor], request: _Request) -> Tree:
    """Return the parameters, by one step after the other."""
    family, source = request.family, request.source
    dialect = _rename.dialect_of(tensors, family)
    leaves = _renamed(tensors, dialect, request)
    expected = _expected(leaves, request)
    paths = [path for path, _ in tree.named_leaves(expected)]
    leaves = _rename.fit(leaves, paths, family, source)
    leaves |= _new_parts(expected, leaves, request)
    describe.check(expected, leaves, source, _names(expected, dialect))
    ordered = {path: leaves[path] for path in paths}
    return {"config": request.config, **_rename.nest(ordered)}


def _renamed(tensors: Mapping[str, Tensor], dialect: Dialect, request: _Request) -> Leaves:
    """Return the tensors of the requested heads and of the body by our paths.

    Raises:
        ValueError: a name is unknown, or may belong to several heads.
    """
    config, family, heads, source = request.config, request.family, request.heads, request.source
    # Names that several heads share are those of the heads that the config or the caller names.
    tables = _rename.for_heads(family, _settings.heads_of(config.to_dict(), family) or heads or ())
    tables = tables if getattr(config, "tie_word_embeddings", True) else _rename.untied(tables)
    leaves, unexpected = _rename.from_foreign(tensors, tables, source)
    if heads is not None:  # tensors of other heads are left out, whichever head that is
        owners = {name: {*_owners(name, family)} for name in unexpected}
        unexpected = [name for name in unexpected if not owners[name] or owners[name] & {*heads}]
    if unexpected:
        _report_shared(unexpected, family, source)
        _report_unexpected(unexpected, leaves, dialect, request)
    if heads is None:
        return leaves
    return {path: x for path, x in leaves.items() if head_of(path) in ("", *heads)}


def _expected(leaves: Leaves, request: _Request) -> Tree:
    """Return the spec of the requested heads, or of those that the leaves belong to.

    Optional parts that the file lacks are left out, unless a head needs them.
    """
    config, family, heads = request.config, request.family, request.heads
    if heads is None:
        heads = tuple(sorted({head_of(path) for path in leaves} - {""}))
    expected = request.spec(config, heads)
    _settings.check_use(config, family, tuple(expected.get("heads", ())), request.source)
    return without_absent(expected, leaves, family)


def without_absent(expected: Tree, leaves: Iterable[str], family: Family) -> Tree:
    """Return the spec without optional parts that the file lacks and no head needs."""
    present = {part_of(path) for path in leaves}
    needed = {
        part
        for part, needing in family.optional.items()
        if {*needing} & {*expected.get("heads", {})}
    }
    return {k: v for k, v in expected.items() if k not in {*family.optional} - present - needed}


def _new_parts(expected: Tree, leaves: Leaves, request: _Request) -> Leaves:
    """Return freshly initialized leaves of the heads that the file lacks, and of what they need.

    Raises:
        ValueError: there is no key.
    """
    present = {head_of(path) for path in leaves}
    missing = {
        name: spec for name, spec in expected.get("heads", {}).items() if name not in present
    }
    if not missing:
        return {}
    if request.key is None:
        raise ValueError(
            f"{request.source} has no head {', '.join(missing)}: "
            "pass key=fnlm.random.key(seed) to initialize it at random"
        )
    # Optional parts of the body (BERT's pooler) that these heads need, and the file lacks as well.
    body = {part_of(path) for path in leaves}
    parts = {part: expected[part] for part in request.family.optional if part in {*expected} - body}
    fresh = describe.initialize({"heads": missing, **parts}, request.key)
    dtype = next((x.dtype for x in leaves.values()), torch.float32)
    return dict(tree.named_leaves(tree.cast(fresh, dtype)))


def _report_unexpected(
    names: list[str], leaves: Leaves, dialect: Dialect, request: _Request
) -> None:
    """Raise ValueError, naming each unexpected tensor and the missing one nearest to it."""
    family, source = request.family, request.source
    expected = request.spec(request.config, max(family.architectures, key=len))  # with every head
    if not leaves:
        raise ValueError(
            f"{source} holds nothing of family {family.name!r} (its tensors: {names[0]}, ...): "
            "use the module of its own family"
        )
    foreign = [name for path, name in _names(expected, dialect).items() if path not in leaves]
    problems = [f"unexpected {name}{_rename.nearest(name, foreign)}" for name in names]
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
            near = _rename.nearest(pattern, list(tensors))
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
    return {path: name for path in paths if (name := _rename.foreign_name(path, dialect))}


def _owners(name: str, family: Family) -> list[str]:
    """Return the heads that a foreign name may belong to, where it is ambiguous."""
    if _rename.classify(name, family).kind != "leaf":
        return []
    rules = [rule for dialect in family.dialects for rule in dialect.rules]
    return sorted({head_of(rule.ours) for rule in rules if name.endswith(rule.theirs)} - {""})


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
