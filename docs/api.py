"""Writes docs/api.md: every public name of every public module with the line that documents it.

Run as `python docs/api.py`. A test holds the page and the package to each other.
"""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import fnlm

PAGE = Path(__file__).with_name("api.md")
HEAD = """# Public names

Every public name, with the line that documents it; the rest of the documentation, with shapes,
errors and an example that runs, is in its docstring: `python -c "help('fnlm.gpt2.apply')"`.
This page is written by `make docs`.
"""


def modules() -> Iterator[ModuleType]:
    """Every module of the package whose dotted name has no underscore in front."""
    yield fnlm
    for info in pkgutil.walk_packages(fnlm.__path__, "fnlm."):
        if not any(part.startswith("_") for part in info.name.split(".")):
            yield importlib.import_module(info.name)


def public_names(module: ModuleType) -> Iterator[tuple[str, object]]:
    """The functions and classes that a module defines, in the order of its file."""
    defined = [
        (name, value)
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
    ]
    return iter(defined)


def summary(value: object) -> str:
    """The first line of a docstring, as Markdown: what is not code is taken literally."""
    parts = (inspect.getdoc(value) or "").split("\n")[0].replace("``", "`").split("`")
    parts[::2] = [re.sub(r"([*_<>\[\]])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def signature(name: str, value: object) -> str:
    """A name with its arguments' names; types and defaults are left to the docstring."""
    if not inspect.isfunction(value):
        return name
    plain = [
        parameter.replace(annotation=parameter.empty, default=parameter.empty)
        for parameter in inspect.signature(value).parameters.values()
    ]
    return name + str(inspect.Signature(plain))


def page() -> str:
    """The text of docs/api.md."""
    lines = [HEAD]
    for module in modules():
        rows = [f"- `{signature(n, v)}`: {summary(v)}" for n, v in public_names(module)]
        if rows:
            lines += [f"## {module.__name__}\n", summary(module) + "\n", "\n".join(rows) + "\n"]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
