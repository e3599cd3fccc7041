"""The official SQuAD metrics, versions 1.1 and 2.0: exact match (EM) and F1, in percent.

Two texts match exactly if they are equal without case, punctuation, articles and extra spaces. F1
is that of the words the two have in common. The best of a question's right answers counts.

Sources: the definitions of evaluate-v1.1.py and evaluate-v2.0.py, published with the data. Sums are
taken in the order of the file, as there, so figures agree to the last bit.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from fnlm.tasks.squad import Example

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


class Score(NamedTuple):
    """The score of one answer: both from 0 to 1."""

    exact: float
    f1: float


def normalize(text: str) -> str:
    """Return a text in lower case, without punctuation, articles and extra spaces.

    Example:
        >>> normalize("  The Cat's hat, and a mat ")
        'cats hat and mat'
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> float:
    """Return 1.0 if two texts are equal when normalized, else 0.0.

    >>> exact_match("The cat.", "cat")
    1.0
    """
    return float(normalize(prediction) == normalize(answer))


def f1(prediction: str, answer: str) -> float:
    """Return F1 of the normalized words of two texts: 2 P R / (P + R), 0 with none in common.

    With c words in common, counted as often as both have them, precision P is c over the words of
    the prediction and recall R is c over those of the answer.

    >>> f1("the black cat", "a black and white cat")
    0.6666666666666666
    """
    predicted, expected = normalize(prediction).split(), normalize(answer).split()
    common = sum((Counter(predicted) & Counter(expected)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted), common / len(expected)
    return 2 * precision * recall / (precision + recall)


def evaluate_v1(examples: Sequence[Example], predictions: Mapping[str, str]) -> dict[str, float]:
    """Return the metrics of version 1.1: "exact_match" and "f1" over all questions.

    Args:
        examples: questions with their right answers.
        predictions: id -> text; a question without a prediction scores 0.

    Raises:
        TypeError: a prediction is no text.
        ValueError: a question has no right answer, or there are no questions.

    >>> from fnlm.tasks.squad import Answer
    >>> question = Example("7", "Who?", "It was Ann.", (Answer("Ann", 7),))
    >>> evaluate_v1([question], {"7": "ann"})
    {'exact_match': 100.0, 'f1': 100.0}
    """
    _check(examples, predictions)
    exact = total = 0.0
    for example in examples:
        answers = [answer.text for answer in example.answers]
        if not answers:
            raise ValueError(
                f"question {example.id!r} has no answer to compare with; version 1.1 needs one "
                "for each, evaluate_v2 does not"
            )
        if example.id in predictions:
            best = _best(predictions[example.id], answers)
            exact += best.exact
            total += best.f1
    return {"exact_match": 100.0 * exact / len(examples), "f1": 100.0 * total / len(examples)}


def evaluate_v2(
    examples: Sequence[Example],
    predictions: Mapping[str, str],
    null_odds: Mapping[str, float] | None = None,
    *,
    threshold: float = 1.0,
) -> dict[str, float]:
    """Return the metrics of version 2.0.

    Args:
        examples: questions with their right answers; one without is unanswerable.
        predictions: id -> text, empty for "no answer"; questions without a prediction are left out
            and so lessen "total".
        null_odds: id -> how much speaks for "no answer", in any unit; None leaves `predictions`
            as they are and finds no thresholds.
        threshold: with `null_odds`, an answer above this counts as "no answer".

    Returns:
        "exact", "f1", "total"; the same of the questions that have an answer, as "HasAns_exact" and
        so on, and of those that do not, "NoAns_exact" and so on, where there are such. With
        `null_odds`, also those of `best_thresholds`.

    Raises:
        TypeError: a prediction is no text.
        ValueError: no question has a prediction, or one with a prediction has no odds, or these or
            the threshold are NaN.

    >>> from fnlm.tasks.squad import Answer
    >>> questions = [Example("7", "Who?", "It was Ann.", (Answer("Ann", 7),))]
    >>> questions.append(Example("8", "When?", "It was Ann.", (), impossible=True))
    >>> evaluate_v2(questions, {"7": "Ann", "8": "Ann"})["NoAns_exact"]
    0.0
    """
    if math.isnan(threshold):
        raise ValueError("threshold must be a number, got nan")
    scores = _scores(examples, predictions)
    answerable = {e.id: bool(e.answers) for e in examples if e.id in scores}
    counted = dict(scores)
    if null_odds is not None:
        for name in scores:
            if _odds(null_odds, name) > threshold:
                counted[name] = Score(*[float(not answerable[name])] * 2)
    result = _means(counted.values())
    for prefix, has_answer in (("HasAns", True), ("NoAns", False)):
        part = [score for name, score in counted.items() if answerable[name] is has_answer]
        if part:
            result |= {f"{prefix}_{key}": value for key, value in _means(part).items()}
    if null_odds is not None:
        result |= best_thresholds(examples, predictions, null_odds)
    return result


def best_thresholds(
    examples: Sequence[Example], predictions: Mapping[str, str], null_odds: Mapping[str, float]
) -> dict[str, float]:
    """Find the thresholds of null odds at which each metric of version 2.0 is highest.

    Args:
        examples, predictions, null_odds: as for `evaluate_v2`. The texts should be those of
            `recover` without a threshold, so that each question has one.

    Returns:
        "best_exact" and "best_f1", the metrics in percent, and "best_exact_thresh" and
        "best_f1_thresh", where they are reached: with "no answer" for all odds above it. It is one
        of the odds given, or 0.0 if no answer at all is best.

    >>> from fnlm.tasks.squad import Answer
    >>> questions = [Example("7", "Who?", "It was Ann.", (Answer("Ann", 7),))]
    >>> questions.append(Example("8", "When?", "It was Ann.", (), impossible=True))
    >>> texts, odds = {"7": "Ann", "8": "Ann"}, {"7": -2.5, "8": 1.0}
    >>> best_thresholds(questions, texts, odds)["best_f1_thresh"]
    -2.5
    """
    scores = _scores(examples, predictions)
    answerable = {e.id: bool(e.answers) for e in examples}
    odds = {name: _odds(null_odds, name) for name in null_odds.keys() | scores.keys()}
    names = [name for name in sorted(null_odds, key=odds.__getitem__) if name in scores]
    result: dict[str, float] = {}
    for i, metric in enumerate(Score._fields):
        # At first nothing is answered, which is right where there is no answer.
        current = best = float(sum(not answerable[name] for name in scores))
        threshold = 0.0
        for name in names:
            wrong = -1.0 if predictions[name] else 0.0
            current += scores[name][i] if answerable[name] else wrong
            if current > best:
                best, threshold = current, null_odds[name]
        result |= {f"best_{metric}": 100.0 * best / len(scores)}
        result |= {f"best_{metric}_thresh": threshold}
    return result


def _best(prediction: str, answers: Iterable[str]) -> Score:
    scores = [(exact_match(prediction, answer), f1(prediction, answer)) for answer in answers]
    return Score(*map(max, zip(*scores, strict=True)))


def _scores(examples: Sequence[Example], predictions: Mapping[str, str]) -> dict[str, Score]:
    """Return the score of each question that has a prediction, in the order of the questions."""
    _check(examples, predictions)
    scores = {}
    for example in examples:
        if example.id in predictions:
            prediction = predictions[example.id]
            answers = [a.text for a in example.answers if normalize(a.text)]
            if answers and normalize(prediction):
                scores[example.id] = _best(prediction, answers)
            else:  # one of them has no words: right if neither has
                scores[example.id] = Score(*[float(not answers and not normalize(prediction))] * 2)
    if not scores:
        raise ValueError("no question has a prediction; predictions must go by the ids of the file")
    return scores


def _means(scores: Iterable[Score]) -> dict[str, float]:
    total, exact, f1 = 0, 0.0, 0.0
    for score in scores:  # not by `sum`, which from Python 3.12 on gives other last bits
        total, exact, f1 = total + 1, exact + score.exact, f1 + score.f1
    return {"exact": 100.0 * exact / total, "f1": 100.0 * f1 / total, "total": total}


def _odds(null_odds: Mapping[str, float], name: str) -> float:
    if name not in null_odds:
        raise ValueError(f"null_odds has nothing for question {name!r}; give odds for each")
    odds = null_odds[name]
    if odds is None or odds != odds:  # NaN is above no threshold, nor below
        raise ValueError(f"null_odds of question {name!r} must be a number, got {odds!r}")
    return odds


def _check(examples: Sequence[Example], predictions: Mapping[str, str]) -> None:
    if not examples:
        raise ValueError("examples are empty; there is nothing to evaluate")
    for example in examples:
        if not isinstance(text := predictions.get(example.id, ""), str):
            raise TypeError(
                f"the prediction of question {example.id!r} must be a text (empty for no answer), "
                f"got {text!r}"
            )
