"""Every public name is documented: by one line of its docstring, and so in docs/api.md."""

import importlib.util
import inspect
from types import ModuleType

import pytest
from conftest import ROOT

_spec = importlib.util.spec_from_file_location("api", ROOT / "docs" / "api.py")
assert _spec is not None and _spec.loader is not None
api = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(api)

MODULES: list[ModuleType] = list(api.modules())
each_module = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)


def complaint(value: object, name: str) -> str:
    """What is wrong with a docstring; empty where nothing is."""
    text = value.__doc__ or ""
    lines = text.strip().split("\n")
    if not text.strip():
        return "has no docstring"
    if inspect.isclass(value) and text.startswith(f"{name}("):
        return "has only the docstring that its type made up"
    if len(lines) > 1 and lines[1].strip():
        return "has no blank line after the first line of its docstring"
    return "" if lines[0].endswith((".", ":")) else "does not end its first line with a full stop"


@each_module
def test_every_public_name_is_documented(module: ModuleType) -> None:
    assert not complaint(module, ""), f"{module.__name__} {complaint(module, '')}"
    for name, value in api.public_names(module):
        found = complaint(value, name)
        assert not found, f"{module.__name__}.{name} {found}"


@each_module
def test_exported_names_exist(module: ModuleType) -> None:
    """`from module import *` and the list of what it exports agree."""
    missing = [name for name in getattr(module, "__all__", ()) if not hasattr(module, name)]
    assert not missing, f"{module.__name__}.__all__ names {missing}, which it does not define"


def test_the_page_of_public_names_is_up_to_date() -> None:
    assert (ROOT / "docs" / "api.md").read_text(encoding="utf-8") == api.page(), "run `make docs`"
