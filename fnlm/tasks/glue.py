"""The nine tasks of GLUE: their files as published, their labels, arrays and metrics.

Quotes in the files are literal. CoLA's labelled files have no header, and MRPC's begin with a byte
order mark; test files have no labels. Label lists are in the order of the BERT paper's code.

Source: Wang et al. 2018, and the layout of the published files.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fnlm.tasks import _read
from fnlm.tasks._types import Bools, Ints, Progress, Rows, Source, Tokenizer
from fnlm.tasks.features import convert, encode_pairs
from fnlm.tasks.metrics import accuracy, f1, matthews, most_likely, pearson, spearman


class Task(NamedTuple):
    """The description of a task."""

    name: str
    texts: tuple[str, ...]  # columns of the one or two texts
    label: str  # column of the label
    labels: tuple[str, ...]  # the classes, in order of their numbers; none for a regression
    metrics: tuple[Callable[..., float], ...]  # the chief one first
    columns: tuple[str, ...] = ()  # of labelled files without a header
    skips_short_rows: bool = False  # the published training file has some that are cut off
    hub_texts: tuple[str, ...] = ()  # columns of the texts on the hub, where they differ
    hub_labels: tuple[str, ...] = ()  # the classes in the hub's order, where it differs

    @property
    def is_regression(self) -> bool:
        """Whether labels are numbers."""
        return not self.labels


class Example(NamedTuple):
    """A text or a pair of texts."""

    first: str
    second: str | None
    label: float | None  # number of the class, or the score of a regression; None in test files


class Features(NamedTuple):
    """Rows for a model: N examples of T tokens."""

    ids: Ints  # [N, T]
    token_types: Ints  # [N, T]
    mask: Bools  # [N, T]
    labels: npt.NDArray[Any]  # [N] int32 classes, -1 without one; float32 scores, NaN without one


_SENTENCES = ("sentence1", "sentence2")
_BINARY = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")
_ACCURACY = (accuracy,)
_PARAPHRASE = (f1, accuracy)

TASKS: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (
            Task(
                *("CoLA", ("sentence",), "label", _BINARY, (matthews,)),
                columns=("source", "label", "mark", "sentence"),
            ),
            Task("SST-2", ("sentence",), "label", _BINARY, _ACCURACY),
            Task(
                *("MRPC", ("#1 String", "#2 String"), "Quality", _BINARY, _PARAPHRASE),
                hub_texts=_SENTENCES,
            ),
            Task("STS-B", _SENTENCES, "score", (), (pearson, spearman)),
            Task(
                *("QQP", ("question1", "question2"), "is_duplicate", _BINARY, _PARAPHRASE),
                skips_short_rows=True,
            ),
            Task(
                *("MNLI", _SENTENCES, "gold_label"),
                *(("contradiction", "entailment", "neutral"), _ACCURACY),
                hub_texts=("premise", "hypothesis"),
                hub_labels=("entailment", "neutral", "contradiction"),
            ),
            Task("QNLI", ("question", "sentence"), "label", _ENTAILMENT, _ACCURACY),
            Task("RTE", _SENTENCES, "label", _ENTAILMENT, _ACCURACY),
            Task("WNLI", _SENTENCES, "label", _BINARY, _ACCURACY),
        )
    }
)


def task(name: str) -> Task:
    """Return a task by its name, in any case.

    Raises:
        ValueError: there is no such task.

    >>> task("mrpc").labels
    ('0', '1')
    """
    for candidate in TASKS.values():
        if candidate.name.casefold() == name.casefold():
            return candidate
    raise ValueError(f"task {name!r} is none of GLUE's, which are {', '.join(TASKS)}")


def file_name(name: str, split: str) -> str:
    """Return the published name of a task's file.

    Args:
        name: of a task.
        split: "train", "dev" or "test"; MNLI also has "dev_mismatched" and "test_mismatched".

    >>> file_name("MNLI", "dev"), file_name("RTE", "dev")
    ('dev_matched.tsv', 'dev.tsv')
    """
    is_mnli = task(name).name == "MNLI"
    splits = ("train", "dev", "test") + (("dev_mismatched", "test_mismatched") if is_mnli else ())
    if split not in splits:
        raise ValueError(f"split={split!r} is none of {task(name).name}'s: {', '.join(splits)}")
    return f"{split}_matched.tsv" if is_mnli and split in ("dev", "test") else f"{split}.tsv"


def read(source: Source, name: str, *, labelled: bool = True) -> tuple[Example, ...]:
    r"""Read a file of a task, or its rows; blank lines are no examples.

    Args:
        source: the file, perhaps compressed by gzip; or its rows as dicts, such as a data set of
            the package `datasets`. Their columns have the names of the file or those of the hub;
            a label is a word of the file, or a number in the hub's order.
        name: of the task.
        labelled: False for a test file, whose examples have no labels.

    Raises:
        FileNotFoundError: the file is not there.
        TypeError: a row is no dict.
        ValueError: there are other columns, or a label is wrong; the message names the file, the
            line and the column.

    Example:
        >>> read([{"sentence": "a charming journey", "label": 1, "idx": 0}], "SST-2")
        (Example(first='a charming journey', second=None, label=1),)
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "train.tsv"
        ...     _ = path.write_text("sentence\tlabel\na charming journey \t1\n")
        ...     read(path, "SST-2")
        (Example(first='a charming journey ', second=None, label=1),)
    """
    kind = task(name)
    if isinstance(source, str | Path):
        found = _cells(source, kind, labelled)
    else:
        found = _hub_cells(source, kind, labelled)
    examples = []
    for place, (first, *rest) in found:
        label = _label(kind, rest.pop(), place) if labelled else None
        examples.append(Example(first, rest[0] if rest else None, label))
    if not examples:
        raise ValueError(f"{source} holds no examples; is it the right file?")
    return tuple(examples)


def _cells(path: str | Path, kind: Task, labelled: bool) -> Iterator[tuple[str, list[str]]]:
    """Yield the rows of a file: (location, the texts and, if labelled, the label)."""
    lines = _read.read_lines(path)
    headless = bool(kind.columns) and labelled
    header = kind.columns if headless else tuple(lines[0].split("\t")) if lines else ()
    columns = (*kind.texts, kind.label) if labelled else kind.texts
    for column in columns:
        if column not in header:
            raise ValueError(
                f"{path}, line 1: no column {column!r} among {list(header)}; {kind.name} needs it"
            )
    indices = [header.index(column) for column in columns]
    for number, line in enumerate(lines if headless else lines[1:], start=2 - headless):
        if not line.strip(" "):  # as at the end of some files
            continue
        cells = line.split("\t")
        if len(cells) < len(header) and kind.skips_short_rows:
            continue
        if len(cells) != len(header):
            column = header[min(len(cells), len(header) - 1)]
            raise ValueError(
                f"{path}, line {number}: {len(cells)} columns, not {len(header)}; see to column "
                f"{column!r}"
            )
        yield f"{path}, line {number}", [cells[i] for i in indices]


def _hub_cells(rows: Rows, kind: Task, labelled: bool) -> Iterator[tuple[str, list[str]]]:
    """Yield the same of rows as the hub has them."""
    columns = dict(zip(kind.texts, kind.hub_texts or kind.texts, strict=True))
    columns |= {kind.label: "label"} if labelled else {}
    words = kind.hub_labels or kind.labels
    for place, cells in _read.dict_rows(rows, columns):
        label = cells.get(kind.label, "")
        if label not in kind.labels and label.isdecimal() and int(label) < len(words):
            cells[kind.label] = words[int(label)]
        yield place, [*cells.values()]


def _label(kind: Task, cell: str, place: str) -> float:
    """Return the number of a class, or a score, which is finite."""
    try:
        label = float(cell) if kind.is_regression else kind.labels.index(cell)
    except ValueError:
        label = math.nan
    if not math.isfinite(label):
        expected = "a number" if kind.is_regression else f"one of {', '.join(kind.labels)}"
        raise ValueError(
            f"{place}, column {kind.label!r}: {cell!r} is not {expected}, as {kind.name} has it"
        )
    return label


def features(
    examples: Sequence[Example],
    name: str,
    tokenizer: Tokenizer,
    *,
    max_seq_length: int = 128,
    workers: int = 1,
    progress: Progress | None = None,
    cache: str | Path | None = None,
) -> Features:
    """Lay examples out as [CLS] first [SEP], or [CLS] first [SEP] second [SEP].

    What does not fit is cut off the ends: of a pair, token by token off the longer text.

    Args:
        examples: those of a file.
        name: of their task.
        tokenizer: BERT's.
        max_seq_length: T.
        workers, progress, cache: as for `fnlm.tasks.features.convert`.

    Raises:
        ValueError: `max_seq_length` has no room for a token of each text.

    Example:
        >>> from fnlm.tokenize import bert
        >>> words = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "it", "rains"]
        >>> tokenizer = bert.Tokenizer({word: i for i, word in enumerate(words)})
        >>> rows = features([Example("It rains", "It", 1)], "RTE", tokenizer, max_seq_length=8)
        >>> rows.ids.tolist(), rows.labels
        ([[2, 4, 5, 3, 4, 3, 1, 1]], array([1], dtype=int32))
    """
    numbers = task(name).is_regression
    make = partial(_rows, tokenizer=tokenizer, length=max_seq_length, numbers=numbers)
    return convert(make, examples, Features, workers=workers, progress=progress, cache=cache)


def _rows(
    examples: Sequence[Example], first: int, tokenizer: Tokenizer, length: int, numbers: bool
) -> Features:
    del first  # rows do not depend on their position
    texts = [(example.first, example.second) for example in examples]
    missing, kind = (np.nan, np.float32) if numbers else (-1, np.int32)
    labels = [missing if example.label is None else example.label for example in examples]
    return Features(*encode_pairs(tokenizer, texts, length), np.array(labels, kind))


def predict(name: str, logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the predictions of a model: the class with the highest logit, or the score.

    Args:
        name: of the task.
        logits: [N, classes], or [N, 1] for a regression, whose scores stay NaN where they are.

    Raises:
        ValueError: another shape, or logits of classes that hold NaN or infinity.

    >>> predict("RTE", np.array([[0.1, 0.7], [2.0, -1.0]]))
    array([1, 0])
    """
    kind = task(name)
    width = max(len(kind.labels), 1)
    if logits.ndim != 2 or logits.shape[1] != width:
        raise ValueError(f"logits {logits.shape} must be [N, {width}] for {kind.name}")
    return logits[:, 0] if kind.is_regression else most_likely(logits)


def evaluate(name: str, predictions: npt.ArrayLike, labels: npt.ArrayLike) -> dict[str, float]:
    """Return the metrics of a task, the chief one first.

    Args:
        name: of the task.
        predictions: [N] what `predict` returns.
        labels: [N] those of the features.

    >>> evaluate("MRPC", [1, 0, 1, 1], [1, 0, 0, 1])
    {'f1': 0.8, 'accuracy': 0.75}
    """
    return {metric.__name__: metric(predictions, labels) for metric in task(name).metrics}
