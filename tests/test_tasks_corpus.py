"""Text for language-model tuning: pairs, masks, and randomness that depends on nothing but keys."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import data_path
from test_tasks_features import assert_equal, tokenizer_of

from fnlm.tasks import corpus
from fnlm.tasks.features import digest
from fnlm.tokenize import bert

# Each word occurs once, so a token tells its sentence.
LENGTHS = ((5, 3, 9, 1, 7, 2, 8, 6), (4,), (11, 2, 2, 3, 10), (30, 3), tuple(range(1, 20)))
DOCUMENTS: list[list[str]] = []
for _document, _lengths in enumerate(LENGTHS):
    DOCUMENTS.append(
        [
            " ".join(f"w{_document}x{_sentence}y{at}" for at in range(length))
            for _sentence, length in enumerate(_lengths)
        ]
    )
MARKS = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [word for document in DOCUMENTS for text in document for word in text.split()]
TOKENIZER = bert.Tokenizer({token: at for at, token in enumerate(MARKS + WORDS)})
CORPUS = corpus.encode(DOCUMENTS, TOKENIZER)
FIRST = len(MARKS)  # token i of the corpus has the id FIRST + i

# The content of all rows of the corpus above under key 7. It must never change: a run that is taken
# up again, perhaps with another version of NumPy, goes on with the same rows.
GOLDEN = {
    "documents": "642c5f0862fbf724ba6bd350d2fe99cffe386697",
    "sentences": "d1e7c0e253d8f41654a2ff2de36775e98a4bef99",
}


def make(key: int = 7, **settings: Any) -> corpus.Features:
    return corpus.features(CORPUS, TOKENIZER, key, **settings)


def document_of(token: int) -> int:
    sentence = np.searchsorted(CORPUS.sentences, token, side="right") - 1
    return int(np.searchsorted(CORPUS.documents, sentence, side="right")) - 1


def texts_of(rows: corpus.Features, row: int) -> tuple[list[int], list[int]]:
    """The places in the corpus of the tokens of both texts, with what was masked put back."""
    ids = np.where(rows.lm_labels[row] >= 0, rows.lm_labels[row], rows.ids[row])[rows.mask[row]]
    types = rows.token_types[row][rows.mask[row]]
    begin, end = TOKENIZER.tokens_to_ids(["[CLS]", "[SEP]"])
    first, second = ids[types == 0].tolist(), ids[types == 1].tolist()
    assert first[0] == begin and first[-1] == second[-1] == end
    return [at - FIRST for at in first[1:-1]], [at - FIRST for at in second[:-1]]


def test_a_corpus_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("\n\n one. \ntwo\u2028!\n \t\n\nthree\n\n", encoding="utf-8")
    assert corpus.read(path) == (("one.", "two\u2028!"), ("three",))
    path.write_text(" \n\n")
    with pytest.raises(ValueError, match="x.txt holds no sentences"):
        corpus.read(path)
    with pytest.raises(FileNotFoundError, match="'.*y.txt' is no file"):
        corpus.read(tmp_path / "y.txt")


def test_a_corpus_is_encoded(tmp_path: Path) -> None:
    assert CORPUS.ids.tolist() == [FIRST + at for at in range(len(WORDS))]
    lengths = [length for document in LENGTHS for length in document]
    assert np.diff(CORPUS.sentences).tolist() == lengths
    assert np.diff(CORPUS.documents).tolist() == [len(document) for document in LENGTHS]
    odd = [["\u200b"], [WORDS[3], "\u200b", WORDS[5]], ["", ""], [WORDS[8]], []]
    for _ in range(2):
        got = corpus.encode(odd, TOKENIZER, cache=tmp_path)
        assert [array.tolist() for array in got] == [
            *([FIRST + 3, FIRST + 5, FIRST + 8], [0, 1, 2, 3], [0, 2, 3])
        ]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("key", range(6))
@pytest.mark.parametrize("pairing", ["documents", "sentences"])
@pytest.mark.parametrize("length", [5, 12, 40, 200])
def test_rows_are_pairs_of_the_corpus(key: int, pairing: corpus.Pairing, length: int) -> None:
    rows = make(key, pairing=pairing, max_seq_length=length)
    assert [array.dtype for array in rows] == [np.int32, np.int32, np.bool_, np.int32, np.int32]
    covered: list[int] = []
    for row, label in enumerate(rows.next_labels.tolist()):
        first, second = texts_of(rows, row)
        for text in (first, second):
            assert text and text == list(range(text[0], text[-1] + 1))
            assert document_of(text[0]) == document_of(text[-1])
        same = document_of(first[0]) == document_of(second[0])
        assert same == (label == 0)
        covered += first + (second if same else [])
        if same:
            assert second[0] > first[-1]
            assert second[0] == first[-1] + 1 or len(first) + len(second) == length - 3
    if length == 200 and pairing == "documents":  # where nothing is cut, nothing is lost
        assert covered == list(range(len(WORDS)))
    if pairing == "sentences":
        assert len(rows.ids) == sum(len(document) - 1 for document in LENGTHS)


@pytest.mark.parametrize(
    ("fraction", "most"), [(0.15, 20), (0.15, 2), (0.0, 20), (1.0, 1000), (0.5, 7)]
)
def test_a_fixed_share_is_masked(fraction: float, most: int) -> None:
    rows = make(masked_fraction=fraction, max_masked=most, max_seq_length=40)
    for row in range(len(rows.ids)):
        size = int(rows.mask[row].sum()) - 3
        places = np.flatnonzero(rows.lm_labels[row] >= 0)
        assert len(places) == min(most, max(1, round(size * fraction)))
        assert (rows.lm_labels[row, places] >= FIRST).all()
        assert not np.isin(rows.lm_labels[row], range(FIRST)).any()


def many(**settings: Any) -> list[corpus.Features]:
    return [make(3, epoch=epoch, **settings) for epoch in range(60)]


def test_shares_are_as_promised() -> None:
    """80 % masked, 10 % any token, 10 % left; half of the second texts are random."""
    epochs = many(pairing="sentences", max_seq_length=64, masked_fraction=0.5)
    label = np.concatenate([rows.lm_labels[rows.lm_labels >= 0] for rows in epochs])
    given = np.concatenate([rows.ids[rows.lm_labels >= 0] for rows in epochs])
    n = len(label)
    mask = TOKENIZER.tokens_to_ids(["[MASK]"])[0]
    for found, share in (
        ((given == mask).mean(), 0.8 + 0.1 / TOKENIZER.vocab_size),
        ((given == label).mean(), 0.1 + 0.1 / TOKENIZER.vocab_size),
        (np.concatenate([rows.next_labels for rows in epochs]).mean(), 0.5),
    ):
        size = n if share != 0.5 else sum(len(rows.ids) for rows in epochs)
        assert abs(found - share) < 4 * (share * (1 - share) / size) ** 0.5
    others = given[(given != mask) & (given != label)]
    assert abs(others.mean() / TOKENIZER.vocab_size - 0.5) < 4 / (12 * len(others)) ** 0.5


def test_each_sentence_of_other_documents_is_as_likely() -> None:
    counts = np.zeros(len(CORPUS.sentences) - 1)
    expected = np.zeros_like(counts)
    owners = np.repeat(np.arange(len(LENGTHS)), [len(document) for document in LENGTHS])
    for rows in many(pairing="sentences"):
        for row in np.flatnonzero(rows.next_labels == 1):
            first, second = texts_of(rows, int(row))
            counts[np.searchsorted(CORPUS.sentences, second[0], side="right") - 1] += 1
            other = owners != document_of(first[0])
            expected += other / other.sum()
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < len(counts) + 4 * (2 * len(counts)) ** 0.5


def test_each_place_is_as_likely_to_be_masked() -> None:
    counts = np.zeros(33)
    for rows in many(max_seq_length=33, short_probability=0.0):
        full = rows.mask.all(axis=1)
        counts += (rows.lm_labels[full] >= 0).sum(axis=0)
    inner = counts[1:-1][counts[1:-1] > 0]
    # [SEP] between the texts lies anywhere and takes its share off: compare the halves only.
    assert counts[0] == counts[-1] == 0
    half, total = counts[1:16].sum(), counts[1:31].sum()
    assert abs(half / total - 0.5) < 4 * (0.25 / total) ** 0.5 and len(inner) == 31


def test_short_pieces() -> None:
    short, long = (make(5, short_probability=p, max_seq_length=40) for p in (1.0, 0.0))
    assert short.mask.sum() / len(short.mask) < long.mask.sum() / len(long.mask)
    assert len(short.mask) > len(long.mask)


@pytest.mark.parametrize("pairing", ["documents", "sentences"])
@pytest.mark.parametrize("chunk", [1, 2, 7])
def test_chunks_do_not_show(
    pairing: corpus.Pairing, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make(pairing=pairing)
    monkeypatch.setattr("fnlm.tasks.features.CHUNK", chunk)
    assert_equal(make(pairing=pairing), whole)


def test_processes_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fnlm.tasks.features.CHUNK", 2)
    assert_equal(make(workers=2), make())


def test_a_document_has_its_own_draws() -> None:
    """Rows of a document depend on the others only where they take a random text from them."""
    more = [*DOCUMENTS, ["w0x0y0 w0x0y1"]]
    grown = corpus.features(corpus.encode(more, TOKENIZER), TOKENIZER, 7, max_seq_length=200)
    plain = make(max_seq_length=200)
    assert grown.next_labels[: len(plain.ids)].tolist() == plain.next_labels.tolist()


def test_other_keys_and_epochs_give_other_rows() -> None:
    found = {
        make(key, epoch=epoch).ids.tobytes()
        for key in (0, 1, 2**64, 2**128 - 1)
        for epoch in (0, 1, 2**64 - 1)
    }
    assert len(found) == 12


@pytest.mark.parametrize("pairing", ["documents", "sentences"])
def test_rows_never_change(pairing: corpus.Pairing) -> None:
    assert digest(*make(pairing=pairing, max_seq_length=32)) == GOLDEN[pairing]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"key": -1}, r"key=-1 must be from 0 to 2\*\*128 - 1"),
        ({"key": 2**128}, "key=.* must be from 0"),
        ({"epoch": -1}, "epoch=-1 must be from 0"),
        ({"pairing": "words"}, "pairing='words' must be 'documents' or 'sentences'"),
        ({"max_seq_length": 4}, "max_seq_length=4 must be at least 5"),
        ({"short_probability": 1.1}, "short_probability=1.1 must be from 0 to 1"),
        ({"masked_fraction": -0.1}, "masked_fraction=-0.1 must be from 0 to 1"),
        ({"max_masked": 0}, "max_masked=0 must be at least 1"),
    ],
)
def test_wrong_numbers_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_one_document_is_not_enough() -> None:
    with pytest.raises(ValueError, match="has 1 documents; random next sentences need"):
        corpus.features(corpus.encode(DOCUMENTS[:1], TOKENIZER), TOKENIZER, 7)


def test_a_real_corpus() -> None:
    documents = corpus.read(data_path("lm/sample_text.txt"))
    assert [len(document) for document in documents] == [3, 13, 15]
    tokenizer = tokenizer_of(*(text for document in documents for text in document))
    rows = corpus.features(corpus.encode(documents, tokenizer), tokenizer, 1)
    assert len(rows.ids) > 5 and not (rows.ids == 0).any()  # no [UNK]
