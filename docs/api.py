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
    """Every module whose dotted name has no underscore in front, but for those of commands."""
    yield fnlm
    for info in pkgutil.walk_packages(fnlm.__path__, "fnlm."):
        hidden = any(part.startswith("_") for part in info.name.split("."))
        if not hidden and not info.name.startswith("fnlm.programs."):
            yield importlib.import_module(info.name)


def public_names(module: ModuleType) -> list[tuple[str, object]]:
    """The functions and classes that a module offers: those of its `__all__`, or else its own."""
    return [
        (name, value)
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__.startswith("fnlm")
        and (
            name in module.__all__
            if hasattr(module, "__all__")
            else value.__module__ == module.__name__
        )
    ]


def homes() -> dict[str, list[tuple[str, object]]]:
    """Module name -> its public names, each listed once: in the outermost module that has it."""
    found: dict[str, list[tuple[str, object]]] = {}
    seen: set[object] = set()
    for module in sorted(modules(), key=lambda module: module.__name__.count(".")):
        fresh = [(name, value) for name, value in public_names(module) if value not in seen]
        seen.update(value for _, value in fresh)
        found[module.__name__] = fresh
    return dict(sorted(found.items()))


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
    for module, names in homes().items():
        rows = [f"- `{signature(name, value)}`: {summary(value)}" for name, value in names]
        if rows:
            about = summary(importlib.import_module(module))
            lines += [f"## {module}\n", about + "\n", "\n".join(rows) + "\n"]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
