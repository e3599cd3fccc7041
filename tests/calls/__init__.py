"""The table of calls: examples of what docstrings don't call, or call with less.

A public function that its own docstring calls needs no row, nor does one that all families have.
"""

from calls.common import Example, Make, files
from calls.curvature import CURVATURE
from calls.decoding import DECODING
from calls.families import FAMILY_ROWS
from calls.layers import HEADS, LAYERS, XL_LAYERS
from calls.leaves import ABSTRACT, LEAVES, PEFT, TYPED
from calls.parameters import FILES, PARAMETERS, TREE
from calls.ranks import RANKS
from calls.text import LANGUAGE, TASKS, TOKENIZING
from calls.tools import BRIDGES, CHECKPOINTS, PROGRAM, REGISTER, WRITER
from calls.training import FINETUNING, TAPS, TRAINING, TRANSFORMS

__all__ = ["ABSTRACT", "TABLE", "Example", "Make", "files"]

TABLE: dict[str, Make] = {f"fnlm.{name}": make for name, make in FAMILY_ROWS.items()} | {
    f"fnlm.{part}.{name}": make
    for part, rows in {
        "tree": TREE | TYPED,
        "files": FILES,
        "params": PARAMETERS | PEFT,
        "leaves": LEAVES,
        "layers": LAYERS | XL_LAYERS,
        "heads": HEADS,
        "families": REGISTER,
        "checkpoints": CHECKPOINTS,
        "pipeline": WRITER,
        "bridges.lm_eval": BRIDGES,
        "generate": DECODING,
        "train": TRAINING,
        "taps": TAPS,
        "transforms": TRANSFORMS | CURVATURE,
        "distributed": RANKS,
        "finetune": FINETUNING,
        "tokenize": TOKENIZING,
        "tasks": TASKS,
        "tasks.language_model": LANGUAGE,
        "cli": PROGRAM,
    }.items()
    for name, make in rows.items()
}
