"""The names of tensors and configs in other libraries' files: one table a family.

A `Rule` pairs one of our dotted paths with a foreign name; `*` stands for a layer number on both
sides. A `Dialect` is one library's way of naming a family's tensors, a `Family` all of them.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

__all__ = ["Dialect", "Family", "Rule"]


class Rule(NamedTuple):
    """One of our paths, its foreign name, and the axis order where it differs."""

    ours: str
    theirs: str
    layout: str = ""  # an einops pattern from theirs to ours, such as "o i -> i o"


class Dialect(NamedTuple):
    """One library's names for a family."""

    name: str
    file: str  # the name of its weights in a directory; "" if fnlm only reads this form
    rules: tuple[Rule, ...]
    prefix: str  # of every name but the unprefixed; optional when reading
    unprefixed: tuple[str, ...]  # beginnings of names that have no prefix
    ties: Mapping[str, str]  # foreign name of a second copy -> our path
    buffers: tuple[str, ...]  # foreign names that hold no parameter
    bare: bool = False  # whether a file without heads is written without the prefix


class Family(NamedTuple):
    """The names, configs and parts in the files of a family."""

    name: str  # the `model_type` of its config.json
    dialects: tuple[Dialect, ...]  # the first is the one written by default
    # heads -> the class of `transformers` that reads the file
    architectures: Mapping[tuple[str, ...], str]
    # config keys that would change the arithmetic -> the only value that fnlm computes
    required: Mapping[str, object]
    required_by_head: Mapping[str, Mapping[str, object]] = {}  # the same, for some heads alone
    harmless: Mapping[str, str] = {}  # config keys that change no number, and why
    optional: Mapping[str, tuple[str, ...]] = {}  # part that a file may lack -> heads that need it
    ties: Mapping[str, tuple[str, ...]] = {}  # leaf that a config may tie -> leaves that it may be
    stacks: Mapping[str, str] = {}  # leaf of each layer -> leaf of all layers stacked [L, ...]
    # (config, heads, dialect) -> the config as it is written
    stated: Callable[[Any, tuple[str, ...], str], Any] = lambda config, heads, dialect: config
