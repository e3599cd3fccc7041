"""Rows given as dicts, as the package `datasets` gives them, are read as the files are."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fnlm.tasks import corpus, glue, rocstories, squad, swag

Row = dict[str, Any]

# Task -> names of the texts and the label on the hub, and its labels in the hub's order.
HUB: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "CoLA": (("sentence",), ("0", "1")),
    "SST-2": (("sentence",), ("0", "1")),
    "MRPC": (("sentence1", "sentence2"), ("0", "1")),
    "QQP": (("question1", "question2"), ("0", "1")),
    "MNLI": (("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
    "QNLI": (("question", "sentence"), ("entailment", "not_entailment")),
    "RTE": (("sentence1", "sentence2"), ("entailment", "not_entailment")),
    "WNLI": (("sentence1", "sentence2"), ("0", "1")),
}
CONTEXT = "The old king had three sons."
QUESTION = {"id": "7", "title": "Kings", "context": CONTEXT, "question": "Who had sons?"}
SWAG_ROW = {"video-id": "1", "sent1": "He sat.", "sent2": "He", "label": 2} | {
    name: f"{name}." for name in swag.ENDINGS
}
STORY = {f"input_sentence_{number}": f"Line {number}." for number in (1, 2, 3, 4)} | {
    "story_id": "x", "sentence_quiz1": "Good.", "sentence_quiz2": "Bad.", "answer_right_ending": 2
}  # fmt: skip


class Dataset:
    """What a data set of the package `datasets` is to its reader: it has a length and iterates."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        yield from self.rows


@pytest.mark.parametrize("task", HUB)
@pytest.mark.parametrize("kind", [int, np.int64, str])
def test_labels_of_glue_are_numbered_as_on_the_hub(task: str, kind: Callable[[Any], Any]) -> None:
    texts, words = HUB[task]
    rows = [
        {name: f"{name} {at}" for name in texts} | {"label": kind(at), "idx": at}
        for at in range(len(words))
    ]
    for given in (rows, Dataset(rows), iter(rows)):
        found = glue.read(given, task)
        assert [glue.task(task).labels[int(e.label or 0)] for e in found] == [*words]
        assert [(e.first, e.second) for e in found] == [
            (row[texts[0]], row[texts[1]] if texts[1:] else None) for row in rows
        ]
    unlabelled = [{name: row[name] for name in texts} for row in rows]
    assert {e.label for e in glue.read(unlabelled, task, labelled=False)} == {None}


@pytest.mark.parametrize("task", ["MNLI", "MRPC"])
def test_rows_of_a_file_are_read_as_the_file(task: str, tmp_path: Path) -> None:
    kind = glue.task(task)
    rows = [dict(zip(kind.texts, "ab", strict=True)) | {kind.label: word} for word in kind.labels]
    lines = ["\t".join(rows[0]), *("\t".join(row.values()) for row in rows)]
    (tmp_path / "train.tsv").write_text("\n".join(lines))
    assert glue.read(rows, task) == glue.read(tmp_path / "train.tsv", task)


def test_scores_are_numbers() -> None:
    rows = [{"sentence1": "a", "sentence2": "b", "label": label} for label in (3.8, 0, "2.5")]
    assert [e.label for e in glue.read(rows, "STS-B")] == [3.8, 0, 2.5]
    (one,) = glue.read([rows[0] | {"label": np.float32(0.25)}], "STS-B")
    assert one.label == 0.25


def test_questions_are_those_of_a_file(tmp_path: Path) -> None:
    answers = {"text": ["three sons", "sons"], "answer_start": [17, np.int64(23)]}
    rows: list[Row] = [QUESTION | {"answers": answers},
            QUESTION | {"id": "8", "answers": {"text": [], "answer_start": []}}]  # fmt: skip
    asked = [{"id": "7", "question": QUESTION["question"],
              "answers": [{"text": "three sons", "answer_start": 17},
                          {"text": "sons", "answer_start": 23}]},
             {"id": "8", "question": QUESTION["question"], "answers": [],
              "is_impossible": True}]  # fmt: skip
    data = {"data": [{"paragraphs": [{"context": CONTEXT, "qas": asked}]}]}
    (tmp_path / "train.json").write_text(json.dumps(data))
    for training in (False, True):
        found = squad.read(Dataset(rows), training=training)
        assert found == squad.read(tmp_path / "train.json", training=training)
    assert [example.impossible for example in found] == [False, True]
    (unanswered,) = squad.read([QUESTION])
    assert unanswered.answers == () and not unanswered.impossible


def test_choices_and_stories() -> None:
    (choice,) = swag.read([SWAG_ROW])
    assert choice == ("He sat.", "He", tuple(f"ending{at}." for at in range(4)), 2)
    (story,) = rocstories.read(Dataset([STORY]))
    assert story == ("Line 1. Line 2. Line 3. Line 4.", ("Good.", "Bad."), 1)
    (story,) = rocstories.read([STORY | {"answer_right_ending": None}], labelled=False)
    assert story.label is None


def test_texts_of_a_corpus_are_its_lines(tmp_path: Path) -> None:
    lines = ["One.", "", "Two.\nThree.", "", "", "Four."]
    (tmp_path / "text.txt").write_text("\n".join(lines))
    rows = [{"text": line} for line in lines]
    assert corpus.read(rows) == corpus.read(tmp_path / "text.txt")
    assert corpus.read(rows) == (("One.",), ("Two.", "Three."), ("Four.",))


READERS: dict[str, tuple[Callable[[Any], Any], Mapping[str, Any]]] = {
    "glue": (lambda rows: glue.read(rows, "RTE"), {"sentence1": "a", "sentence2": "b", "label": 0}),
    "squad": (squad.read, QUESTION),
    "swag": (swag.read, SWAG_ROW),
    "rocstories": (rocstories.read, STORY),
    "corpus": (corpus.read, {"text": "One."}),
}


@pytest.mark.parametrize("name", READERS)
def test_wrong_rows_are_named(name: str) -> None:
    read, row = READERS[name]
    assert read([row])
    with pytest.raises(ValueError, match="there are no rows"):
        read([])
    with pytest.raises(TypeError, match="row 1 is of type str, not dict; give the rows of one"):
        read([row, "train"])
    last = [key for key in row if key not in ("idx", "video-id", "story_id", "title")][-1]
    with pytest.raises(ValueError, match=f"row 1: no column .*{last}.* among"):
        read([row, {key: value for key, value in row.items() if key != last}])
    with pytest.raises(ValueError, match=f"row 1, column '{last}': None is neither text nor"):
        read([row, dict(row) | {last: None}])


def test_wrong_labels_and_answers_are_named() -> None:
    row = {"premise": "a", "hypothesis": "b"}
    for label in (-1, 3, "yes"):
        with pytest.raises(ValueError, match=f"row 0, column .*{label}.* is not one of contra"):
            glue.read([row | {"label": label}], "MNLI")
    with pytest.raises(ValueError, match="row 0, column 'label': '4' is not one of 0, 1"):
        swag.read([SWAG_ROW | {"label": 4}])
    with pytest.raises(ValueError, match="column 'answers': .* is no dict of the lists"):
        squad.read([QUESTION | {"answers": ["three sons"]}])
    with pytest.raises(ValueError, match="'8' is there twice|'7' is there twice"):
        squad.read([QUESTION, QUESTION])
