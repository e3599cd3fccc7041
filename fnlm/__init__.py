"""Language models as pure functions over explicit parameter trees, on PyTorch through `torch.func`.

Public modules: the families (`fnlm.families` lists them: `bert`, `gpt2`, ...), `bridges`,
`checkpoints`, `distributed`, `families`, `files`, `finetune`, `generate`, `heads`, `layers`,
`leaves`, `params`, `pipeline`, `protocols`, `random`, `taps`, `tasks`, `tokenize`, `train`,
`transforms`, `tree`. Each is imported when first asked for: `import fnlm`, then
`fnlm.gpt2.load("tiny")`.
"""

import importlib
import os
import sys
from types import ModuleType

__version__ = "0.1.0"

_MODULES = frozenset(  # besides the families
    "bridges checkpoints distributed families files finetune generate heads layers leaves params "
    "pipeline protocols random taps tasks tokenize train transforms tree".split()
)


def _warn_of_other_copy(here: str) -> None:
    """Warn if a clone was found because Python stands in it, and another copy is installed."""
    if not os.path.isfile(os.path.join(os.path.dirname(here), "pyproject.toml")):
        return
    for folder in sys.path:
        there = os.path.join(folder, "fnlm")
        if folder.endswith("-packages") and os.path.isdir(there):
            import warnings

            warnings.warn(
                f"fnlm is that of the clone, {here}, and not the installed {there}: start Python "
                "in another folder, or as `python -P`; to work on the clone, `pip install -e .`",
                RuntimeWarning,
                stacklevel=3,
            )


_warn_of_other_copy(os.path.dirname(os.path.abspath(__file__)))


def _public() -> frozenset[str]:
    """Return the names of all public modules; the register is read when they are asked for."""
    from fnlm.families import FAMILIES

    return _MODULES | FAMILIES.keys()


def __getattr__(name: str) -> ModuleType:
    """Import a public module of the package, the first time that it is asked for."""
    if name not in _MODULES and name not in _public():
        former = importlib.import_module("fnlm._former")
        if instead := former.of_attribute(name):
            # Not an AttributeError, whose message is lost in `from fnlm import BertModel`.
            raise ImportError(f"fnlm has no {name!r}: instead of it there is {instead}")
        raise AttributeError(
            f"fnlm has no {name!r}: its modules are {', '.join(sorted(_public()))}"
        )
    try:
        return importlib.import_module(f"fnlm.{name}")
    except ModuleNotFoundError as error:
        if str(error) != f"No module named {error.name!r}" or str(error.name).startswith("fnlm"):
            raise
        folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        raise ModuleNotFoundError(
            f"fnlm needs {error.name}, which is not installed for {sys.executable}: run "
            f"`{sys.executable} -m pip install -e {folder}`, or the Python of the environment "
            "that has it",
            name=error.name,
        ) from None


def __dir__() -> list[str]:
    return sorted(_public() | globals().keys())
