"""Language models as pure functions over explicit parameter trees, on PyTorch through `torch.func`.

Public modules: the families (`fnlm.families` lists them: `bert`, `gpt2`, ...), `bridges`,
`checkpoints`, `distributed`, `families`, `files`, `finetune`, `generate`, `heads`, `layers`,
`leaves`, `params`, `pipeline`, `protocols`, `random`, `taps`, `tasks`, `tokenize`, `train`,
`transforms`, `tree`. Each is imported when first asked for: `import fnlm`, then
`fnlm.gpt2.load("tiny")`.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"

_MODULES = frozenset(  # besides the families
    "bridges checkpoints distributed families files finetune generate heads layers leaves params "
    "pipeline protocols random taps tasks tokenize train transforms tree".split()
)


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
    return importlib.import_module(f"fnlm.{name}")


def __dir__() -> list[str]:
    return sorted(_public() | globals().keys())
