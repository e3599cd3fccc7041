"""Language models as pure functions over explicit parameter trees, on PyTorch through `torch.func`.

Public modules: `bert`, `gpt`, `gpt2` and `transfo_xl` (the families), `checkpoints`, `files`,
`finetune`, `generate`, `heads`, `layers`, `leaves`, `params`, `pipeline`, `random`, `tasks`,
`tokenize`, `train`, `transforms`, `tree`. Each is imported when it is first asked for:
`import fnlm`, then `fnlm.gpt2.load("tiny")`.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"

_MODULES = frozenset(
    "bert checkpoints files finetune generate gpt gpt2 heads layers leaves params pipeline random "
    "tasks tokenize train transfo_xl transforms tree".split()
)


def __getattr__(name: str) -> ModuleType:
    """Import a public module of the package, the first time that it is asked for."""
    if name not in _MODULES:
        raise AttributeError(f"fnlm has no {name!r}: its modules are {', '.join(sorted(_MODULES))}")
    return importlib.import_module(f"fnlm.{name}")


def __dir__() -> list[str]:
    return sorted(_MODULES | globals().keys())
