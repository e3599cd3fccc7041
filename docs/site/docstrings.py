"""What griffe reads of the package, as mkdocstrings shows it: see rewrite.py."""

import importlib.util
from pathlib import Path
from typing import Any

import griffe

_HERE = Path(__file__).parent


def _sibling(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"fnlm_site_{name}", _HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_rewrite, _names = _sibling("rewrite"), _sibling("names")


class Docstrings(griffe.Extension):
    """Turns docstrings into Markdown, and the comments on fields into a list of attributes."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of a module, class, function or property."""
        if obj.docstring is not None:
            obj.docstring.value = _rewrite.markdown(obj.docstring.value, _names.known())

    def on_class(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Describe the fields that have no entry among the arguments."""
        if cls.docstring is None or "\nArgs:\n" in cls.docstring.value:
            return
        rows = [
            f"    {name}: {_rewrite.escape(text)}"
            for name, text in _rewrite.remarks(cls.source).items()
            if not name.startswith("_")
        ]
        if rows:
            cls.docstring.value += "\n\nAttributes:\n" + "\n".join(rows)
