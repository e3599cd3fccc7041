"""The base of every family's `Config`: reading, validating and writing config.json files.

The annotated type of a field holds its bounds, and one function validates all fields, so that no
value of a file is used unchecked.
"""

import dataclasses
import functools
import json
import math
import operator
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    NamedTuple,
    Self,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

__all__ = [
    "BaseConfig", "Count", "LabelledConfig", "Rate", "Scale", "Shapes", "Size", "multiple_of",
    "one_of", "read_json",
]  # fmt: skip

Shapes = Mapping[str, tuple[int, ...]]
MOST_BYTES = 2**22  # of a config.json: names of a hundred thousand classes are less
MOST_DEPTH = 50


class Range(NamedTuple):
    """Inclusive bounds of a number."""

    least: float
    most: float
    words: str


# Types of fields.
Size = Annotated[int, Range(1, 2**62, "an integer of at least 1")]
Count = Annotated[int, Range(0, 2**62, "an integer of at least 0")]
Rate = Annotated[float, Range(0, 1, "a number from 0 to 1")]  # of a dropout
Scale = Annotated[float, Range(0, 1e30, "a number of at least 0")]  # an epsilon, a deviation


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """A frozen description of an architecture; subclasses add the fields of their config.json.

    Keys of a file that are not fields are kept, as JSON text, in `extra`, and written back by
    `to_dict`; they describe no arithmetic, so configs that differ only there are equal.
    """

    extra: str = dataclasses.field(default="{}", compare=False)
    aliases: ClassVar[Mapping[str, str]] = {}  # other names of fields, read where a file lacks them
    depth: ClassVar[str] = "n_layer"  # the field that counts the blocks

    def __post_init__(self) -> None:
        """Validate every field by its type; subclasses add conditions across fields."""
        kinds: dict[str, Any] = _types(type(self))  # type: ignore[arg-type]  # a class is hashable
        for name, kind in kinds.items():
            object.__setattr__(self, name, _checked(name, getattr(self, name), kind))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore from a pickle, with the same validation."""
        self.__init__(**state)  # type: ignore[misc]

    @classmethod
    def from_dict(cls, values: dict[str, Any], shapes: Shapes | None = None) -> Self:
        """Return the config of the content of a config.json.

        Args:
            values: the content.
            shapes: of the leaves in the file of weights, by path: they supply what `values` leaves
                out, such as the number of classes of a classifier's file.

        Raises:
            ValueError: a field is invalid, or differs from what `values` has by its other name.
        """
        names = {field.name for field in dataclasses.fields(cls)} - {"extra"}
        values = dict(values)
        for alias, name in cls.aliases.items():
            if alias not in values:
                continue
            if name in values and alias not in names and values[name] != values[alias]:
                raise ValueError(
                    f"{name}={short(values[name])} and {alias}={short(values[alias])} are two "
                    "names of one thing: leave one out"
                )
            values.setdefault(name, values[alias])
            if alias not in names:  # an alias may be a field, too: GPT's resid_pdrop
                del values[alias]
        classes = values.get("architectures")
        if not (classes is None or _is_list_of(classes, str)):
            raise ValueError(f"architectures must be a list of class names, got {short(classes)}")
        fields = {name: value for name, value in values.items() if name in names}
        extra = {name: value for name, value in values.items() if name not in names}
        try:
            text = json.dumps(extra, sort_keys=True)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{', '.join(map(str, extra))}: no JSON of a config: {error}"
            ) from error
        return cls(**fields, extra=text)

    @classmethod
    def from_json_file(cls, path: str | Path) -> Self:
        """Read a config.json.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not a JSON object, has a key twice, or a field is invalid.
        """
        values = read_json(path)
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the unknown keys of the file the config was read from."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return json.loads(fields.pop("extra")) | fields

    def to_json_string(self) -> str:
        """Return `to_dict()` as indented JSON with sorted keys."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def to_json_file(self, path: str | Path) -> None:
        """Write `to_json_string()` to a file."""
        Path(path).write_text(self.to_json_string(), encoding="utf-8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledConfig(BaseConfig):
    """A config with a number of classes, by default that of the names or heads of its file."""

    num_labels: Size = 2

    @classmethod
    def from_dict(cls, values: dict[str, Any], shapes: Shapes | None = None) -> Self:
        """Make a config from a config.json; `num_labels` follows its names or the file's heads."""
        labels = values.get("id2label")
        if not isinstance(labels, dict | None):
            raise ValueError(f"id2label must be an object of names, got {type(labels).__name__}")
        heads = ("sequence_classification", "token_classification")
        sizes = [n for head in heads for n in (shapes or {}).get(f"heads.{head}.bias", ())]
        counts = [len(labels)] if labels else sizes
        return super().from_dict(({"num_labels": counts[0]} if counts else {}) | values, shapes)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the file's unknown keys, without label names that do not fit."""
        values = super().to_dict()
        if len(values.get("id2label") or values.get("label2id") or ()) != self.num_labels:
            values = {k: v for k, v in values.items() if k not in ("id2label", "label2id")}
        return values


def multiple_of(config: BaseConfig, name: str, divisor: str) -> None:
    """Raise ValueError unless one field of a config is a multiple of another.

    >>> from fnlm import gpt2
    >>> multiple_of(gpt2.Config(n_embd=12, n_head=3), "n_embd", "n_head")
    """
    value, parts = getattr(config, name), getattr(config, divisor)
    if value % parts:
        raise ValueError(f"{name}={value} must be a multiple of {divisor}={parts}")


def one_of(name: str, value: Any, known: Iterable[str]) -> None:
    """Raise ValueError, naming the field, unless its value is one of `known`.

    >>> one_of("activation", "mish", ["gelu", "relu"])
    Traceback (most recent call last):
    ValueError: activation='mish' is not one of gelu, relu
    """
    if value not in known:
        raise ValueError(f"{name}={short(value)} is not one of {', '.join(known)}")


def read_json(path: str | Path) -> dict[str, Any]:
    """Return the JSON object in a file, with a byte order mark or without.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON object, is too large or too deep, or has a key twice.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no regular file")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise ValueError(f"{path} has {size:,} bytes: no config.json has more than {MOST_BYTES:,}")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, value in pairs:
            if name in values:
                raise ValueError(f"{path} says {short(name)} twice: leave one out")
            values[name] = value
        return values

    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=once)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deep for a config") from error
    except ValueError as error:  # of `once`, or a number of thousands of digits
        text = str(error)
        raise ValueError(text if str(path) in text else f"{path} is not JSON: {text}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, found {type(values).__name__}")
    if not _is_shallow(values):
        raise ValueError(f"{path} is nested too deep for a config: more than {MOST_DEPTH} levels")
    return values


def _is_shallow(value: Any) -> bool:
    """Whether lists and objects are nested at most `MOST_DEPTH` deep."""
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [x for node in level for x in (node.values() if isinstance(node, dict) else node)]
        level = [x for x in level if isinstance(x, dict | list)]
        if not level:
            return True
    return False


@functools.cache
def _types(cls: type) -> dict[str, Any]:
    """Return the types of the fields, resolved once."""
    kinds = get_type_hints(cls, include_extras=True)
    return {field.name: kinds[field.name] for field in dataclasses.fields(cls)}


def _checked(name: str, value: Any, kind: Any) -> Any:
    """Return a value converted to the type of its field.

    Raises:
        ValueError: it cannot be; names the field and the value.
    """
    converted = _as(value, kind)
    if converted is _INVALID:
        raise ValueError(f"{name} must be {_words(kind)}, got {short(value)}")
    return converted


_INVALID = object()


def _as(value: Any, kind: Any) -> Any:
    """Convert a value to a type; `_INVALID` where it can't be one."""
    if isinstance(kind, UnionType) or get_origin(kind) is Union:
        candidates = (_as(value, part) for part in get_args(kind))
        return next((x for x in candidates if x is not _INVALID), _INVALID)
    if get_origin(kind) is Annotated:
        base, limits = get_args(kind)
        number = _as(value, base)
        fits = number is not _INVALID and limits.least <= number <= limits.most
        return number if fits else _INVALID
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            return _INVALID
        items = [_as(x, get_args(kind)[0]) for x in value]
        return _INVALID if any(x is _INVALID for x in items) else tuple(items)
    if kind in (bool, str, type(None)):
        return value if isinstance(value, kind) else _INVALID
    if isinstance(value, bool | str):
        return _INVALID
    try:
        if kind is int:
            return operator.index(value)
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return _INVALID
    return number if math.isfinite(number) else _INVALID


def _words(kind: Any) -> str:
    """Return the description of a type for an error."""
    if isinstance(kind, UnionType) or get_origin(kind) is Union:
        return " or ".join(_words(part) for part in get_args(kind))
    if get_origin(kind) is Annotated:
        return str(get_args(kind)[1].words)
    if get_origin(kind) is tuple:
        return f"a list, each item of it {_words(get_args(kind)[0])}"
    names = {bool: "true or false", str: "a string", int: "an integer", float: "a number"}
    return names.get(kind, "null")


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(x, kind) for x in value)


def short(value: Any) -> str:
    """Return the repr of a value for an error, at most 60 characters."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # an integer of thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."
