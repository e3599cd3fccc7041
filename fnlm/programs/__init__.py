"""The programs behind `fnlm glue`, `fnlm squad` and the other commands that train or evaluate.

A program is a module with `Flags`, a dataclass whose fields are the flags of its command, and
`main`, which does the work. It is imported when its command runs.
"""

import importlib
from types import ModuleType

__all__ = ["PROGRAMS", "find"]

# Command -> what it does.
PROGRAMS = {
    "glue": "fine-tune BERT on a task of GLUE, and evaluate it",
    "squad": "fine-tune BERT on SQuAD, answer questions, and evaluate the answers",
    "swag": "fine-tune BERT on SWAG, and evaluate it",
    "extract-features": "write the hidden states of BERT for every token of a file's lines",
    "lm": "fine-tune BERT as a language model on a text of your own",
    "lm-rows": "make rows of masked tokens and next sentences from a text",
    "pretrain-bert": "pretrain BERT on such rows, from scratch or from a checkpoint",
    "pretrain": "pretrain a GPT-2 of any size on text files",
    "rocstories": "fine-tune GPT on ROCStories, and evaluate it",
    "wikitext103": "evaluate Transformer-XL with its memory on a text, or train a small one",
}


def find(command: str) -> ModuleType:
    """Return the module of a command.

    >>> find("glue").Flags.__name__
    'Flags'
    """
    return importlib.import_module(f"{__name__}.{command.replace('-', '_')}")
