"""SQuAD: reading, windows, answers and metrics, on made-up questions and on the real files."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import data_path
from test_tasks_features import assert_equal, tokenizer_of

from fnlm.tasks import _read, squad, squad_answers, squad_metrics
from fnlm.tasks.squad import Answer, Example
from fnlm.tokenize import bert

# Whole files rather than their first 800 questions, which takes minutes.
FULL = os.environ.get("FNLM_TEST_FULL", "0") != "0"

CONTEXT = "In 1066, Duke William II conquered England,\u202fkilling King Harold at Hastings."
LONG = " ".join(f"{number} green bottles." for number in range(60, 0, -1))


def question(**changes: Any) -> dict[str, Any]:
    return {
        "id": "q1",
        "question": "Who was killed?",
        "answers": [{"text": "King Harold", "answer_start": CONTEXT.index("King")}],
        **changes,
    }


def file_of(folder: Path, *questions: Any, context: str = CONTEXT) -> Path:
    path = folder / "squad.json"
    paragraphs = [{"context": context, "qas": list(questions)}]
    path.write_text(json.dumps({"version": "x", "data": [{"paragraphs": paragraphs}]}))
    return path


def test_both_versions_are_read(tmp_path: Path) -> None:
    path = file_of(
        tmp_path,
        question(),
        question(id="q2", answers=[], is_impossible=True, plausible_answers=[{"text": "x"}]),
        question(id="q3", is_impossible=False),
    )
    answers = (Answer("King Harold", CONTEXT.index("King")),)
    expected = (
        Example("q1", "Who was killed?", CONTEXT, answers, False),
        Example("q2", "Who was killed?", CONTEXT, (), True),
        Example("q3", "Who was killed?", CONTEXT, answers, False),
    )
    assert squad.read(path) == squad.read(path, training=True) == expected


def test_answers_are_looked_for_near_their_place(tmp_path: Path) -> None:
    def start(text: str, given: Any) -> int:
        wrong = question(answers=[{"text": text, "answer_start": given}])
        (example,) = squad.read(file_of(tmp_path, wrong, context="one two one two one"))
        return example.answers[0].start

    assert [start("one", at) for at in (0, 1, 5, 7, 8, 13, 99, -3)] == [0, 0, 8, 8, 8, 16, 16, 0]
    assert start("three", 4) == -1
    assert start("one", None) == -1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answers": []}, r"qas\[0\] \(id 'q1'\) has no answers, and is not marked"),
        ({"answers": None}, r"qas\[0\] has no list 'answers'"),
        ({"answers": [{"text": "x", "answer_start": 3}]}, r"answers\[0\]: 'x' does not stand in"),
        ({"answers": [{"text": "", "answer_start": 3}]}, r"answers\[0\]: '' does not stand in"),
        ({"answers": [{"text": "King"}]}, r"answers\[0\] has no whole number 'answer_start'"),
        ({"answers": ["King"]}, r"answers\[0\] has no string 'text'"),
        ({"question": 3}, r"qas\[0\] has no string 'question'"),
        ({"id": None}, r"qas\[0\] has no 'id', a string or a whole number"),
    ],
)
def test_wrong_questions_are_named(tmp_path: Path, changes: Any, message: str) -> None:
    place = r"squad.json: data\[0\].paragraphs\[0\].*"
    with pytest.raises(ValueError, match=place + message) as error:
        squad.read(file_of(tmp_path, question(**changes)), training=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "x.json has no list 'data'"),
        ('{"data": 3}', "x.json has no list 'data'"),
        ('{"data": []}', "x.json holds no questions"),
        ('{"data": [{"title": "x"}]}', r"x.json: data\[0\] has no list 'paragraphs'"),
        ('{"data": [{"paragraphs": [{}]}]}', r"paragraphs\[0\] has no string 'context'"),
        ('{"data": [{"paragraphs": [{"context": ""}]}]}', r"paragraphs\[0\] has no list 'qas'"),
        ('{"data": [}', "x.json, line 1, column 11: not JSON"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        squad.read(tmp_path / "x.json")
    assert "\n" not in str(error.value)


def test_ids_are_unique_where_predictions_go_by_them(tmp_path: Path) -> None:
    path = file_of(tmp_path, question(), question())
    with pytest.raises(ValueError, match=r"qas\[1\]: id 'q1' is there twice"):
        squad.read(path)
    assert len(squad.read(path, training=True)) == 2


@pytest.mark.parametrize("tokens", [0, 1, 6, 7, 50, 400])
@pytest.mark.parametrize(("room", "stride"), [(6, 3), (6, 6), (6, 1), (5, 9), (1, 1), (317, 128)])
def test_windows_and_the_best_of_them(tokens: int, room: int, stride: int) -> None:
    spans = list(squad.window_spans(tokens, room, stride))
    # As the BERT paper's code has it, one step and one token at a time.
    expected, start = [], 0
    while True:
        length = min(tokens - start, room)
        expected.append((start, start + length))
        if start + length == tokens:
            break
        start += min(length, stride)
    assert spans == expected
    best = squad.best_windows(spans)
    for token in range(tokens):
        scores = [
            100 * min(token - begin, end - 1 - token) + (end - begin)
            for begin, end in spans
            if begin <= token < end
        ]
        holders = [w for w, (begin, end) in enumerate(spans) if begin <= token < end]
        winner = holders[scores.index(max(scores))]
        assert [w for w in holders if best[w][token - spans[w][0]]] == [winner]


def examples() -> list[Example]:
    """Questions on a short and on a long context, with and without answers; some are odd."""
    king = (Answer("King Harold", CONTEXT.index("King")),)
    cut = (Answer("onquer", CONTEXT.index("onquer")),)
    late = (Answer("7 green bottles", LONG.index(" 7 green") + 1), Answer("x", -1))
    return [
        Example("a", "Who was killed?", CONTEXT, king),
        Example("b", "What did he do? " * 9, CONTEXT, cut),
        Example("c", "How many bottles?", LONG, late),
        Example("d", "How many bottles?", LONG, (), impossible=True),
        Example("e", "", LONG, (Answer("nowhere", -1),)),
        Example("f", "What is here?", " ", (Answer(" ", 0),)),
    ]


SETTINGS: dict[str, Any] = {"max_seq_length": 40, "doc_stride": 9, "max_query_length": 12}


def made() -> tuple[list[Example], squad.Features, bert.Tokenizer]:
    questions = examples()
    tokenizer = tokenizer_of(*(e.question for e in questions), CONTEXT, LONG)
    return questions, squad.features(questions, tokenizer, **SETTINGS), tokenizer


def test_each_window_is_a_row() -> None:
    questions, windows, tokenizer = made()
    assert [array.dtype for array in windows[:3]] == [np.int32, np.int32, np.bool_]
    assert windows.example.tolist() == sorted(windows.example.tolist())
    seen: dict[int, list[tuple[int, int]]] = {}
    for row, number in enumerate(windows.example.tolist()):
        example = questions[number]
        tokens = tokenizer.ids_to_tokens(windows.ids[row, windows.mask[row]])
        query = tokenizer.tokenize(example.question)[:12]
        context = tokenizer.tokenize(example.context)
        _, offsets = tokenizer.encode_with_offsets(example.context)
        before = len(query) + 2
        assert tokens[:before] == ["[CLS]", *query, "[SEP]"] and tokens[-1] == "[SEP]"
        inside = windows.offsets[row, :, 0] >= 0
        assert np.flatnonzero(inside).tolist() == list(range(before, len(tokens) - 1))
        assert windows.token_types[row].tolist() == [
            int(before <= at < len(tokens)) for at in range(40)
        ]
        spans = [(int(a), int(b)) for a, b in windows.offsets[row, inside]]
        begin = offsets.index(spans[0]) if spans else 0
        assert spans == offsets[begin : begin + len(spans)]
        assert tokens[before:-1] == context[begin : begin + len(spans)]
        flags = windows.best[row, inside].tolist()
        best = [span for span, is_best in zip(spans, flags, strict=True) if is_best]
        seen.setdefault(number, []).extend(best)
        assert not windows.best[row, ~inside].any()
    for number, example in enumerate(questions):  # every token is best once
        assert sorted(seen[number]) == tokenizer.encode_with_offsets(example.context)[1]


def test_positions_are_those_of_the_answer() -> None:
    questions, windows, _ = made()
    found: dict[str, set[str]] = {}
    for row in range(len(windows.ids)):
        example = questions[windows.example[row]]
        start, end = int(windows.starts[row]), int(windows.ends[row])
        assert (start == 0) == (end == 0)
        if start:
            begin, stop = windows.offsets[row, start, 0], windows.offsets[row, end, 1]
            found.setdefault(example.id, set()).add(example.context[begin:stop])
        elif example.id == "c":  # the window does not hold all of the answer
            first = example.answers[0].start
            inside = windows.offsets[row][windows.offsets[row, :, 0] >= 0]
            assert inside[0, 0] > first or inside[-1, 1] < first + len("7 green bottles")
    assert found.pop("b") <= {"conquered", "onquer"}
    assert found == {"a": {"King Harold"}, "c": {"7 green bottles"}}


def test_no_questions_make_no_windows() -> None:
    empty = squad.features([], tokenizer_of(LONG), **SETTINGS)
    assert [array.shape[1:] for array in empty] == [array.shape[1:] for array in made()[1]]
    assert {len(array) for array in empty} == {0}
    assert squad_answers.recover([], empty, np.zeros((0, 40)), np.zeros((0, 40))).texts == {}


def test_settings_without_room() -> None:
    with pytest.raises(ValueError, match="max_seq_length=67 leaves no room"):
        squad.features(examples(), tokenizer_of(LONG), max_seq_length=67)
    with pytest.raises(ValueError, match="doc_stride=0 must be at least 1"):
        squad.features(examples(), tokenizer_of(LONG), doc_stride=0)


def random_logits(windows: squad.Features, seed: int, steps: int) -> tuple[Any, Any]:
    """The fewer steps, the more ties."""
    draw = np.random.default_rng(seed)
    one, two = draw.integers(0, steps, (2, *windows.ids.shape)).astype(np.float32)
    return one / 64, two / 64


def brute_force(
    questions: list[Example], windows: squad.Features, start: Any, end: Any, longest: int
) -> dict[str, list[tuple[float, str]]]:
    """Every allowed span of every question, by its score, the first of equals first."""
    found: dict[str, list[tuple[float, str]]] = {example.id: [] for example in questions}
    for row, number in enumerate(windows.example.tolist()):
        example = questions[number]
        for i in np.flatnonzero(windows.best[row]).tolist():
            for j in range(i, min(i + longest, 40)):
                if windows.offsets[row, j, 0] >= 0:
                    text = example.context[windows.offsets[row, i, 0] : windows.offsets[row, j, 1]]
                    score = float(start[row, i]) + float(end[row, j])
                    found[example.id].append((score, text))
    for spans in found.values():
        spans.sort(key=lambda span: -span[0])
    return found


@pytest.mark.parametrize("steps", [1, 4, 1000])
@pytest.mark.parametrize("n", [1, 5, 20])
def test_the_best_spans_are_found(steps: int, n: int) -> None:
    questions, windows, _ = made()
    start, end = random_logits(windows, n, steps)
    got = squad_answers.recover(questions, windows, start, end, n_best=n, max_answer_length=7)
    spans = brute_force(questions, windows, start, end, 7)
    for example in questions:
        of_mine = windows.example == questions.index(example)
        null = min(start[of_mine, 0] + end[of_mine, 0])
        candidates = got.n_best[example.id]
        if not spans[example.id]:
            assert got.texts[example.id] == "" and got.null_odds[example.id] == float("inf")
            continue
        best = spans[example.id][0]
        assert got.texts[example.id] == best[1] == candidates[0].text
        assert got.null_odds[example.id] == null - best[0]
        assert len({c.text for c in candidates}) == len(candidates) <= n
        by_text: dict[str, float] = {}
        for score, text in spans[example.id]:
            by_text.setdefault(text, score)
        assert [c.start_logit + c.end_logit for c in candidates] == [
            by_text[c.text] for c in candidates
        ]
        top = list(by_text.values())[: len(candidates)]
        assert [c.start_logit + c.end_logit for c in candidates] == top
        weights = np.exp(np.array(top) - top[0])
        np.testing.assert_allclose(
            [c.probability for c in candidates], weights / weights.sum(), rtol=1e-12
        )


def test_the_null_threshold_decides() -> None:
    questions, windows, _ = made()
    start, end = random_logits(windows, 3, 500)
    plain = squad_answers.recover(questions, windows, start, end)
    for threshold in (-5.0, *sorted(plain.null_odds.values())[:5], 5.0):
        got = squad_answers.recover(questions, windows, start, end, null_threshold=threshold)
        assert got.null_odds == plain.null_odds
        for name, odds in plain.null_odds.items():
            assert got.texts[name] == ("" if odds > threshold else plain.texts[name])
            assert [c.text for c in got.n_best[name]].count("") == 1
            assert sum(c.probability for c in got.n_best[name]) == pytest.approx(1, rel=1e-12)


def test_logits_that_cannot_be() -> None:
    questions, windows, _ = made()
    good, _ = random_logits(windows, 3, 500)
    recover: Callable[..., Any] = squad_answers.recover
    with pytest.raises(ValueError, match=r"end_logits \(2, 40\) must have the shape"):
        recover(questions, windows, good, good[:2])
    for value in (np.nan, np.inf):
        bad = good.copy()
        bad[1, 1] = value
        with pytest.raises(ValueError, match="NaN or infinity; the model"):
            recover(questions, windows, good, bad)
    for others in (questions[:2], [*questions, questions[0]]):
        with pytest.raises(ValueError, match=f"the windows of the {len(others)} examples given"):
            recover(others, windows, good, good)
    with pytest.raises(ValueError, match="must be at least 1"):
        recover(questions, windows, good, good, n_best=0)
    masked = np.where(windows.mask, good, -np.inf)
    assert recover(questions, windows, masked, masked).texts == (
        recover(questions, windows, good, good).texts
    )


def gold(windows: squad.Features) -> tuple[Any, Any]:
    """The logits of a model that knows the positions."""
    start, end = np.zeros((2, *windows.ids.shape), np.float32)
    start[:, 0] = end[:, 0] = 1
    rows = np.flatnonzero(windows.starts)
    start[rows, windows.starts[rows]] = 9
    end[rows, windows.ends[rows]] = 9
    return start, end


def real_tokenizer(name: str) -> bert.Tokenizer:
    text = data_path(f"vocab/bert/bert-base-{name}-vocab.txt").read_text(encoding="utf-8")
    tokens = text.removesuffix("\n").split("\n")
    return bert.Tokenizer(
        {token: at for at, token in enumerate(tokens)}, lower_case="uncased" in name
    )


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("dev-v1.1.json.gz", "uncased"),
        ("dev-v1.1.json.gz", "cased"),
        ("dev-v2.0-16articles.json.gz", "uncased"),
        ("train-v1.1-12articles.json.gz", "uncased"),
        ("xquad/xquad.zh.json.gz", "chinese"),
        ("xquad/xquad.ar.json.gz", "multilingual-cased"),
    ],
)
def test_no_answer_is_lost(file: str, name: str) -> None:
    """Gold positions, through windows and recovery, give the answers back."""
    questions = squad.read(data_path(f"squad/{file}"))[: None if FULL else 800]
    windows = squad.features(questions, real_tokenizer(name))
    possible = [at for at, example in enumerate(questions) if not example.impossible]
    assert sorted(set(windows.example[windows.starts > 0].tolist())) == possible
    answers = squad_answers.recover(
        *(questions, windows, *gold(windows)), n_best=1, max_answer_length=100, null_threshold=0.0
    )
    result = squad_metrics.evaluate_v2(questions, answers.texts)
    assert result["exact"] >= (99.4 if FULL else 98.0)  # the whole of dev-v1.1: 99.78, F1 99.83
    for example in questions:  # what is not exact began or ended within a token
        wanted = example.answers[0].text if example.answers else ""
        assert wanted in answers.texts[example.id]
        assert bool(wanted) == bool(answers.texts[example.id])


@pytest.mark.parametrize(
    "name",
    [
        "v1.1/bert-ensemble",
        "v1.1/logistic-regression",
        "v1.1/bertwithpretrained",
        "v2.0/bert-single-16articles",
    ],
)
def test_the_official_figures_are_reproduced(name: str) -> None:
    path = data_path(f"squad/predictions/{name}.json.gz")
    scores = json.loads(data_path("squad/predictions/SCORES.json").read_text())
    expected = scores[f"predictions/{name}.json"]
    questions = squad.read(data_path(f"squad/{expected['dataset']}.gz"))
    evaluate: Any = squad_metrics.evaluate_v2 if "v2" in name else squad_metrics.evaluate_v1
    assert evaluate(questions, _read.read_json(path)) == expected["computed"]


def quiz(size: int, seed: int) -> tuple[list[Example], dict[str, str], dict[str, float]]:
    """Questions, half of them without an answer, with predictions and odds; some are wrong."""
    draw = random.Random(seed)
    words = ["red", "the red", "Red!", "blue", "red blue", "a", ""]
    questions, texts, odds = [], {}, {}
    for number in range(size):
        answers = [Answer(draw.choice(words[:5]), 0) for _ in range(draw.choice([0, 1, 3]))]
        name = f"q{number}"
        questions.append(Example(name, "?", "red", tuple(answers), not answers))
        texts[name], odds[name] = draw.choice(words), draw.gauss(0, 1)
    return questions, texts, odds


def test_thresholds_are_the_best_of_all() -> None:
    for seed in range(8):
        questions, texts, odds = quiz(20, seed)
        answered = {name: text if len(text) > 1 else "x" for name, text in texts.items()}
        found = squad_metrics.best_thresholds(questions, answered, odds)
        for metric in ("exact", "f1"):
            values = {
                threshold: squad_metrics.evaluate_v2(
                    questions, answered, odds, threshold=threshold
                )[metric]
                for threshold in (-99.0, *odds.values())
            }
            assert found[f"best_{metric}"] == pytest.approx(max(values.values()), rel=1e-12)
            threshold = found[f"best_{metric}_thresh"]
            at_threshold = values.get(threshold, values[-99.0])
            assert at_threshold == pytest.approx(max(values.values()), rel=1e-12)


def test_the_parts_of_version_2_make_the_whole() -> None:
    questions, texts, odds = quiz(200, 1)
    result = squad_metrics.evaluate_v2(questions, texts, odds, threshold=0.3)
    for metric in ("exact", "f1"):
        parts = sum(result[f"{p}_{metric}"] * result[f"{p}_total"] for p in ("HasAns", "NoAns"))
        assert parts / result["total"] == pytest.approx(result[metric], rel=1e-12)
    gone = {name: text if odds[name] <= 0.3 else "" for name, text in texts.items()}
    without = squad_metrics.evaluate_v2(questions, gone)
    assert without == {key: result[key] for key in without}
    del texts["q7"]
    assert squad_metrics.evaluate_v2(questions, texts)["total"] == 199


def test_evaluation_without_predictions_or_odds_is_an_error() -> None:
    questions, texts, odds = quiz(9, 1)
    with pytest.raises(ValueError, match="no question has a prediction"):
        squad_metrics.evaluate_v2(questions, {"other": "x"})
    del odds["q3"]
    with pytest.raises(ValueError, match="null_odds has nothing for question 'q3'"):
        squad_metrics.evaluate_v2(questions, texts, odds)
    with pytest.raises(ValueError, match="has no answer to compare with"):
        squad_metrics.evaluate_v1(questions, texts)
    with pytest.raises(ValueError, match="examples are empty"):
        squad_metrics.evaluate_v1([], {})


@pytest.mark.parametrize(
    ("prediction", "answer", "exact", "f1"),
    [
        ("the Cat", "cat!", 1, 1),
        ("a b b c", "b b d", 0, 2 / 3),  # "a" is an article
        ("", "", 1, 0),
        ("the", "", 1, 0),
        ("x", "y", 0, 0),
        ("theatre", "atre", 0, 0),
    ],
)
def test_texts_are_compared(prediction: str, answer: str, exact: float, f1: float) -> None:
    assert squad_metrics.exact_match(prediction, answer) == exact
    assert squad_metrics.f1(prediction, answer) == pytest.approx(f1, rel=1e-15)


def test_the_cache_knows_the_settings(tmp_path: Path) -> None:
    questions, windows, tokenizer = made()
    for _ in range(2):
        assert_equal(squad.features(questions, tokenizer, cache=tmp_path, **SETTINGS), windows)
    squad.features(questions, tokenizer, cache=tmp_path, **(SETTINGS | {"doc_stride": 8}))
    squad.features(questions[:2], tokenizer, cache=tmp_path, **SETTINGS)
    assert len(list(tmp_path.iterdir())) == 3
