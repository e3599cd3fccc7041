"""Rows of masked tokens and next sentences: on disk, and the loss of a model on them.

A directory of rows is what `fnlm lm-rows` writes: epoch_0.npz and so on, rows.json, which says what
they were made of, and the tokenizer.
"""

import json
from collections.abc import Sequence
from math import ceil
from pathlib import Path

import numpy as np
from torch import Tensor

from fnlm import bert, finetune, heads
from fnlm.layers import linear
from fnlm.tasks import corpus
from fnlm.tasks.features import digest
from fnlm.tokenize import bert as tokenize
from fnlm.train import losses

HEADS = ("masked_lm", "next_sentence_prediction")


def read(folder: Path, epoch: int) -> corpus.Features:
    """Read the rows of an epoch.

    Raises:
        FileNotFoundError: there are none.
    """
    path = folder / f"epoch_{epoch}.npz"
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no {path.name}; `fnlm lm-rows` makes it")
    with np.load(path, allow_pickle=False) as arrays:
        return corpus.Features(*(arrays[name] for name in corpus.Features._fields))


def check_vocabulary(folder: Path, tokenizer: tokenize.Tokenizer) -> None:
    """Raise ValueError unless the rows of a directory have the vocabulary of a tokenizer."""
    path = folder / "rows.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there; `fnlm lm-rows` makes a directory of rows")
    facts = json.loads(path.read_text(encoding="utf-8"))
    if facts["vocabulary"] != digest(tokenizer.vocab):
        raise ValueError(f"{folder} holds rows of another vocabulary than that of the model")


def sizes(folder: Path) -> tuple[int, ...]:
    """Return the number of rows of each epoch of a directory.

    Raises:
        FileNotFoundError: there are none.
    """
    found: list[int] = []
    while (path := folder / f"epoch_{len(found)}.npz").exists():
        with np.load(path, allow_pickle=False) as arrays:
            found.append(len(arrays["next_labels"]))
    if not found:
        raise FileNotFoundError(f"{folder} holds no epoch_0.npz; `fnlm lm-rows` makes it")
    return tuple(found)


def epochs(folder: Path, count: float) -> finetune.Epochs:
    """Return so many epochs of a directory; where there are fewer, they begin again."""
    known = sizes(folder)
    wanted = [known[epoch % len(known)] for epoch in range(ceil(count))]
    if rest := count % 1:
        wanted[-1] = round(wanted[-1] * rest)
    return _epochs(folder, wanted, len(known))


def steps(folder: Path, count: int, batch_size: int) -> finetune.Epochs:
    """Return the epochs of so many steps; where there are fewer, they begin again."""
    known, left = sizes(folder), count * batch_size
    wanted: list[int] = []
    while left > 0:
        wanted.append(min(left, known[len(wanted) % len(known)]))
        left -= wanted[-1]
    return _epochs(folder, wanted, len(known))


def _epochs(folder: Path, wanted: Sequence[int], files: int) -> finetune.Epochs:
    return finetune.Epochs(tuple(wanted), lambda epoch: read(folder, epoch % files))


def logits(
    params: bert.Params, asked: Tensor, *inputs: Tensor, key: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the logits of masked tokens, and of next sentences.

    They are those of `bert.pretraining`, without the logits of tokens that are not asked for: of
    these there are six times as many.

    Args:
        params: with the two heads.
        asked: bool [B, T], True at M tokens.
        inputs: ids [B, T], token types and mask.
        key: of dropout.

    Returns:
        [M, V]; [B, 2].
    """
    following = heads.head_params(params, HEADS[1], bert.Config)
    hidden, pooled = bert.apply(params, *inputs, key=key)
    words = heads.masked_lm_logits(params, hidden[asked])
    return words, linear(pooled, **following)


def loss(params: bert.Params, *batch: Tensor, key: Tensor | None = None) -> Tensor:
    """Return the mean loss of a batch: ids, token types, mask, words, whether texts follow."""
    *inputs, words, follows = batch
    asked = words != losses.IGNORE
    return losses.pretraining(*logits(params, asked, *inputs, key=key), words[asked], follows)
