"""The check of the `params` argument of every public function of every family.

It costs two look-ups in dicts, reads no leaf, and so passes whatever a transform or a leaf that
answers for a tensor puts into the tree. What is missing further down is named where it is missed.
"""

import functools
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, ParamSpec, TypeVar

from torch import Tensor, nn

from fnlm import _former, tree
from fnlm.params.config import BaseConfig
from fnlm.tree import Tree

__all__ = [
    "MISSED", "check_config", "checked", "config_of", "raise_named", "register_functions",
]  # fmt: skip

MISSED = (AttributeError, KeyError, TypeError)  # what the lack of a leaf raises
C = TypeVar("C", bound=BaseConfig)
P = ParamSpec("P")
R = TypeVar("R")


def config_of(params: Any, kind: type[C]) -> C:
    """Return the config of a family's parameters.

    Args:
        params: what a function was given as its first argument.
        kind: the `Config` of the family.

    Raises:
        TypeError: they are not parameters of that family; names what they are, and the remedy.

    >>> from fnlm import gpt2
    >>> config_of("gpt2", gpt2.Config)
    Traceback (most recent call last):
    TypeError: params must be parameters of gpt2, got the name 'gpt2': load them, gpt2.load('gpt2')
    """
    config = params.get("config") if isinstance(params, dict) else None
    if isinstance(config, kind):
        return config
    family = _family(kind)
    raise TypeError(f"params must be parameters of {family}, got {_described(params, family)}")


def check_config(config: Any, kind: type[BaseConfig]) -> None:
    """Raise TypeError unless a config is of a family; names what it is, and the remedy.

    >>> from fnlm import bert, gpt2
    >>> check_config(bert.Config(), gpt2.Config)
    Traceback (most recent call last):
    TypeError: config must be a gpt2.Config, got a bert.Config: use the functions of bert
    """
    if isinstance(config, kind):
        return
    family = _family(kind)
    what = type(config).__name__
    remedy = f"make one, {family}.Config(...)"
    if isinstance(config, BaseConfig):
        other = _family(type(config))
        what, remedy = f"a {other}.Config", f"use the functions of {other}"
    elif isinstance(config, dict) and isinstance(config.get("config"), kind):
        remedy = "give params['config']"
    elif isinstance(config, dict):
        remedy = f"{family}.Config.from_dict makes one of a dict"
    elif isinstance(config, str | os.PathLike):
        what = f"the name {os.fspath(config)!r}"
        remedy = f"{family}.load gives its parameters, {family}.Config.from_json_file a file's"
    elif isinstance(config, type):
        remedy = f"make one, {family}.Config()"
    raise TypeError(f"config must be a {family}.Config, got {what}: {remedy}")


def checked(
    kind: type[BaseConfig], spec: Callable[..., Tree]
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that checks the `params` of a function and names missing leaves.

    Args:
        kind: the `Config` of the family.
        spec: of the family.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            params: Any = args[0] if args else kwargs.get("params")
            config_of(params, kind)
            try:
                return function(*args, **kwargs)
            except MISSED as error:
                if _former.is_refused(error):
                    _former.raise_answer(error, function)
                raise_named(error, params, spec)

        return call

    return decorate


def register_functions(module: str, kind: type[BaseConfig], spec: Callable[..., Tree]) -> None:
    """Let the public functions of a family name what is wrong with their arguments.

    Those of params and ids are `checked`; names and arguments of other libraries are answered.

    Args:
        module: its name, `__name__`; called at its end.
        kind: the `Config` of the family.
        spec: of the family.
    """
    _former.explain_names(module)
    names = vars(sys.modules[module])
    for name in names["__all__"]:
        function = names[name]
        if inspect.isfunction(function) and function.__module__ == module:
            of_data = [*inspect.signature(function).parameters][:2] == ["params", "ids"]
            names[name] = (checked(kind, spec) if of_data else _former.answering)(function)


def raise_named(error: Exception, params: Tree, spec: Callable[..., Tree]) -> NoReturn:
    """Re-raise an error of a function of parameters, naming the leaves that they lack.

    Args:
        error: one of `MISSED`.
        params: parameters with the config of their family.
        spec: of the family.

    Raises:
        ValueError: leaves are missing, and named; else the error itself is raised.
    """
    if error.args and str(error.args[0]).startswith("params have no"):
        raise error  # already names the missing part
    paths = {path for path, _ in tree.named_leaves(params)}
    expected = spec(params["config"], tuple(params.get("heads", ())))
    blocks = params.get("blocks", expected["blocks"])  # there may be fewer than in the config
    expected["blocks"] = expected["blocks"][: len(blocks)]
    missing = [path for path, _ in tree.named_leaves(expected) if not _holds(paths, path)]
    if not missing:
        raise error
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    family = _family(type(params["config"]))
    raise ValueError(
        f"params have no leaf {', '.join(missing[:3])}{more}, which their config asks for: "
        f"{family}.spec(params['config']) describes all of them, tree.merge joins what "
        "tree.partition has parted"
    ) from error


def _holds(paths: set[str], path: str) -> bool:
    """Whether a path is among `paths`, or a node above one of them: a leaf may be a tree."""
    return path in paths or any(name.startswith(f"{path}.") for name in paths)


def _family(kind: type[BaseConfig]) -> str:
    return kind.__module__.removeprefix("fnlm.")


def _described(params: Any, family: str) -> str:
    """Return what was passed in place of parameters, and the remedy, for the error."""
    get = f"make them with {family}.init(config, key) or {family}.load(...)"
    if isinstance(params, str | os.PathLike):
        return f"the name {os.fspath(params)!r}: load them, {family}.load({os.fspath(params)!r})"
    if isinstance(params, Tensor):
        return f"a tensor {list(params.shape)}: parameters come first, then the ids"
    if isinstance(params, nn.Module):
        return (
            f"the module {type(params).__name__}: {family}.load reads the files that it is saved "
            "in, fnlm.params.module.from_module makes a function of any module"
        )
    if isinstance(params, BaseConfig):
        return f"a config without leaves: {get}"
    if hasattr(params, "params"):
        return f"a {type(params).__name__}: pass its field `params`"
    if not isinstance(params, Mapping):
        return f"{type(params).__name__}: {get}"
    config = params.get("config")
    if isinstance(config, BaseConfig):
        return f"those of {_family(type(config))}: use the functions of that module"
    if config is not None:
        return (
            f"a dict whose 'config' is of type {type(config).__name__}: it must be a "
            f"{family}.Config, and {family}.Config.from_dict makes one of a dict"
        )
    if any("." in str(name) for name in params):
        return (
            f"a dict of dotted names, such as {next(n for n in params if '.' in str(n))!r}: "
            f"{family}.load reads the file of a state dict, beside its config.json"
        )
    if not isinstance(params, dict):
        return f"a {type(params).__name__}: make it a dict"
    names = ", ".join(map(str, params)) or "nothing"
    return (
        f"a dict without 'config' (it holds {names[:60]}): gradients, and the first half of "
        "tree.partition, have none; "
        "{**tree, 'config': params['config']} adds it"
    )
