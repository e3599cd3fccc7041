"""The names of the reference and the subjects that they are grouped by."""

import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

_DOCS = Path(__file__).resolve().parent.parent

# Page -> title, and the parts of the package that it describes. Families come first by themselves,
# and a part that is not listed goes to the last page.
SUBJECTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "models": ("Models", ("families", "protocols", "heads")),
    "layers": ("Layers", ("layers",)),
    "parameters": ("Parameters", ("tree", "params", "leaves")),
    "randomness": ("Randomness", ("random",)),
    "transforms": ("Transforms", ("transforms", "taps")),
    "training": ("Training", ("train", "finetune", "distributed")),
    "generation": ("Generation", ("generate", "pipeline")),
    "tokenizers": ("Tokenizers", ("tokenize",)),
    "tasks": ("Tasks", ("tasks",)),
    "files": ("Files and commands", ("files", "checkpoints", "cli", "programs")),
    "more": ("Further modules", ()),
}


@cache
def api() -> ModuleType:
    """The module that lists the public names, docs/api.py."""
    spec = importlib.util.spec_from_file_location("fnlm_api", _DOCS / "api.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def homes() -> dict[str, list[str]]:
    """Module -> the names that the reference has under it; modules without names are left out."""
    found = api().homes().items()
    return {module: [name for name, _ in names] for module, names in found if names}


@cache
def known() -> frozenset[str]:
    """Every dotted name that the reference has."""
    return frozenset(homes()) | {f"{m}.{name}" for m, names in homes().items() for name in names}


def page_of(module: str) -> str:
    """Return the page of a module of the package."""
    from fnlm.families import FAMILIES

    part = [*module.split("."), ""][1]
    if part in FAMILIES:
        return "models"
    return next((page for page, (_, parts) in SUBJECTS.items() if part in parts), "more")


def pages() -> Iterator[tuple[str, str, str]]:
    """Yield file, title and text of each page of the reference."""
    for page, (title, _) in SUBJECTS.items():
        modules = [module for module in homes() if page_of(module) == page]
        if modules:
            text = "\n".join(map(_section, modules))
            yield f"reference/{page}.md", title, f"# {title}\n\n{text}"


def _section(module: str) -> str:
    options = "    options: {members: false, heading_level: 2, show_root_full_path: true}\n"
    rows = "".join(f"::: {module}.{name}\n\n" for name in homes()[module])
    return f"::: {module}\n{options}\n{rows}"
