"""ROCStories: a story of four sentences, and two endings, of which one makes sense.

Source: Mostafazadeh et al. 2016 (the Story Cloze Test); Radford et al. 2018 and
`run_openai_gpt.py` of pytorch-pretrained-bert 0.6.2, whose rows these are. Deviation: there, the
token to be predicted is the one after next, as program and model both move the targets by one.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fnlm.tasks import _read
from fnlm.tasks._types import Bools, Ints, Progress, Source, Tokenizer
from fnlm.tasks.features import convert

MARKS = ("_start_", "_delimiter_", "_classify_")  # special tokens that give a row its form
ANSWER = "AnswerRightEnding"
COLUMNS = (
    *(f"InputSentence{number}" for number in (1, 2, 3, 4)),
    *(f"RandomFifthSentenceQuiz{number}" for number in (1, 2)),
)
# The names of the columns on the hub.
_HUB = {
    **{f"InputSentence{number}": f"input_sentence_{number}" for number in (1, 2, 3, 4)},
    **{f"RandomFifthSentenceQuiz{number}": f"sentence_quiz{number}" for number in (1, 2)},
    ANSWER: "answer_right_ending",
}


class Example(NamedTuple):
    """A story, and two ways in which it may end."""

    story: str
    endings: tuple[str, str]
    label: int | None  # index of the right ending; None in files without labels


class Features(NamedTuple):
    """Rows for a model: N stories of 2 endings, T tokens each."""

    ids: Ints  # [N, 2, T]
    targets: Ints  # [N, 2, T] the token after each, -1 after the last and on padding
    mask: Bools  # [N, 2, T] True on tokens; the last of them stands for the row
    labels: Ints  # [N] index of the right ending, -1 without one


def read(source: Source, *, labelled: bool = True) -> tuple[Example, ...]:
    """Read a file of stories, csv with the columns of the published files; or its rows.

    Args:
        source: the file, perhaps compressed by gzip; or its rows as dicts, such as a data set of
            the package `datasets`, with these columns or those of `story_cloze` on the hub.
        labelled: whether each row must have the right ending; without it that column is ignored.

    Raises:
        FileNotFoundError: the file is not there.
        TypeError: a row is no dict.
        ValueError: there are other columns, or an answer is wrong; the message names the file, the
            line and the column.

    Example:
        >>> read("no/such/file.csv")
        Traceback (most recent call last):
        ...
        FileNotFoundError: 'no/such/file.csv' is no file; give the path of a data file
    """
    examples = []
    columns = {name: hub for name, hub in _HUB.items() if labelled or name != ANSWER}
    for place, cells in _read.read_table(source, columns):
        label = None
        if labelled:
            if cells[ANSWER] not in ("1", "2"):
                raise ValueError(f"{place}, column {ANSWER!r}: {cells[ANSWER]!r} is not 1 or 2")
            label = int(cells[ANSWER]) - 1
        *story, first, second = (cells[name] for name in COLUMNS)
        examples.append(Example(" ".join(story), (first, second), label))
    return tuple(examples)


def features(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    *,
    max_seq_length: int = 512,
    workers: int = 1,
    progress: Progress | None = None,
    cache: str | Path | None = None,
) -> Features:
    """Lay each ending out as _start_ story _delimiter_ ending _classify_.

    Of each text only the first T / 2 - 2 tokens are kept, so that a row always fits.

    Args:
        examples: those of a file.
        tokenizer: GPT's, extended by `MARKS`.
        max_seq_length: T.
        workers, progress, cache: as for `fnlm.tasks.features.convert`.

    Raises:
        ValueError: `max_seq_length` has no room for a token of each text, or the tokenizer lacks
            one of `MARKS`.

    Example:
        >>> from fnlm.tokenize import gpt
        >>> vocab = {"<unk>": 0, "a</w>": 1, "b</w>": 2}
        >>> tokenizer = gpt.Tokenizer(vocab, [], added=MARKS)
        >>> rows = features([Example("b", ("a b", "b"), 1)], tokenizer, max_seq_length=8)
        >>> rows.ids.tolist()
        [[[3, 2, 4, 1, 2, 5, 0, 0], [3, 2, 4, 2, 5, 0, 0, 0]]]
        >>> rows.targets[0, 1].tolist(), rows.labels.tolist()
        ([2, 4, 2, 5, -1, -1, -1, -1], [1])
    """
    if max_seq_length < 6:
        raise ValueError(
            f"max_seq_length={max_seq_length} must be at least 6, for 3 special tokens and a token "
            "of each text"
        )
    make = partial(_rows, tokenizer=tokenizer, length=max_seq_length)
    return convert(make, examples, Features, workers=workers, progress=progress, cache=cache)


def _rows(examples: Sequence[Example], first: int, tokenizer: Tokenizer, length: int) -> Features:
    del first  # rows do not depend on their position
    start, delimiter, classify = tokenizer.tokens_to_ids(MARKS)
    most = length // 2 - 2
    ids = np.zeros((len(examples), 2, length), np.int32)
    ends = np.zeros((len(examples), 2, 1), np.int32)
    for row, example in enumerate(examples):
        story = tokenizer.encode(example.story)[:most]
        for choice, ending in enumerate(example.endings):
            line = (start, *story, delimiter, *tokenizer.encode(ending)[:most], classify)
            ids[row, choice, : len(line)] = line
            ends[row, choice] = len(line)
    positions = np.arange(length)
    targets = np.where(positions < ends - 1, np.roll(ids, -1, axis=2), -1).astype(np.int32)
    labels = [-1 if example.label is None else example.label for example in examples]
    return Features(ids, targets, positions < ends, np.array(labels, np.int32))
