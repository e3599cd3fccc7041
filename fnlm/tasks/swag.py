"""SWAG: four endings, of which one follows from what was said before.

Source: Zellers et al. 2018, and the layout of the published files: csv with a header, quoted.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fnlm.tasks import _read
from fnlm.tasks._types import Bools, Ints, Progress, Source, Tokenizer
from fnlm.tasks.features import convert, encode_pairs

ENDINGS = ("ending0", "ending1", "ending2", "ending3")


class Example(NamedTuple):
    """A sentence, the beginning of the next one, and four ways in which that may end."""

    context: str
    start: str
    endings: tuple[str, str, str, str]
    label: int | None  # index of the right ending; None in files without labels


class Features(NamedTuple):
    """Rows for a model: N examples of 4 choices of T tokens."""

    ids: Ints  # [N, 4, T]
    token_types: Ints  # [N, 4, T]
    mask: Bools  # [N, 4, T]
    labels: Ints  # [N] index of the right choice, -1 without one


def read(source: Source, *, labelled: bool = True) -> tuple[Example, ...]:
    """Read a file of SWAG, or its rows.

    Args:
        source: the file, perhaps compressed by gzip; or its rows as dicts, such as a data set of
            the package `datasets`.
        labelled: whether each row must have a label; without it a column "label" is ignored.

    Raises:
        FileNotFoundError: the file is not there.
        TypeError: a row is no dict.
        ValueError: there are other columns, or a label is wrong; the message names the file, the
            line and the column.

    Example:
        >>> read("no/such/file.csv")
        Traceback (most recent call last):
        ...
        FileNotFoundError: 'no/such/file.csv' is no file; give the path of a data file
    """
    examples = []
    columns = ("sent1", "sent2", *ENDINGS, *(("label",) if labelled else ()))
    for place, cells in _read.read_table(source, {name: name for name in columns}):
        label = None
        if labelled:
            if cells["label"] not in ("0", "1", "2", "3"):
                raise ValueError(
                    f"{place}, column 'label': {cells['label']!r} is not one of 0, 1, 2, 3"
                )
            label = int(cells["label"])
        a, b, c, d = (cells[name] for name in ENDINGS)
        examples.append(Example(cells["sent1"], cells["sent2"], (a, b, c, d), label))
    return tuple(examples)


def features(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    *,
    max_seq_length: int = 128,
    workers: int = 1,
    progress: Progress | None = None,
    cache: str | Path | None = None,
) -> Features:
    """Lay each choice out as [CLS] context [SEP] start ending [SEP].

    Where this does not fit, the longer text of the two loses tokens off its end, one by one.

    Args:
        examples: those of a file.
        tokenizer: BERT's.
        max_seq_length: T.
        workers, progress, cache: as for `fnlm.tasks.features.convert`.

    Raises:
        ValueError: `max_seq_length` has no room for a token of each text.

    Example:
        >>> from fnlm.tokenize import bert
        >>> words = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "he", "sits", "runs"]
        >>> tokenizer = bert.Tokenizer({word: i for i, word in enumerate(words)})
        >>> example = Example("He sits", "He", ("runs", "sits", "he", "?"), 0)
        >>> features([example], tokenizer, max_seq_length=7).ids[0, :2].tolist()
        [[2, 4, 5, 3, 4, 6, 3], [2, 4, 5, 3, 4, 5, 3]]
    """
    make = partial(_rows, tokenizer=tokenizer, length=max_seq_length)
    return convert(make, examples, Features, workers=workers, progress=progress, cache=cache)


def _rows(examples: Sequence[Example], first: int, tokenizer: Tokenizer, length: int) -> Features:
    del first  # rows do not depend on their position
    texts = [
        (example.context, f"{example.start} {ending}")
        for example in examples
        for ending in example.endings
    ]
    shape = (len(examples), len(ENDINGS), length)
    ids, token_types, mask = encode_pairs(tokenizer, texts, length)
    labels = [-1 if example.label is None else example.label for example in examples]
    return Features(
        ids.reshape(shape),
        token_types.reshape(shape),
        mask.reshape(shape),
        np.array(labels, np.int32),
    )
