"""What the examples share: how a call is written down, and things to call with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from families import GPT2, make_batch, make_params

from fnlm import (
    gpt2,
    random,
)
from fnlm.files import _torch_pickle
from fnlm.tokenize import bert as pieces
from fnlm.tokenize import gpt as symbols
from fnlm.tokenize import gpt2 as words


class Example(NamedTuple):
    """A call, and how to compare what it returns."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    seen: Callable[[Any], Any]  # what of the result must be equal when called again


def on(
    function: Callable[..., Any],
    /,
    *args: Any,
    seen: Callable[[Any], Any] = lambda x: x,
    **kwargs: Any,
) -> Example:
    return Example(function, args, kwargs, seen)


Make = Callable[[Path], Example]
KEY = random.key(3)
KEYS = random.split(KEY, 3)
X = random.normal(KEY, (3, 5, 12))
LOGITS = random.normal(KEY, (3, 7))
PARAMS = make_params(GPT2)
IDS, MASK = make_batch(GPT2)
LINEAR: dict[str, Any] = {"weight": random.normal(KEY, (12, 4)), "bias": random.normal(KEY, (4,))}
BACK = {"weight": random.normal(KEY, (4, 12)), "bias": random.normal(KEY, (12,))}
SMALL = {"up": LINEAR, "pair": (BACK, {"bias": torch.arange(3.0)})}
TEXTS = ["low lower lowest", "a slow été <|endoftext|>"]
TOKENIZER = words.train(TEXTS, 262)
SYMBOLS = symbols.Tokenizer({"<unk>": 0, "l": 1, "o": 2, "w</w>": 3, "lo": 4}, [("l", "o")])
PIECE_TOKENS = ["[UNK]", "[CLS]", "[SEP]", "low", "slow", "##er", "##est"]
PIECES = pieces.Tokenizer({token: at for at, token in enumerate(PIECE_TOKENS)})
UNTIED = {name: leaf for name, leaf in PARAMS.items() if name != "config"}


def files(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def saved(folder: Path) -> Path:
    """Make a directory with a model and its tokenizer."""
    gpt2.save(make_params(GPT2._replace(config=CLI_CONFIG)), folder / "model")
    TOKENIZER.save(folder / "model")
    return folder / "model"


def stored(folder: Path, name: str) -> Path:
    """Make a file of two tensors, by its name in the format of torch or of NumPy."""
    path = folder / name
    if name.endswith(".npz"):
        np.savez(path, **{name: x.numpy() for name, x in LINEAR.items()})
    else:
        _torch_pickle.write(LINEAR, path)
    return path


CLI_CONFIG = gpt2.Config(vocab_size=262, n_positions=16, n_embd=6, n_layer=1, n_head=2)


def writes(function: Callable[..., Any], *args: Any) -> Make:
    """A call with a path as last argument; what it leaves there must be equal the next time."""
    return lambda folder: on(function, *args, folder / "made", seen=lambda _: files(folder))


def file_there(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name
