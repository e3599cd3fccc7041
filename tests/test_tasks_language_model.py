"""Batches of a text: equal to pytorch-pretrained-bert's, resumable at any position, in little memory."""

import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_pretrained_bert.tokenization_transfo_xl import (
    LMOrderedIterator,
    LMShuffledIterator,
)

from fnlm.tasks import language_model
from fnlm.tasks.language_model import Batch, Place, Text
from fnlm.tokenize import transfo_xl

SHORT = language_model.gather([[1, 2, 3], [4, 5, 6]])
GENERATOR = np.random.default_rng(7)
Arrays = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]


def arrays(batches: Iterable[Any]) -> list[Arrays]:
    """What a batch of either side holds."""
    return [(np.asarray(batch[0]), np.asarray(batch[1])) for batch in batches]


def assert_equal(found: list[Arrays], wanted: list[Arrays]) -> None:
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        for x, y in zip(ours, theirs, strict=True):
            assert x.dtype == y.dtype == np.int64
            np.testing.assert_array_equal(x, y)


def random_sentences(count: int, longest: int = 40, shortest: int = 1) -> list[list[int]]:
    lengths = GENERATOR.integers(shortest, longest + 1, count)
    return [GENERATOR.integers(0, 1000, length).tolist() for length in lengths]


# Text in order.


@pytest.mark.parametrize("ids", [20, 101, 1000])
@pytest.mark.parametrize(
    ("batch_size", "length", "extra"),
    [(1, 1, 0), (1, 7, 3), (3, 5, 0), (4, 7, 9), (10, 70, 20), (2, 1000, 1)],
)
def test_ordered_batches_equal_pytorch_pretrained_bert(
    ids: int, batch_size: int, length: int, extra: int
) -> None:
    text = GENERATOR.integers(0, 500, ids).astype(np.int32)
    theirs = LMOrderedIterator(torch.from_numpy(text).long(), batch_size, length, ext_len=extra)
    wanted = arrays(theirs)
    ours = language_model.ordered(text, batch_size, length, extra=extra)
    assert_equal(arrays(ours), wanted)
    at = length * (len(wanted) // 2)
    ours = language_model.ordered(text, batch_size, length, extra=extra, start=at)
    assert_equal(arrays(ours), arrays(theirs.get_fixlen_iter(at)))


def test_batches_of_varying_lengths_are_windows_of_pytorch_pretrained_bert() -> None:
    """The lengths are ours, by the key; what is in a window of that length is pytorch-pretrained-bert's."""
    ids = GENERATOR.integers(0, 500, 60_001)
    theirs = LMOrderedIterator(torch.from_numpy(ids), 3, 70, ext_len=8)
    at, lengths = 0, []
    for batch in language_model.ordered(ids, 3, 70, extra=8, key=5):
        lengths.append(batch.targets.shape[1])
        assert_equal([batch[:2]], arrays([theirs.get_batch(at, lengths[-1])]))
        at += lengths[-1]
        assert batch.position == at
    assert at == 20_000 - 1, "the last id of a column is a target"
    usual, short = [n for n in lengths[:-1] if n > 50], [n for n in lengths[:-1] if n <= 50]
    assert 5 <= min(lengths[:-1]) <= max(lengths) <= 85
    assert 0.01 < len(short) / len(lengths) < 0.12, "a twentieth is half as long"
    assert abs(np.mean(usual) - 69.5) < 1.5, "of T, rounded down"
    assert 3.5 < np.std(usual) < 6
    other = [b.targets.shape[1] for b in language_model.ordered(ids, 3, 70, key=6)]
    assert other != lengths


# Sentences without order.


@pytest.mark.parametrize("sentences", [1, 7, 60])
@pytest.mark.parametrize(
    ("batch_size", "length", "extra"), [(1, 1, 0), (1, 8, 3), (3, 5, 0), (4, 6, 6), (2, 50, 7)]
)
def test_sentences_equal_pytorch_pretrained_bert(
    sentences: int, batch_size: int, length: int, extra: int
) -> None:
    made = random_sentences(sentences)
    theirs = LMShuffledIterator([torch.tensor(s) for s in made], batch_size, length, ext_len=extra)
    # It yields a view of what it then writes to.
    wanted = arrays((x.clone(), y.clone()) for x, y, _ in theirs)
    text = language_model.gather(made)
    ours = language_model.sentences([text], batch_size, length, extra=extra)
    assert_equal(arrays(ours), wanted)
    again = language_model.sentences([text, text], batch_size, length, extra=extra)
    assert_equal(arrays(again), wanted * 2)  # as of LMMultiFileIterator, which begins anew


def test_what_is_in_front_may_be_longer_than_what_is_new() -> None:
    """pytorch-pretrained-bert fails there."""
    text = language_model.gather(random_sentences(60))
    new = [b.inputs for b in language_model.sentences([text], 3, 4)]
    for at, batch in enumerate(language_model.sentences([text], 3, 4, extra=10)):
        seen = np.concatenate(new[: at + 1], axis=1)
        np.testing.assert_array_equal(batch.inputs, seen[:, -14:])


def test_sentences_without_ids_are_passed_over() -> None:
    made = random_sentences(30)
    spaced = [part for sentence in made for part in ([], sentence, [9])]
    ours, wanted = (
        arrays(language_model.sentences([language_model.gather(some)], 2, 5))
        for some in (spaced, made)
    )
    assert len(wanted) > 10
    assert_equal(ours, wanted)


def starts(text: Text, key: int | None, epoch: int = 0, texts: int = 1) -> list[int]:
    """The order in which sentences, each of its own one id, come."""
    batches = language_model.sentences([text] * texts, 1, 1, key=key, epoch=epoch)
    return [int(batch.inputs[0, 0]) for batch in batches]


def test_a_key_gives_an_order_of_all_sentences() -> None:
    text = language_model.gather([[n, n] for n in range(500)])
    order = starts(text, 3)
    assert sorted(order) == list(range(500))
    assert starts(text, None) == list(range(500))
    assert starts(text, 3) == order
    others = [starts(text, 4), starts(text, 3, epoch=1), starts(text, 3 << 64)]
    twice = starts(text, 3, texts=2)
    assert sorted(twice[:500]) == sorted(twice[500:]) == list(range(500))
    for one, other in (*((order, other) for other in others), (twice[:500], twice[500:])):
        assert sum(a == b for a, b in zip(one, other, strict=True)) < 10


def test_a_key_gives_an_order_of_all_texts() -> None:
    texts = [language_model.gather([[n, n]]) for n in range(40)]
    order = [int(b.inputs[0, 0]) for b in language_model.sentences(texts, 1, 1, key=2)]
    assert sorted(order) == list(range(40)) != order


def test_every_id_but_the_first_of_a_sentence_is_a_target_once() -> None:
    made = random_sentences(200)
    batches = language_model.sentences([language_model.gather(made)], 1, 1, key=8)
    pairs = sorted((int(b.inputs[0, 0]), int(b.targets[0, 0])) for b in batches)
    assert pairs == sorted(pair for s in made for pair in zip(s, s[1:], strict=False))


# Going on.


def ways() -> dict[str, Callable[[Any], Iterator[Batch[Any]]]]:
    texts = [language_model.gather(random_sentences(n)) for n in (50, 3, 80)]
    ids = texts[2].ids

    def ordered(start: int | None, key: int | None = None) -> Iterator[Batch[int]]:
        return language_model.ordered(ids, 3, 11, extra=4, key=key, start=start or 0)

    def mixed(start: Place | None) -> Iterator[Batch[Place]]:
        return language_model.sentences(texts, 3, 11, extra=15, key=4, start=start)

    return {"ordered": ordered, "varying": lambda start: ordered(start, 9), "sentences": mixed}


@pytest.mark.parametrize("way", ["ordered", "varying", "sentences"])
def test_batches_go_on_at_any_position(way: str) -> None:
    batches = ways()[way]
    whole = [*batches(None)]
    assert len(whole) > 20
    positions = [None, *(batch.position for batch in whole)]
    for at, position in enumerate(positions):
        rest = [*batches(position)]
        assert_equal(arrays(rest), arrays(whole[at:]))
        if rest:
            np.testing.assert_equal(rest[0].position, whole[at].position)


def test_batches_are_arrays_of_their_own() -> None:
    text = language_model.gather(random_sentences(60))
    kept = text.ids.copy()
    ways: list[Iterator[Batch[Any]]] = [
        language_model.ordered(text.ids, 2, 5, extra=3),
        language_model.sentences([text], 2, 5, extra=3),
    ]
    for batches in ways:
        made = [*islice(batches, 5)]
        copies = [batch.inputs.copy() for batch in made]
        made[0].targets[:] = -1
        made[1].inputs[:] = -1
        np.testing.assert_equal([b.inputs for b in made[2:]], copies[2:])
    np.testing.assert_array_equal(text.ids, kept)


# Ids on disk.


def test_stored_ids_are_those_in_memory(tmp_path: Path) -> None:
    for made in (random_sentences(7000, shortest=0), [[5] * 200_000, [], [1, 2]]):
        held, stored = language_model.gather(made), language_model.store(iter(made), tmp_path)
        for ours in (held, stored, language_model.read(tmp_path)):
            assert ours.ids.tolist() == [at for sentence in made for at in sentence]
            assert np.diff(ours.borders).tolist() == [len(sentence) for sentence in made]
            assert (ours.ids.dtype, ours.borders.dtype) == (np.int32, np.int64)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["borders.int64", "ids.int32"]


def test_a_text_that_is_not_there_or_empty(tmp_path: Path) -> None:
    empty: list[list[list[int]]] = [[], [[]], [[], []]]
    for made in empty:
        with pytest.raises(ValueError, match="not empty"):
            language_model.gather(made)
        with pytest.raises(ValueError, match="is empty; store"):
            language_model.store(made, tmp_path)
    language_model.store([[1, 2], [3]], tmp_path)
    (tmp_path / "ids.int32").write_bytes(bytes(8))
    with pytest.raises(ValueError, match="has 2 ids and the last sentence ends at 3"):
        language_model.read(tmp_path)
    (tmp_path / "borders.int64").unlink()
    with pytest.raises(FileNotFoundError, match=r"borders.int64 is not there; store"):
        language_model.read(tmp_path)


def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    """From a file of words to the last batch: more ids than would fit."""
    line = "one two three four five six seven eight nine ten\n"
    tokenizer = transfo_xl.train([line], special=["<eos>"])

    def peak(repeats: int) -> int:
        path = tmp_path / "text.txt"
        path.write_text(line * repeats)
        tracemalloc.start()
        try:
            text = language_model.store(tokenizer.encode_file(path), tmp_path / "ids")
            batches: list[Iterator[Batch[Any]]] = [
                language_model.ordered(text.ids, 4, 1000, extra=20),
                language_model.sentences([text], 4, 1000, extra=20),
            ]
            tokens = sum(batch.targets.size for some in batches for batch in some)
            most = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert tokens > 20.5 * repeats
        return most

    small, large = peak(8_000), peak(40_000)
    assert large < 3 * 2**20, "and 440,000 ids are 3.5 MB as int64 alone"
    assert large < small * 1.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: language_model.ordered(np.arange(9), 0, 3), "batch_size=0 must be at least 1"),
        (lambda: language_model.ordered(np.arange(9), 2, 0), "length=0 must be at least 1"),
        (lambda: language_model.ordered(np.arange(9), 2, 3, extra=-1), "extra=-1 must be"),
        (lambda: language_model.ordered(np.arange(9), 2, 3, start=-1), "start=-1 must be"),
        (lambda: language_model.ordered(np.arange(9), 5, 3), "9 ids are too few for batch_size=5"),
        (lambda: next(language_model.ordered(np.arange(9), 2, 3, key=-1)), "key=-1 must be from"),
        (lambda: language_model.sentences([], 2, 3), "texts must hold at least one"),
        (
            lambda: language_model.sentences(
                [SHORT], 2, 3, start=next(language_model.sentences([SHORT], 1, 2)).position
            ),
            "start is of a batch of 1 rows; give the same batch_size, not 2",
        ),
    ],
)
def test_arguments_out_of_range_are_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
