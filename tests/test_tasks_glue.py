"""The nine tasks of GLUE, and SWAG: published layouts, labels, rows, and errors that say where."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import data_path
from test_tasks_features import assert_equal, tokenizer_of

from fnlm.tasks import glue, swag

QUOTED = 'He said "no\u2028 , \x85 and left .'  # one quote, and characters that end no line here

# For each task a labelled file and a test file in the published layout, and what they say.
LAYOUTS: dict[str, tuple[list[str], list[str], list[tuple[str, str | None, float]]]] = {
    "CoLA": (
        [f"gj04\t1\t\t{QUOTED}", "gj04\t0\t*\tBooks this good is."],
        ["index\tsentence", f"0\t{QUOTED}", "1\tBooks this good is."],
        [(QUOTED, None, 1), ("Books this good is.", None, 0)],
    ),
    "SST-2": (
        ["sentence\tlabel", f"{QUOTED} \t1", "dull \t0"],
        ["index\tsentence", f"0\t{QUOTED} ", "1\tdull "],
        [(f"{QUOTED} ", None, 1), ("dull ", None, 0)],
    ),
    "MRPC": (
        ["\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", f"1\t7\t8\t{QUOTED}\tHe left ."],
        ["\ufeffindex\t#1 ID\t#2 ID\t#1 String\t#2 String", f"0\t7\t8\t{QUOTED}\tHe left ."],
        [(QUOTED, "He left .", 1)],
    ),
    "STS-B": (
        [
            "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
            f"0\ta\tb\t2012\t0001\tc\td\t{QUOTED}\tHe left.\t3.800",
        ],
        [
            "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2",
            f"0\ta\tb\t2012\t0001\tc\td\t{QUOTED}\tHe left.",
        ],
        [(QUOTED, "He left.", 3.8)],
    ),
    "QQP": (
        [
            "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
            "3\t7\t8\tThis row is cut",
            f"4\t7\t8\t{QUOTED}\tWho left?\t0",
        ],
        ["id\tquestion1\tquestion2", f"0\t{QUOTED}\tWho left?"],
        [(QUOTED, "Who left?", 0)],
    ),
    "MNLI": (
        [
            "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
            "sentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
            *(
                f"0\t1\t1n\tx\t(\t(\t(\t(\t{QUOTED}\tHe left.\tneutral\t{label}"
                for label in ("contradiction", "entailment", "neutral")
            ),
        ],
        [
            "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
            "sentence1_parse\tsentence2_parse\tsentence1\tsentence2",
            *(f"{at}\t1\t1n\tx\t(\t(\t(\t(\t{QUOTED}\tHe left." for at in range(3)),
        ],
        [(QUOTED, "He left.", label) for label in range(3)],
    ),
    "QNLI": (
        ["index\tquestion\tsentence\tlabel", f"0\tWho left?\t{QUOTED}\tnot_entailment"],
        ["index\tquestion\tsentence", f"0\tWho left?\t{QUOTED}"],
        [("Who left?", QUOTED, 1)],
    ),
    "RTE": (
        ["index\tsentence1\tsentence2\tlabel", f"0\t{QUOTED}\tHe left.\tentailment"],
        ["index\tsentence1\tsentence2", f"0\t{QUOTED}\tHe left."],
        [(QUOTED, "He left.", 0)],
    ),
    "WNLI": (
        ["index\tsentence1\tsentence2\tlabel", f"0\t{QUOTED}\tHe left.\t1"],
        ["index\tsentence1\tsentence2", f"0\t{QUOTED}\tHe left."],
        [(QUOTED, "He left.", 1)],
    ),
}


def file_of(folder: Path, lines: list[str], end: str = "\n") -> Path:
    path = folder / "file.tsv"
    path.write_bytes("".join(line + end for line in lines).encode())
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("name", glue.TASKS)
def test_the_published_layouts_are_read(name: str, end: str, tmp_path: Path) -> None:
    labelled, unlabelled, expected = LAYOUTS[name]
    got = glue.read(file_of(tmp_path, labelled, end), name.lower())
    assert [tuple(example) for example in got] == expected
    got = glue.read(file_of(tmp_path, unlabelled, end), name, labelled=False)
    assert [tuple(example) for example in got] == [(a, b, None) for a, b, _ in expected]


def test_there_are_nine_tasks() -> None:
    assert list(glue.TASKS) == list(LAYOUTS)
    with pytest.raises(ValueError, match="task 'AX' is none of GLUE's, which are CoLA, SST-2"):
        glue.task("AX")
    assert glue.file_name("mnli", "test") == "test_matched.tsv"
    assert glue.file_name("MNLI", "dev_mismatched") == "dev_mismatched.tsv"
    with pytest.raises(ValueError, match="split='dev_mismatched' is none of RTE's: train, dev"):
        glue.file_name("RTE", "dev_mismatched")


RTE = "index\tsentence1\tsentence2\tlabel"


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("RTE", ["index\tsentence1\tlabel"], r"line 1: no column 'sentence2' among \['index'"),
        ("RTE", [], "line 1: no column 'sentence1' among"),
        ("MRPC", [RTE, "0\ta\tb\tentailment"], "line 1: no column '#1 String'"),
        ("RTE", [RTE, "0\ta\tb\tentailment", "1\ta\tb"], "line 3: 3 columns, not 4; .* 'label'"),
        ("RTE", [RTE, "0\ta\tb\tentailment\tmore"], "line 2: 5 columns, not 4"),
        (
            "RTE",
            [RTE, "0\ta\tb\tneutral"],
            "line 2, column 'label': 'neutral' is not one of entail",
        ),
        ("CoLA", ["x\t1\t\ta", "x\t2\t\ta"], "line 2, column 'label': '2' is not one of 0, 1"),
        ("CoLA", ["x\t1\ta"], "line 1: 3 columns, not 4; see to column 'sentence'"),
        ("RTE", [RTE], "holds no examples"),
        ("QQP", [LAYOUTS["QQP"][0][0], "1\t2"], "holds no examples"),
        (
            "STS-B",
            [LAYOUTS["STS-B"][0][0], "0\ta\tb\t2012\t0001\tc\td\ta\tb\thigh"],
            "line 2, column 'score': 'high' is not a number",
        ),
    ],
)
def test_wrong_files_are_named(name: str, lines: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"file.tsv.*{message}") as error:
        glue.read(file_of(tmp_path, lines), name)
    assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="'.*none.tsv' is no file"):
        glue.read(tmp_path / "none.tsv", name)


@pytest.mark.parametrize("name", glue.TASKS)
def test_rows_and_labels(name: str, tmp_path: Path) -> None:
    examples = glue.read(file_of(tmp_path, LAYOUTS[name][0]), name)
    tokenizer = tokenizer_of(QUOTED, "books this good is who left he dull.")
    windows = glue.features(examples, name, tokenizer, max_seq_length=60)
    for row, example in enumerate(examples):
        ids = tokenizer.encode(example.first)
        other = None if example.second is None else tokenizer.encode(example.second)
        joined, types = tokenizer.join(ids, other)
        assert len(joined) <= 60, "the texts are short here"
        assert windows.ids[row, windows.mask[row]].tolist() == joined
        assert windows.token_types[row, : len(types)].tolist() == types
        assert windows.labels[row] == np.float32(example.label or 0)
    wanted = np.float32 if name == "STS-B" else np.int32
    assert windows.labels.dtype == wanted
    unlabelled = glue.read(file_of(tmp_path, LAYOUTS[name][1]), name, labelled=False)
    blind = glue.features(unlabelled, name, tokenizer, max_seq_length=60)
    missing = np.full(len(examples), np.nan if name == "STS-B" else -1, wanted)
    assert_equal(blind, windows._replace(labels=missing))


def test_predictions_have_the_form_of_the_task() -> None:
    logits = np.array([[0.5, 0.2, 0.9], [3.0, 1.0, 2.0]])
    assert glue.predict("MNLI", logits).tolist() == [2, 0]
    assert glue.predict("STS-B", logits[:, :1]).tolist() == [0.5, 3.0]
    for name in ("RTE", "STS-B"):
        with pytest.raises(ValueError, match=r"logits \(2, 3\) must be \[N, [12]\]"):
            glue.predict(name, logits)


@pytest.mark.parametrize(
    ("name", "file", "count"),
    [
        ("CoLA", "CoLA/train.tsv", 8551),
        ("CoLA", "CoLA/test.tsv", 1063),
        ("SST-2", "SST-2/train.tsv.gz", 67349),
        ("SST-2", "SST-2/test.tsv", 1821),
        ("MRPC", "MRPC/train.tsv", 3668),
        ("MRPC", "MRPC/dev.tsv", 408),
        ("MRPC", "MRPC/test-first600.tsv", 600),
        ("MRPC", "MRPC/msr_paraphrase_test-first600.txt", 600),
        ("STS-B", "STS-B/train.tsv", 5749),
        ("STS-B", "STS-B/dev.tsv", 1500),
        ("QQP", "QQP/sample.tsv", 18),
        ("QQP", "mini/QQP/train.tsv", 1),
        ("QQP", "mini/QQP/test.tsv", 1),
        ("MNLI", "MNLI/train-sample.tsv", 198),
        ("MNLI", "MNLI/dev_matched-sample.tsv", 103),
        ("MNLI", "mini/MNLI/train.tsv", 1),
        ("MNLI", "mini/MNLI/dev_mismatched.tsv", 1),
        ("MNLI", "mini/MNLI/test_mismatched.tsv", 1),
        ("QNLI", "QNLI/dev-first3500.tsv.gz", 3500),
        ("RTE", "RTE/train.tsv", 2490),
        ("RTE", "RTE/test.tsv.gz", 3000),
        ("WNLI", "WNLI/train.tsv", 635),
        ("WNLI", "WNLI/test.tsv", 146),
    ],
)
def test_real_files_are_read_whole(name: str, file: str, count: int) -> None:
    path = data_path(f"glue/{file}")
    labelled = "test" not in path.name or path.name.startswith("msr")
    examples = glue.read(path, name, labelled=labelled)
    assert len(examples) == count
    labels = Counter(example.label for example in examples)
    if not labelled:
        assert labels == {None: count}
    elif name == "STS-B":
        assert min(labels) == 0 and max(labels) == 5  # type: ignore[type-var]
    elif count > 20:
        assert sorted(labels) == list(range(len(glue.task(name).labels)))  # type: ignore[type-var]


SWAG = ",video-id,fold-ind,startphrase,sent1,sent2,gold-source,ending0,ending1,ending2,ending3"
ROW = '0,v,1,"A ""b"", c. She",He sits.,She,gold,"runs, and\nsings.",sits.,"says ""x"".",goes.'


def swag_file(folder: Path, *lines: str) -> Path:
    path = folder / "swag.csv"
    path.write_bytes("\n".join([*lines, ""]).encode())
    return path


def test_swag_is_read(tmp_path: Path) -> None:
    endings = ("runs, and\nsings.", "sits.", 'says "x".', "goes.")
    for label in range(4):
        path = swag_file(tmp_path, f"{SWAG},label", f"{ROW},{label}")
        assert swag.read(path) == (swag.Example("He sits.", "She", endings, label),)
        assert swag.read(path, labelled=False)[0].label is None
    path = swag_file(tmp_path, SWAG, ROW)
    assert swag.read(path, labelled=False) == (swag.Example("He sits.", "She", endings, None),)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((SWAG, ROW), "line 1: no column 'label' among"),
        (("index\tsentence", "0\tx"), "line 1: no column 'sent1' among"),
        ((f"{SWAG},label", f"{ROW},1", f"{ROW},4"), "line 5, column 'label': '4' is not one of"),
        ((f"{SWAG},label", ROW), "line 3: wrong number of columns: none for 'label'"),
        ((f"{SWAG},label", f"{ROW},1,2"), "line 3: wrong number of columns: more than the header"),
        ((f"{SWAG},label", '0,"v'), r"line 2: not csv \(a quote is not closed\)"),
        ((f"{SWAG},label",), "holds no examples"),
        ((), "line 1: no column 'sent1'"),
    ],
)
def test_wrong_swag_files_are_named(lines: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"swag.csv.*{message}") as error:
        swag.read(swag_file(tmp_path, *lines))
    assert "\n" not in str(error.value)


def test_each_ending_is_a_row() -> None:
    examples = [
        swag.Example("He sits down.", "She", ("runs.", "sits.", "goes " * 20, ""), 2),
        swag.Example("He " * 30, "It", ("is.", "was.", "will.", "may."), None),
    ]
    tokenizer = tokenizer_of("he sits down. she runs. goes it is was will may")
    windows = swag.features(examples, tokenizer, max_seq_length=16)
    assert windows.ids.shape == (2, 4, 16) and windows.labels.tolist() == [2, -1]
    for at, example in enumerate(examples):
        for choice, ending in enumerate(example.endings):
            first = tokenizer.encode(example.context)
            second = tokenizer.encode(example.start) + tokenizer.encode(ending)
            while len(first) + len(second) > 13:
                (first if len(first) > len(second) else second).pop()
            joined, types = tokenizer.join(first, second)
            kept = windows.mask[at, choice]
            assert windows.ids[at, choice, kept].tolist() == joined
            assert windows.token_types[at, choice, kept].tolist() == types
            assert kept.sum() == len(joined)


@pytest.mark.parametrize(("file", "count"), [("train-sample", 91), ("val-cats-600", 600)])
def test_real_swag_files_are_read_whole(file: str, count: int) -> None:
    examples = swag.read(data_path(f"swag/{file}.csv"))
    assert len(examples) == count
    assert {example.label for example in examples} == {0, 1, 2, 3}


CONVERSIONS: list[tuple[str, Callable[..., Any]]] = [
    ("glue", lambda n, **kw: glue.features([glue.Example("a", "b", 1)] * n, "RTE", **kw)),
    ("swag", lambda n, **kw: swag.features([swag.Example("a", "b", ("c",) * 4, 1)] * n, **kw)),
]


@pytest.mark.parametrize(("name", "make"), CONVERSIONS)
def test_conversions_are_kept(name: str, make: Callable[..., Any], tmp_path: Path) -> None:
    tokenizer = tokenizer_of("a b c")
    first = make(2, tokenizer=tokenizer, cache=tmp_path)
    assert_equal(make(2, tokenizer=tokenizer, cache=tmp_path), first)
    assert len(list(tmp_path.iterdir())) == 1
    make(2, tokenizer=tokenizer, cache=tmp_path, max_seq_length=64)
    make(2, tokenizer=tokenizer_of("a b"), cache=tmp_path)
    assert len(list(tmp_path.glob(f"{name}-*.npz"))) == 3
    with pytest.raises(ValueError, match="max_seq_length=4 must be at least 5"):
        make(2, tokenizer=tokenizer, max_seq_length=4)
    assert [len(array) for array in make(0, tokenizer=tokenizer)] == [0, 0, 0, 0]
