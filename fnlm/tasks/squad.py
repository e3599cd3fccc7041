"""SQuAD, versions 1.1 and 2.0: files to examples, examples to windows of a model's length.

A context longer than the model's input is cut into overlapping windows. A token in several windows
is answered from the one that shows most of its surroundings: its best window. Offsets of tokens are
characters of the context as the file has it, so an answer is an exact slice of it.

Sources: Rajpurkar et al. 2016 and 2018 (the data); `run_squad.py` of the BERT paper's code (the
windows). Deviation: the original divides the context at white space and has to align a predicted
answer with it again; here offsets make this exact, and other spaces need no care.
"""

import re
import warnings
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fnlm.tasks import _read
from fnlm.tasks._types import Bools, Ints, Progress, Rows, Source, Tokenizer
from fnlm.tasks.features import convert, rows, special_tokens

MARKS = 3  # [CLS] question [SEP] window [SEP]


class Answer(NamedTuple):
    """An answer as a person marked it."""

    text: str
    start: int  # its first character in the context; -1 where it does not stand there


class Example(NamedTuple):
    """A question about a context."""

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...]  # any of them is right; none where unknown or impossible
    impossible: bool = False  # version 2.0: the context does not answer the question


class Features(NamedTuple):
    """The windows of examples, in the order of the examples; N windows of T tokens."""

    ids: Ints  # [N, T]
    token_types: Ints  # [N, T]
    mask: Bools  # [N, T]
    starts: Ints  # [N] first token of the first answer; 0, [CLS], where the window lacks the answer
    ends: Ints  # [N] last token of it, or 0
    example: Ints  # [N] index of the example, never falling
    offsets: Ints  # [N, T, 2] characters of the context; -1 where a token is not of the context
    best: Bools  # [N, T] whether this is the token's best window


def read(source: Source, *, training: bool = False, strict: bool = False) -> tuple[Example, ...]:
    """Read the questions of SQuAD, of either version.

    Answers are found in the context near the place that the file gives; those that differ from it
    by white space (as by a no-break space) are taken as the context has them.

    Args:
        source: a JSON file in the layout of SQuAD, perhaps compressed by gzip; or dicts in the
            layout of the hub, a question each, such as a data set of the package `datasets`. There,
            a question whose answers are an empty list has none (version 2.0).
        training: whether each question must either have an answer that stands in the context or be
            marked as impossible. Those that have not are left out, with one warning that counts
            them. Without it, answers may be missing.
        strict: with `training`, such a question is an error.

    Raises:
        FileNotFoundError: the file is not there.
        TypeError: a row is no dict.
        ValueError: it is not JSON or not laid out as SQuAD is; in training, no question has an
            answer, or, if strict, one has not; the message names the place.

    Example:
        >>> read("no/such/file.json")
        Traceback (most recent call last):
        ...
        FileNotFoundError: 'no/such/file.json' is no file; give the path of a data file
    """
    examples: list[Example] = []
    names: set[str] = set()
    left_out: list[str] = []
    found = (
        _questions(_read.read_json(source), f"{source}: ")
        if isinstance(source, str | Path)
        else _hub_questions(source)
    )
    for context, question, place in found:
        name = _id(question, place)
        if name in names and not training:
            raise ValueError(f"{place}: id {name!r} is there twice; predictions go by ids")
        names.add(name)
        impossible = question.get("is_impossible", False) is True
        answers = () if impossible else _answers(question, context, place, training)
        text = _field(question, "question", str, place)
        if training and not impossible:
            reason = _reason(answers, place, name)
            answers = tuple(answer for answer in answers if answer.start >= 0)
            if not answers:
                left_out.append(reason)
                continue
        examples.append(Example(name, text, context, answers, impossible))
    if left_out:
        _report(left_out, strict or not examples)
    if not examples:
        what = f"{source} holds" if isinstance(source, str | Path) else "the rows hold"
        raise ValueError(f"{what} no questions; is it the right file?")
    return tuple(examples)


def _reason(answers: Sequence[Answer], place: str, name: str) -> str:
    """Return the reason why the answers of a question are of no use in training."""
    if answers:
        return f"{place}.answers[0]: {answers[0].text!r} does not stand in the context"
    return f"{place} (id {name!r}) has no answers, and is not marked as impossible"


def _report(left_out: Sequence[str], is_error: bool) -> None:
    """Raise an error, or warn, about the questions that are of no use in training."""
    what = "; ".join(left_out[:3]) + ("; ..." if len(left_out) > 3 else "")
    if is_error:
        raise ValueError(f"{what}: mend or remove what is wrong ({len(left_out)} questions)")
    warnings.warn(f"left {len(left_out)} questions out of training: {what}", stacklevel=3)


def _questions(data: Any, place: str) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield the context, the JSON object and the place of every question."""
    for article, outer in _items(data, "data", place):
        for paragraph, inner in _items(article, "paragraphs", f"{outer}."):
            context = _field(paragraph, "context", str, inner)
            for question, innermost in _items(paragraph, "qas", f"{inner}."):
                yield context, question, innermost


def _hub_questions(rows: Rows) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield the same of rows as the hub has them: answers are a dict of lists."""
    for place, row in _read.numbered(rows):
        name, text, context = (_read.cell(row, place, key) for key in ("id", "question", "context"))
        question: dict[str, Any] = {"id": name, "question": text}
        answers = row.get("answers")
        if answers is not None:
            if not isinstance(answers, Mapping) or not {"text", "answer_start"} <= answers.keys():
                raise ValueError(
                    f"{place}, column 'answers': {answers!r} is no dict of the lists 'text' and "
                    "'answer_start'"
                )
            pairs = zip(answers["text"], answers["answer_start"], strict=True)
            question["answers"] = [{"text": text, "answer_start": int(at)} for text, at in pairs]
        question["is_impossible"] = row.get("is_impossible", question.get("answers") == [])
        yield context, question, place


def _items(node: Any, name: str, place: str) -> Iterator[tuple[Any, str]]:
    for i, item in enumerate(_field(node, name, list, place.rstrip(": ."))):
        yield item, f"{place}{name}[{i}]"


def _field(node: Any, name: str, kind: type, place: str) -> Any:
    value = node.get(name) if isinstance(node, dict) else None
    if not isinstance(value, kind):
        what = {str: "string", list: "list", int: "whole number"}[kind]
        raise ValueError(
            f"{place} has no {what} {name!r}; SQuAD nests data, paragraphs, qas, answers"
        )
    return value


def _id(question: Any, place: str) -> str:
    """Return the id of a question as a string; annotation tools write whole numbers, too."""
    question_id = question.get("id") if isinstance(question, dict) else None
    if isinstance(question_id, bool) or not isinstance(question_id, str | int):
        raise ValueError(f"{place} has no 'id', a string or a whole number; predictions go by it")
    return str(question_id)


def _answers(
    question: dict[str, Any], context: str, place: str, training: bool
) -> tuple[Answer, ...]:
    """Return the answers of a question, each as the context has it if it stands there."""
    answers = []
    for answer, inner in _items(question, "answers", f"{place}.") if "answers" in question else ():
        text = _field(answer, "text", str, inner)
        start = answer.get("answer_start")
        if training:
            start = _field(answer, "answer_start", int, inner)
        answers.append(
            _nearest(context, text, start) if isinstance(start, int) else Answer(text, -1)
        )
    return tuple(answers)


def _nearest(context: str, text: str, position: int) -> Answer:
    """Find the occurrence of a text in the context nearest to a position; -1 if there is none.

    Some answers of the training data are a few characters off the position they give, some have
    other white space than the context.
    """
    if not text.strip():
        return Answer(text, -1)
    if context.startswith(text, max(position, 0)):
        return Answer(text, max(position, 0))
    exact = [m.start() for m in re.finditer(f"(?={re.escape(text)})", context)]
    if exact:
        return Answer(text, min(exact, key=lambda start: (abs(start - position), start > position)))
    pattern = r"\s+".join(map(re.escape, text.split()))
    spans = [m.span() for m in re.finditer(pattern, context)]
    if not spans:
        return Answer(text, -1)
    start, end = min(spans, key=lambda span: abs(span[0] - position))
    return Answer(context[start:end], start)


def features(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    *,
    max_seq_length: int = 384,
    doc_stride: int = 128,
    max_query_length: int = 64,
    workers: int = 1,
    progress: Progress | None = None,
    cache: str | Path | None = None,
) -> Features:
    """Cut the examples into windows and lay them out as [CLS] question [SEP] window [SEP].

    The first answer of an example, as far as a window holds all of it, gives `starts` and `ends`.

    Args:
        examples: those of a file.
        tokenizer: BERT's.
        max_seq_length: T.
        doc_stride: tokens from the start of a window to that of the next; a larger one than the
            window has room for counts as that room, so no token is left out.
        max_query_length: tokens of the question that are kept.
        workers, progress, cache: as for `fnlm.tasks.features.convert`.

    Raises:
        ValueError: a length leaves no room for the context, or is below 1.

    Example:
        >>> from fnlm.tokenize import bert
        >>> words = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "who", "?", "ann", "met", "bob"]
        >>> tokenizer = bert.Tokenizer({word: i for i, word in enumerate(words)})
        >>> example = Example("7", "Who?", "Ann met Bob.", (Answer("Bob", 8),))
        >>> windows = features([example], tokenizer, max_seq_length=10, max_query_length=4)
        >>> windows.ids[0].tolist(), windows.starts.tolist(), windows.offsets[0, 6].tolist()
        ([2, 4, 5, 3, 6, 7, 8, 0, 3, 1], [6], [8, 11])
    """
    if max_seq_length - max_query_length - MARKS < 1 or max_query_length < 0:
        raise ValueError(
            f"max_seq_length={max_seq_length} leaves no room for the context beside "
            f"max_query_length={max_query_length} and {MARKS} special tokens; make it longer"
        )
    if doc_stride < 1:
        raise ValueError(f"doc_stride={doc_stride} must be at least 1 token")
    make = partial(
        _windows, tokenizer=tokenizer, lengths=(max_seq_length, doc_stride, max_query_length)
    )
    return convert(make, examples, Features, workers=workers, progress=progress, cache=cache)


class _Context(NamedTuple):
    ids: list[int]
    starts: list[int]  # of each token, in characters
    ends: list[int]
    offsets: Ints  # [tokens, 2]


def _windows(
    examples: Sequence[Example], first: int, tokenizer: Tokenizer, lengths: tuple[int, int, int]
) -> Features:
    """Return the windows of some examples, the first of which has the index `first`."""
    length, stride, query_length = lengths
    special = special_tokens(tokenizer)
    pairs: list[tuple[list[int], list[int]]] = []
    numbers: list[tuple[int, int, int]] = []  # start, end, example
    offsets: list[Ints] = []
    best: list[Bools] = []
    text, context = None, _Context([], [], [], np.zeros((0, 2), np.int32))
    for index, example in enumerate(examples, start=first):
        if example.context != text:  # questions about one context follow each other
            text, context = example.context, _encode(example.context, tokenizer)
        query = tokenizer.encode(example.question)[:query_length]
        before = len(query) + 2
        spans = list(window_spans(len(context.ids), length - before - 1, stride))
        answer = _token_span(example, context)
        for (begin, end), is_best in zip(spans, best_windows(spans), strict=True):
            pairs.append((query, context.ids[begin:end]))
            inside = answer is not None and begin <= answer[0] and answer[1] < end
            shift = before - begin
            start, last = (answer[0] + shift, answer[1] + shift) if answer and inside else (0, 0)
            numbers.append((start, last, index))
            offsets.append(_padded(context.offsets[begin:end], before, length, -1))
            best.append(_padded(is_best, before, length, False))
    ids, token_types, mask = rows(pairs, special, length)
    starts, ends, indices = np.array(numbers, np.int32).reshape(-1, 3).T
    return Features(
        *(ids, token_types, mask, starts, ends, indices),
        np.array(offsets, np.int32).reshape(-1, length, 2),
        np.array(best, np.bool_).reshape(-1, length),
    )


def _padded(values: Any, before: int, length: int, fill: int) -> Any:
    """Return a row of `length` with values from index `before` on, and `fill` elsewhere."""
    row = np.full((length, *values.shape[1:]), fill, values.dtype)
    row[before : before + len(values)] = values
    return row


def _encode(text: str, tokenizer: Tokenizer) -> _Context:
    ids, offsets = tokenizer.encode_with_offsets(text)
    pairs = np.array(offsets, np.int32).reshape(-1, 2)
    return _Context(ids, pairs[:, 0].tolist(), pairs[:, 1].tolist(), pairs)


def _token_span(example: Example, context: _Context) -> tuple[int, int] | None:
    """Return the first and the last token that share a character with the first answer."""
    if not example.answers or example.answers[0].start < 0:
        return None
    text, start = example.answers[0]
    first = bisect_right(context.ends, start)
    last = bisect_left(context.starts, start + len(text)) - 1
    return (first, last) if first <= last else None


def window_spans(tokens: int, room: int, stride: int) -> Iterator[tuple[int, int]]:
    """Yield (begin, end) of each window over a context.

    Args:
        tokens: length of the context; without any there is one empty window.
        room: tokens of the context in a window, at least 1.
        stride: tokens from the begin of a window to that of the next.

    Example:
        >>> list(window_spans(10, 6, 3))
        [(0, 6), (3, 9), (6, 10)]
    """
    begin = 0
    while begin + room < tokens:
        yield begin, begin + room
        begin += min(room, stride)
    yield begin, tokens


def best_windows(spans: Sequence[tuple[int, int]]) -> list[Bools]:
    """Return for each window which of its tokens have it as their best window.

    The score of a token in a window is the number of tokens on its shorter side within the window,
    plus a hundredth of the window's length; of equal scores the first window's is best.

    Args:
        spans: (begin, end) of each window over one context.

    Returns:
        for each window [end - begin] bool; every token is True in one window.

    Example:
        >>> [best.astype(int).tolist() for best in best_windows([(0, 6), (3, 9), (6, 10)])]
        [[1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 0], [0, 0, 1, 1]]
    """
    if len(spans) == 1:
        return [np.ones(spans[0][1] - spans[0][0], np.bool_)]
    scores = np.full((len(spans), max(end for _, end in spans)), -1)
    for window, (begin, end) in enumerate(spans):
        left = np.arange(end - begin)
        scores[window, begin:end] = 100 * np.minimum(left, left[::-1]) + end - begin
    winner = scores.argmax(axis=0)
    return [winner[begin:end] == window for window, (begin, end) in enumerate(spans)]
