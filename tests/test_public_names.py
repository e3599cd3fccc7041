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
NAMES = [(m.__name__, name, value) for m in MODULES for name, value in api.public_names(m)]


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


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_module_says_what_it_is(module: ModuleType) -> None:
    assert not complaint(module, module.__name__)


@pytest.mark.parametrize(("module", "name", "value"), NAMES, ids=[f"{m}.{n}" for m, n, _ in NAMES])
def test_every_public_name_is_documented(module: str, name: str, value: object) -> None:
    assert not complaint(value, name), f"{module}.{name} {complaint(value, name)}"


@pytest.mark.parametrize(("module", "name", "value"), NAMES, ids=[f"{m}.{n}" for m, n, _ in NAMES])
def test_every_public_function_says_its_types(module: str, name: str, value: object) -> None:
    if inspect.isfunction(value):
        missing = set(inspect.signature(value).parameters) - set(value.__annotations__)
        assert not missing, f"{module}.{name}: no type for {sorted(missing)}"
        assert "return" in value.__annotations__, f"{module}.{name}: no type for the result"


def test_the_page_of_public_names_is_up_to_date() -> None:
    assert (ROOT / "docs" / "api.md").read_text(encoding="utf-8") == api.page(), "run `make docs`"
