"""From a model's start and end logits to answers: slices of the context, the best ones first.

Source: `run_squad.py` of the BERT paper's code. Deviations: the n best spans are the n best of all
that are allowed, where the original pairs the n best starts with the n best ends; a question
without any allowed span is answered by an empty text, not by the word "empty".
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from fnlm.tasks.squad import Example, Features

Logits = npt.NDArray[np.floating[Any]]
_Doubles = npt.NDArray[np.float64]


class Candidate(NamedTuple):
    """A possible answer."""

    text: str  # empty: there is no answer
    probability: float  # among the candidates of this question
    start_logit: float
    end_logit: float


class Answers(NamedTuple):
    """The answers to questions, by their ids; what the evaluation scripts read as JSON."""

    texts: dict[str, str]
    n_best: dict[str, list[Candidate]]  # the most likely first
    null_odds: dict[str, float]  # score of "no answer" less that of the best span; inf without one


class _Span(NamedTuple):
    score: float
    window: int
    start: int
    end: int


def recover(
    examples: Sequence[Example],
    features: Features,
    start_logits: Logits,
    end_logits: Logits,
    *,
    n_best: int = 20,
    max_answer_length: int = 30,
    null_threshold: float | None = None,
) -> Answers:
    """Return the answers of a model, from its start and end logits.

    The score of a span is start_logits[start] + end_logits[end]. Allowed is a span of the context
    whose start is in its best window; the score of "no answer" is that of [CLS], in the window
    where it is least.

    Args:
        examples: the questions.
        features: their windows, as `squad.features` made them from these examples.
        start_logits, end_logits: [N, T], any floating-point type.
        n_best: candidates to keep for a question.
        max_answer_length: tokens of the longest allowed span.
        null_threshold: version 2.0: the answer is empty where its null odds are above this (0.0
            trusts the model; `squad_metrics.best_thresholds` finds better ones). None: version 1.1,
            where every question has an answer.

    Raises:
        ValueError: the shapes differ, a logit is NaN or infinity, or the windows are of others.

    Example:
        >>> from fnlm.tasks import squad
        >>> from fnlm.tokenize import bert
        >>> words = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "who", "ann", "met", "bob"]
        >>> tokenizer = bert.Tokenizer({word: i for i, word in enumerate(words)})
        >>> example = Example("7", "Who?", "Ann met Bob.", ())
        >>> windows = squad.features([example], tokenizer, max_seq_length=10, max_query_length=4)
        >>> start, end = np.eye(10)[[4]], np.eye(10)[[6]]  # the highest logit is at 4, and at 6
        >>> recover([example], windows, start, end).texts
        {'7': 'Ann met Bob'}
    """
    if null_threshold is not None and math.isnan(null_threshold):
        raise ValueError("null_threshold must be a number or None, got nan")
    _check(examples, features, start_logits, end_logits, n_best, max_answer_length)
    answers = Answers({}, {}, {})
    starts, ends = start_logits.astype(np.float64), end_logits.astype(np.float64)
    borders = np.searchsorted(features.example, np.arange(len(examples) + 1))
    for example, windows in zip(examples, map(range, borders, borders[1:]), strict=True):
        null = min(windows, key=lambda window: starts[window, 0] + ends[window, 0])
        none = Candidate("", 0.0, float(starts[null, 0]), float(ends[null, 0]))
        spans: list[_Span] = []
        for window in windows:
            spans += _best_spans(features, window, starts, ends, n_best, max_answer_length)
        spans.sort(key=lambda span: -span.score)
        candidates = list(_texts(example, features, spans, n_best, starts, ends))
        odds = _score(none) - _score(candidates[0]) if candidates else float("inf")
        answers.null_odds[example.id] = odds
        answered = candidates and (null_threshold is None or odds <= null_threshold)
        answers.texts[example.id] = candidates[0].text if answered else ""
        if null_threshold is not None or not candidates:
            candidates.append(none)
        answers.n_best[example.id] = _with_probabilities(candidates)
    return answers


def _check(
    examples: Sequence[Example], features: Features, start: Logits, end: Logits, *counts: int
) -> None:
    shape = features.ids.shape
    if start.shape != shape or end.shape != shape:
        raise ValueError(
            f"start_logits {start.shape} and end_logits {end.shape} must have the shape "
            f"{shape} of the windows"
        )
    if not ((start < np.inf).all() and (end < np.inf).all()):  # NaN is not below infinity, either
        raise ValueError("the logits hold NaN or infinity; the model that gave them has diverged")
    if np.unique(features.example).tolist() != list(range(len(examples))):
        raise ValueError(
            f"features must hold the windows of the {len(examples)} examples given and of no other"
        )
    if min(counts) < 1:
        raise ValueError(f"n_best and max_answer_length are {counts}; both must be at least 1")


def _best_spans(
    features: Features, window: int, starts: _Doubles, ends: _Doubles, n: int, longest: int
) -> list[_Span]:
    """Return the n best spans of a window, the best first; of equal ones the earliest first."""
    inside = features.offsets[window, :, 0] >= 0
    longest = min(longest, len(inside))
    padded_ends = np.full(len(inside) + longest - 1, -np.inf)
    padded_ends[: len(inside)][inside] = ends[window, inside]
    ahead = sliding_window_view(padded_ends, longest)  # [T, longest] the ends that a start may have
    begins = np.where(features.best[window], starts[window], -np.inf)
    # The n starts with the highest spans have among their spans the n highest of all.
    chosen = np.sort(_highest(begins + ahead.max(axis=1), n))
    scores = (begins[chosen, None] + ahead[chosen]).ravel()
    spans = []
    for i in _highest(scores, n).tolist():
        start = int(chosen[i // longest])
        spans.append(_Span(float(scores[i]), window, start, start + i % longest))
    return spans


def _highest(scores: _Doubles, n: int) -> npt.NDArray[np.intp]:
    """Return the indices of the n highest finite scores in descending order, ties in order."""
    least = np.partition(scores, -n)[-n] if scores.size > n else -np.inf
    indices = np.flatnonzero((scores >= least) & (scores > -np.inf))
    return indices[np.argsort(-scores[indices], kind="stable")][:n]


def _texts(
    example: Example,
    features: Features,
    spans: Sequence[_Span],
    n: int,
    starts: _Doubles,
    ends: _Doubles,
) -> Iterator[Candidate]:
    """Yield the candidates of the best spans that differ in their text, at most n."""
    seen: set[str] = set()
    for _, window, start, end in spans:
        begin, stop = features.offsets[window, start, 0], features.offsets[window, end, 1]
        text = example.context[begin:stop]
        if text not in seen and len(seen) < n:
            seen.add(text)
            yield Candidate(text, 0.0, float(starts[window, start]), float(ends[window, end]))


def _score(candidate: Candidate) -> float:
    return candidate.start_logit + candidate.end_logit


def _with_probabilities(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return candidates, the most likely first, with the softmax of their scores."""
    scores = np.array([_score(candidate) for candidate in candidates])
    weights = np.exp(scores - scores.max())
    probabilities = (weights / weights.sum()).tolist()
    candidates = [c._replace(probability=p) for c, p in zip(candidates, probabilities, strict=True)]
    return sorted(candidates, key=lambda candidate: -candidate.probability)
