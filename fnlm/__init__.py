"""Language models as pure functions over explicit parameter trees, on PyTorch through `torch.func`.

Public modules: the families (`fnlm.families` lists them: `bert`, `gpt2`, ...), `checkpoints`,
`families`, `files`, `finetune`, `generate`, `heads`, `layers`, `params`, `pipeline`, `protocols`,
`random`, `tasks`, `tokenize`, `train`, `transforms`, `tree`. Each is imported when first asked for:
`import fnlm`, then `fnlm.gpt2.load("tiny")`.
"""

import importlib
from types import ModuleType

from fnlm.families import FAMILIES as _FAMILIES

__version__ = "0.1.0"

_MODULES = _FAMILIES.keys() | frozenset(
    "checkpoints families files finetune generate heads layers params pipeline protocols "
    "random tasks tokenize train transforms tree".split()
)


def __getattr__(name: str) -> ModuleType:
    """Import a public module of the package, the first time that it is asked for."""
    if name not in _MODULES:
        raise AttributeError(f"fnlm has no {name!r}: its modules are {', '.join(sorted(_MODULES))}")
    return importlib.import_module(f"fnlm.{name}")


def __dir__() -> list[str]:
    return sorted(_MODULES | globals().keys())
