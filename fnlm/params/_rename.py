"""Renaming between foreign tensor names and our paths, both ways, with no tensor unaccounted for.

The tables are in `fnlm.params.names`. Nothing is matched by substring, and nothing is dropped
silently.
"""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import cache, lru_cache
from typing import Any, NamedTuple

import einops
from torch import Tensor

from fnlm.params._path import head_of
from fnlm.params._trainers import COUNTERS, STATES, TRAINING, without_wrappers
from fnlm.params.names import Dialect, Family, Rule
from fnlm.tree import Tree, named_leaves

__all__ = [
    "Match", "account", "classify", "dialect_named", "dialect_of", "fit", "for_heads",
    "foreign_name", "from_foreign", "nearest", "nest", "to_foreign", "untied",
]  # fmt: skip

SMALL = 2**14  # elements


class Match(NamedTuple):
    """The meaning of a foreign name."""

    kind: str  # "leaf", "tie" (a second copy of a leaf), "buffer", "training" or "unknown"
    path: str = ""  # of the leaf; of "training", the weight whose slot it is, if it is one
    layout: str = ""  # as in `Rule`


def to_foreign(params: Tree, dialect: Dialect) -> dict[str, Tensor]:
    """Return the leaves by the names of a dialect: the inverse of `from_foreign`.

    Raises:
        ValueError: a leaf has no rule, or two leaves have one name.
    """
    prefixed = not dialect.bare or "heads" in params
    result = {}
    for path, leaf in named_leaves(params):
        rule, number = _find(path, dialect.rules, "ours")
        if rule is None:
            raise ValueError(
                f"no rule of {dialect.name} names the leaf {path}: it can't be saved in that form"
            )
        name = _name_of(rule, number, dialect, prefixed)
        if name in result:
            raise ValueError(
                f"{path} and the same leaf of another head are both called {name} in {dialect.name}"
                " files: save the heads apart, or in the dialect 'fnlm'"
            )
        back = " -> ".join(reversed(rule.layout.split(" -> ")))
        result[name] = einops.rearrange(leaf, back) if back else leaf
    return result


def foreign_name(path: str, dialect: Dialect) -> str | None:
    """Return a dialect's name for one of our paths, None where it has none."""
    rule, number = _find(path, dialect.rules, "ours")
    return None if rule is None else _name_of(rule, number, dialect)


def dialect_named(name: str, family: Family) -> Dialect:
    """Return a dialect in which a family is written.

    Raises:
        ValueError: there is none of that name.
    """
    written = {dialect.name: dialect for dialect in family.dialects if dialect.file}
    if name not in written:
        raise ValueError(f"dialect={name!r} is not one of {', '.join(written)}")
    return written[name]


def dialect_of(names: Iterable[str], family: Family) -> Dialect:
    """Return the dialect that matches most of the names, the first one of equals."""
    names = [without_wrappers(name) for name in names]
    return max(family.dialects, key=lambda d: sum(_match(n, d) is not None for n in names))


def for_heads(family: Family, heads: Iterable[str]) -> Family:
    """Return the family with ambiguous names resolved by `heads`, or dropped if still ambiguous.

    >>> from fnlm.params.names.bert import FAMILY
    >>> classify("classifier.bias", for_heads(FAMILY, ["token_classification"])).path
    'heads.token_classification.bias'
    >>> classify("classifier.bias", for_heads(FAMILY, [])).kind
    'unknown'
    """
    heads = set(heads)

    def narrow(dialect: Dialect) -> Dialect:
        by_name: dict[str, list[Rule]] = {}
        for rule in dialect.rules:
            by_name.setdefault(rule.theirs, []).append(rule)
        rules: list[Rule] = []
        for group in by_name.values():
            # Several rules of one foreign name are those of several heads: "classifier.weight".
            requested = [rule for rule in group if head_of(rule.ours) in heads]
            rules += group if len(group) == 1 else requested if len(requested) == 1 else []
        return dialect._replace(rules=tuple(rules))

    return family._replace(dialects=tuple(narrow(dialect) for dialect in family.dialects))


def untied(family: Family) -> Family:
    """Return the family with tied names as leaves of their own, where rules name such leaves.

    >>> from fnlm.params.names.gpt2 import FAMILY
    >>> classify("lm_head.weight", FAMILY).path, classify("lm_head.weight", untied(FAMILY)).path
    ('embed.token', 'output.table')
    """

    def narrow(dialect: Dialect) -> Dialect:
        names = {rule.theirs for rule in dialect.rules}
        ties = {name: path for name, path in dialect.ties.items() if name not in names}
        return dialect._replace(ties=ties)

    return family._replace(dialects=tuple(narrow(dialect) for dialect in family.dialects))


def from_foreign(
    tensors: Mapping[str, Tensor], family: Family, source: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Return tensors by our paths.

    Args:
        tensors: by foreign name, in any of the family's dialects, with or without its prefix; what
            is not ours is not read, if the mapping reads when asked, as a `Checkpoint` does.
        family: the tables.
        source: what an error calls the file.

    Returns:
        tensors by our path, and the foreign names that are unknown.

    Raises:
        ValueError: two names for one leaf, a tied copy that differs from its original, or a tensor
            of another rank than its rule expects.
    """
    leaves: dict[str, Tensor] = {}
    names: dict[str, str] = {}  # our path -> the foreign name that it was read from
    copies: list[tuple[str, str]] = []
    unexpected = []
    for name, match in account(tensors, family).items():
        if match.kind == "unknown":
            unexpected.append(name)
        elif match.kind == "tie":
            copies.append((name, match.path))
        elif match.kind == "leaf":
            if match.path in leaves:
                raise ValueError(
                    f"{source}: both {names[match.path]} and {name} name the leaf {match.path}"
                )
            leaves[match.path] = _rearrange(tensors[name], match.layout, f"{source}: {name}")
            names[match.path] = name
    for name, path in copies:  # after all leaves, whatever the order of the file
        if path not in leaves:
            leaves[path], names[path] = tensors[name], name
        elif not _same(tensors[name], leaves[path]):
            raise ValueError(
                f"{source}: {name} is tied to {names[path]}, but the two differ: "
                "the file holds an untied model"
            )
    return leaves, unexpected


def fit(
    found: Mapping[str, Tensor], wanted: Iterable[str], family: Family, source: str
) -> dict[str, Tensor]:
    """Return the leaves with the copies of tied ones dropped and stacked layers separated.

    Args:
        found: tensors by our path.
        wanted: the paths of the model.
        family: with the tables `ties` and `stacks`.
        source: what an error calls the file.

    Raises:
        ValueError: a copy differs from its original.
    """
    wanted, result = set(wanted), dict(found)
    # Tied leaves: a path that the model lacks is a copy of the first original that it has.
    for pattern, originals in family.ties.items():
        for path, leaf in found.items():
            place, number = _place(path, (pattern,))
            names = (original.replace("*", number) for original in originals)
            owner = next((name for name in names if name in wanted), None)
            if path in wanted or place is None or owner is None:
                continue
            del result[path]
            if not _same(result.setdefault(owner, leaf), leaf):
                raise ValueError(
                    f"{source}: {path} and {owner} differ, and the config says that they are one: "
                    "correct it if the file holds an untied model"
                )
    # Stacked leaves [L, ...]: one tensor for all L layers, separated along the first axis.
    for pattern, stacked in family.stacks.items():
        layers = sorted((p for p in wanted if _place(p, (pattern,))[0] is not None), key=_order)
        if stacked in found.keys() - wanted and found[stacked].shape[:1] == (len(layers),):
            result |= zip(layers, result.pop(stacked).unbind(0), strict=True)
    return result


def classify(name: str, family: Family) -> Match:
    """Return the meaning of a foreign name in any dialect of a family.

    >>> from fnlm.params.names.gpt2 import FAMILY
    >>> classify("module.transformer.h.3.ln_1.weight", FAMILY).path
    'blocks.3.norm_1.scale'
    >>> classify("model/wte/LAMBOptimizer_1", FAMILY).kind
    'training'
    """
    if match := _match_any(name, family):
        return match
    if TRAINING.fullmatch(name) or COUNTERS.fullmatch(name):
        return Match("training")
    weight, _, slot = name.rpartition("/" if "/" in name else ".")
    if "/" in name or slot in STATES:
        scopes = weight.split("/")
        for start in range(min(3, len(scopes))):  # optimizers may put a scope in front
            match = _match_any("/".join(scopes[start:]), family)
            if match and match.kind in ("leaf", "tie"):
                return Match("training", match.path)
    return Match("unknown")


def account(tensors: Mapping[str, Tensor], family: Family) -> dict[str, Match]:
    """Return the meaning of every tensor of a file, as `classify` does, by its shape as well.

    A slot of an optimizer, whatever its name, has the shape of its weight, or lacks one axis of it,
    or is one number; a counter is one number. Others are unknown.

    >>> import torch
    >>> from fnlm.params.names.gpt2 import FAMILY
    >>> file = {"wte": torch.ones(3, 2), "wte/vr": torch.ones(3), "wte/lora": torch.ones(9)}
    >>> [match.kind for match in account(file, FAMILY).values()]
    ['leaf', 'training', 'unknown']
    """
    matches = {name: classify(name, family) for name in tensors}
    weights = {match.path: name for name, match in matches.items() if match.kind in ("leaf", "tie")}
    for name, match in matches.items():
        if match.kind != "training" or (not match.path and not COUNTERS.fullmatch(name)):
            continue
        shape, shapes = _shape(tensors, name), [(), (1,)]
        if match.path in weights:
            # A moment has the shape of its weight; a factored one (Adafactor) lacks one axis.
            full = _shape(tensors, weights[match.path])
            shapes += [full, *(full[:axis] + full[axis + 1 :] for axis in range(len(full)))]
        if shape not in shapes or (match.path and match.path not in weights):
            matches[name] = Match("unknown")
    return matches


def nest(flat: Mapping[str, Tensor]) -> Tree:
    """Return nested dicts from dotted paths, and tuples from consecutive numbers.

    >>> nest({"a.0.w": 1, "a.1.w": 2, "b": 3})
    {'a': ({'w': 1}, {'w': 2}), 'b': 3}
    """
    branches: dict[str, dict[str, Tensor]] = {}
    result: dict[str, Tree] = {}
    for path, leaf in flat.items():
        first, _, tail = path.partition(".")
        if tail:
            branches.setdefault(first, {})[tail] = leaf
            result.setdefault(first, None)  # keeps the order of first appearance
        else:
            result[first] = leaf
    result |= {first: nest(branch) for first, branch in branches.items()}
    if result and set(result) == {str(i) for i in range(len(result))}:
        return tuple(result[str(i)] for i in range(len(result)))
    return result


def nearest(name: str, names: list[str]) -> str:
    """Return " (nearest: ...)" with the closest of `names`, for the end of an error, or ""."""
    close = get_close_matches(name, names, 1)
    return f" (nearest: {close[0]})" if close else ""


def _match_any(name: str, family: Family) -> Match | None:
    short = without_wrappers(name)
    return next((match for d in family.dialects if (match := _match(short, d))), None)


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """Return the shape of a tensor, unread where a file describes it."""
    described = getattr(tensors, "entries", tensors)
    return tuple(described[name].shape)


def _match(name: str, dialect: Dialect) -> Match | None:
    """Return the meaning of a name without wrappers in one dialect."""
    short = name.removeprefix(without_wrappers(dialect.prefix))
    if short in dialect.ties:
        return Match("tie", dialect.ties[short])
    if _place(short, tuple(dialect.buffers))[0] is not None:
        return Match("buffer")
    rule, number = _find(short, dialect.rules, "theirs")
    return rule and Match("leaf", rule.ours.replace("*", number), rule.layout)


def _find(name: str, rules: tuple[Rule, ...], side: str) -> tuple[Rule | None, str]:
    """Return the rule whose `side` matches a name, and the layer number in the name."""
    place, number = _place(name, rules, side)
    return (None, "") if place is None else (rules[place], number)


@lru_cache(1 << 14)
def _place(name: str, rules: tuple[Any, ...], side: str = "") -> tuple[int | None, str]:
    """Return which of some patterns, "*" being a number, is the first to match; the number."""
    forms = {name: ""}  # regular expressions take longer to make than a small file to read
    for digits in re.finditer("[0-9]+", name):
        forms[f"{name[: digits.start()]}*{name[digits.end() :]}"] = digits[0]
    places = _places(rules, side) if "*" not in name else {}
    found = [(places[form], number) for form, number in forms.items() if form in places]
    return min(found, default=(None, ""))


@cache
def _places(rules: tuple[Any, ...], side: str) -> dict[str, int]:
    return {getattr(r, side) if side else r: at for at, r in reversed([*enumerate(rules)])}


def _name_of(rule: Rule, number: str, dialect: Dialect, prefixed: bool = True) -> str:
    name = rule.theirs.replace("*", number)
    return dialect.prefix + name if prefixed and not name.startswith(dialect.unprefixed) else name


def _order(path: str) -> list[int]:
    return [int(number) for number in re.findall("[0-9]+", path)]


def _rearrange(tensor: Tensor, layout: str, label: str) -> Tensor:
    if not layout:
        return tensor
    axes = layout.split(" -> ")[0].split()
    fits = tensor.ndim == len(axes) and all(
        size == 1 for size, axis in zip(tensor.shape, axes, strict=True) if axis == "1"
    )
    if not fits:
        raise ValueError(
            f"{label} has shape {list(tensor.shape)}, expected axes ({', '.join(axes)})"
        )
    arranged = einops.rearrange(tensor, layout)
    # A matrix product rounds by the order of memory: in ours, which costs little where a matrix is
    # small, a small model computes the same bits when it is loaded again.
    return arranged.contiguous() if arranged.numel() <= SMALL else arranged


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, NaN being equal to NaN; on the meta device, their shapes."""
    if a.shape != b.shape or a.is_meta or b.is_meta:
        return a.shape == b.shape
    return bool(((a == b) | (a != a) & (b != b)).all())
