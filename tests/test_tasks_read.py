"""Files as people have them: every reader, and every oddity that is no reason to stop."""

import csv
import gzip
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fnlm.tasks import _read, corpus, glue, rocstories, squad, swag

WORDS = "a charming journey"
SWAG = f"sent1,sent2,ending0,ending1,ending2,ending3,label\n{WORDS},x,a,b,c,d,0\ny,z,a,b,c,d,3\n"
STORIES = (
    ",".join([*rocstories.COLUMNS, rocstories.ANSWER]) + f"\n{WORDS},b,c,d,e,f,1\nb,b,c,d,e,f,2\n"
)
QUESTIONS = json.dumps(
    {
        "data": [
            {
                "paragraphs": [
                    {
                        "context": WORDS,
                        "qas": [
                            {
                                "id": "1",
                                "question": "who?",
                                "answers": [{"text": "journey", "answer_start": 11}],
                            }
                        ],
                    }
                ]
            }
        ]
    },
    indent=1,
)

Reader = Callable[[Path], Any]

# A plain file of each reader; a new reader adds a row.
READERS: dict[str, tuple[Reader, str]] = {
    "glue": (
        lambda path: glue.read(path, "WNLI"),
        f"index\tsentence1\tsentence2\tlabel\n0\t{WORDS}\tb\t1\n1\tc\td\t0\n",
    ),
    "glue without header": (
        lambda path: glue.read(path, "CoLA"),
        f"gj04\t1\t\t{WORDS}\ngj04\t0\t*\tb\n",
    ),
    "glue, test": (
        lambda path: glue.read(path, "SST-2", labelled=False),
        f"index\tsentence\n0\t{WORDS}\n1\tb\n",
    ),
    "swag": (swag.read, SWAG),
    "rocstories": (rocstories.read, STORIES),
    "squad": (squad.read, QUESTIONS),
    "squad, training": (lambda path: squad.read(path, training=True), QUESTIONS),
    "corpus": (corpus.read, f"{WORDS}\nb\n\nc\n"),
}

# What is done to a file that changes nothing of what it says.
HARMLESS: dict[str, Callable[[str], bytes]] = {
    "as it is": lambda text: text.encode(),
    "byte order mark": lambda text: text.encode("utf-8-sig"),
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
    "no last line feed": lambda text: text.removesuffix("\n").encode(),
    "a blank last line": lambda text: (text + "\n").encode(),
    "blank last lines, CRLF": lambda text: (text + "\n\n").replace("\n", "\r\n").encode(),
    "gzip": lambda text: gzip.compress(text.encode()),
}
# What is done to a text in a file, and comes out as it went in.
TEXTS = {
    "a cell of 200,000 characters": "x" * 200_000 + " y",
    "a NUL": "a\0b",
    "quotes within": 'a "b" c',
    "no-break and thin spaces": "a\u00a0b\u2009c",
    "line separators": "a\u2028b\x85c\x0bd",
    "a byte order mark within": "a\ufeffb",
    "beyond the first plane": "a 😀 b",
}
each_reader = pytest.mark.parametrize("name", READERS)


@each_reader
@pytest.mark.parametrize("oddity", HARMLESS)
def test_files_that_say_the_same_are_read_alike(name: str, oddity: str, tmp_path: Path) -> None:
    read, text = READERS[name]
    (tmp_path / "plain").write_bytes(text.encode())
    (tmp_path / "odd").write_bytes(HARMLESS[oddity](text))
    assert read(tmp_path / "odd") == read(tmp_path / "plain")


@each_reader
@pytest.mark.parametrize("oddity", TEXTS)
def test_texts_come_as_they_stand(name: str, oddity: str, tmp_path: Path) -> None:
    read, text = READERS[name]
    odd = TEXTS[oddity]
    written = json.dumps(odd)[1:-1] if name.startswith("squad") else odd
    (tmp_path / "plain").write_bytes(text.encode())
    (tmp_path / "odd").write_bytes(text.replace("charming", written).encode())
    expected = repr(read(tmp_path / "plain")).replace("charming", repr(odd)[1:-1])
    found = read(tmp_path / "odd")
    if name == "squad" or name == "squad, training":  # the answer stands elsewhere now
        assert found[0].context == f"a {odd} journey"
        assert found[0].answers[0].start == len(odd) + 3
    else:
        assert repr(found).replace('"', "'") == expected.replace('"', "'")


@each_reader
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no |not JSON"),
        (b"\n", "no |not JSON"),
        (b"\xff\xfe" + "a\n".encode("utf-16-le"), "not UTF-8"),
        (gzip.compress(b"a")[:-4], "damaged"),
    ],
    ids=["empty", "blank", "UTF-16", "cut gzip"],
)
def test_files_of_another_format_are_named(
    name: str, content: bytes, words: str, tmp_path: Path
) -> None:
    (tmp_path / "bad.file").write_bytes(content)
    with pytest.raises(ValueError, match=rf"bad\.file.*({words})"):
        READERS[name][0](tmp_path / "bad.file")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"data": ' + "9" * 5000 + "}"], ids=["deep", "long number"]
)
def test_json_that_python_cannot_read_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(ValueError, match=r"bad\.json"):
        squad.read(tmp_path / "bad.json")


CSV = st.lists(st.sampled_from(['"', ",", "\n", "\r", "\r\n", "a", "b c", " ", '""', '","']))


@settings(max_examples=400)
@given(CSV.map("".join))
@example('a,"b\r\n",c\r\r\n"",')
@example('"a""')
@example('a"b"')
def test_csv_is_read_as_pythons_own_reader_does(text: str) -> None:
    """The same rows and line numbers, or an error by both."""

    def peer() -> list[tuple[int, list[str]]] | None:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        try:
            return [(reader.line_num, row) for row in reader if row]
        except csv.Error:
            return None

    def ours() -> list[tuple[int, list[str]]] | None:
        try:
            return list(_read.csv_rows(text, "file"))
        except ValueError:
            return None

    assert ours() == peer()


def test_reading_csv_turns_no_switch_and_takes_linear_time(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    text = SWAG.replace("charming", '""' * 400_000)  # a quote that is not closed would hide no work
    (tmp_path / "x.csv").write_text(text)
    assert len(swag.read(tmp_path / "x.csv")) == 2
    (tmp_path / "y.csv").write_text(SWAG + '"' + 'x""' * 400_000)
    with pytest.raises(ValueError, match=r"y\.csv, line 4: not csv \(a quote is not closed\)"):
        swag.read(tmp_path / "y.csv")
    assert csv.field_size_limit() == limit


def squad_file(folder: Path, *rows: tuple[Any, str, str | None, Any]) -> Path:
    """Rows: id, context, text of the answer or None, its place."""
    paragraphs = [
        {
            "context": context,
            "qas": [
                {
                    "id": name,
                    "question": "who?",
                    "answers": [] if text is None else [{"text": text, "answer_start": start}],
                }
            ],
        }
        for name, context, text, start in rows
    ]
    path = folder / "questions.json"
    path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    return path


@pytest.mark.parametrize("space", ["\u00a0", "\u202f", "\u2009", "\t", "\n", "  ", " \u3000"])
def test_answers_that_differ_by_white_space_are_those_of_the_context(
    space: str, tmp_path: Path
) -> None:
    here, there = f"in Saint{space}Petersburg it", "Saint Petersburg"
    answer = squad.Answer(f"Saint{space}Petersburg", 3)
    for context, text in (
        (here, there),
        (here, f" {there} "),
        (here, f"Saint{space * 2}Petersburg"),
    ):
        (found,) = squad.read(squad_file(tmp_path, ("1", context, text, 3)), training=True)
        assert found.answers == (answer,)
    (found,) = squad.read(squad_file(tmp_path, ("1", f"in {there} it", answer.text, 90)))
    assert found.answers == (squad.Answer(there, 3),)


def test_questions_of_no_use_are_left_out_counted_and_reported(tmp_path: Path) -> None:
    path = squad_file(
        tmp_path,
        ("1", "the cat sat", "cat", 4),
        ("2", "the cat sat", "dog", 4),
        ("3", "the cat sat", None, 0),
        ("4", "the cat sat", " ", 3),
        ("5", "on a mat", "mat", 0),
        ("6", "on a mat", "hat", 0),
    )
    message = (
        r"left 4 questions out of training: .*'dog' does not.*\(id '3'\) has no answers.*\.\.\."
    )
    with pytest.warns(UserWarning, match=message) as seen:
        found = squad.read(path, training=True)
    assert len(seen) == 1, "one warning a file"
    assert [(e.id, e.answers[0].start) for e in found] == [("1", 4), ("5", 5)]
    with pytest.raises(ValueError, match=r"'dog' does not stand in the context.*\(4 questions\)"):
        squad.read(path, training=True, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluated = squad.read(path)  # nothing is left out of an evaluation
    assert [e.answers[0].start if e.answers else None for e in evaluated] == [
        4,
        -1,
        None,
        -1,
        5,
        -1,
    ]


def test_whole_numbers_are_ids(tmp_path: Path) -> None:
    rows = [(name, "the cat", "cat", 4) for name in (12345, "x", -1)]
    assert [e.id for e in squad.read(squad_file(tmp_path, *rows))] == ["12345", "x", "-1"]
    with pytest.raises(ValueError, match="id '7' is there twice"):
        squad.read(squad_file(tmp_path, (7, "a", "a", 0), ("7", "a", "a", 0)))
    for wrong in (None, 1.5, True, ["1"]):
        with pytest.raises(ValueError, match="has no 'id', a string or a whole number"):
            squad.read(squad_file(tmp_path, (wrong, "a", "a", 0)))


@pytest.mark.parametrize("label", ["nan", "inf", "-inf", "NaN", "1e999", ""])
def test_a_score_of_nan_is_no_label(label: str, tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text(f"sentence1\tsentence2\tscore\na\tb\t3.5\na\tb\t{label}\n")
    with pytest.raises(ValueError, match=r"x\.tsv, line 3, column 'score': .* is not a number"):
        glue.read(tmp_path / "x.tsv", "STS-B")
