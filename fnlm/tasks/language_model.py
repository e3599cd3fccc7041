"""Text for language models: token ids on disk, and batches that can resume at any position.

Letters: M ids in S sentences (lines), B rows of a batch, T ids of a row that are to be predicted,
E ids in front of them.

A batch is a function of the text, of a key and of a position. The position after a batch is part of
it: give it as `start`, and the next batch is what it would have been. Choices are the outputs of
the Philox4x64 counter generator with that key, its counter starting at an epoch and a number.

Source: `data_utils.py` of kimiyoung/transformer-xl, and pytorch-pretrained-BERT 0.6.2, whose
batches these equal where nothing is drawn. Deviations: there, sentences without ids spoil a batch,
E > T fails for sentences, and batches of varying lengths leave out the last id.
"""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from fnlm.tasks._draws import Draws
from fnlm.tasks._types import Ints

_Longs = npt.NDArray[np.int64]
_P = TypeVar("_P")
_FILES = ("ids.int32", "borders.int64")  # little-endian
_BLOCK = 1 << 16  # ids to be written at once


class Text(NamedTuple):
    """The ids of a text: arrays in memory or on disk."""

    ids: Ints  # [M]
    borders: _Longs  # [S + 1] sentence s is ids[borders[s] : borders[s + 1]]


class Batch(NamedTuple, Generic[_P]):
    """Inputs and targets of a model, and the position of the next batch."""

    inputs: _Longs  # [B, E + T]
    targets: _Longs  # [B, T] the ids that follow each of the last T inputs
    position: _P


class Place(NamedTuple):
    """The position of the rows of a batch of sentences."""

    texts: int  # how many texts have been consumed
    sentences: int  # how many sentences of the current text the rows have taken
    rests: _Longs  # [B, 2] the remainder ids[begin:end] of each row's sentence
    context: _Longs  # [B, 0 to E] the ids in front


def gather(sentences: Iterable[Sequence[int]]) -> Text:
    """Return the ids of sentences as arrays in memory.

    Args:
        sentences: the ids of each, such as of `transfo_xl.Tokenizer.encode_file`.

    Raises:
        ValueError: there are no ids.

    Example:
        >>> [array.tolist() for array in gather([[5, 6], [], [7]])]
        [[5, 6, 7], [0, 2, 2, 3]]
    """
    blocks = [*_blocks(sentences)]
    ids = np.concatenate([ids for ids, _ in blocks])
    borders = np.concatenate([np.zeros(1, np.int64), *(ends for _, ends in blocks)])
    return _validated(Text(ids, borders), "the text")


def store(sentences: Iterable[Sequence[int]], directory: str | Path) -> Text:
    """Write the ids of sentences as they come to a directory, and map them; see `gather`.

    The memory that it takes is that of the longest sentence. The files appear whole or not at all.

    Raises:
        ValueError: there are no ids.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     text = store(iter([[5, 6], [7]]), folder)
        ...     text.ids.tolist(), read(folder).borders.tolist()
        ([5, 6, 7], [0, 2, 3])
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    parts = [directory / f"{name}.part" for name in _FILES]
    with open(parts[0], "wb") as ids_file, open(parts[1], "wb") as borders_file:
        borders_file.write(bytes(8))
        for ids, ends in _blocks(sentences):
            ids_file.write(ids.tobytes())
            borders_file.write(ends.tobytes())
    for part, name in zip(parts, _FILES, strict=True):
        os.replace(part, directory / name)
    return read(directory)


def read(directory: str | Path) -> Text:
    """Memory-map the ids that `store` wrote.

    Raises:
        FileNotFoundError: they are not there.
        ValueError: there are no ids, or the files do not belong together.

    Example:
        >>> read("./no/such/directory")
        Traceback (most recent call last):
        ...
        FileNotFoundError: ... store the ids of a text there
    """
    paths = [Path(directory) / name for name in _FILES]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there; store the ids of a text there")
        if path.stat().st_size == 0:
            raise ValueError(f"{path} is empty; store the ids of a text that is not")
    ids = np.memmap(paths[0], np.dtype("<i4"), "r")
    return _validated(Text(ids, np.memmap(paths[1], np.dtype("<i8"), "r")), str(directory))


def _blocks(sentences: Iterable[Sequence[int]]) -> Iterator[tuple[Ints, _Longs]]:
    """Yield the ids of some sentences, and where each of these ends in the text."""
    ids: list[int] = []
    ends: list[int] = []
    done = 0
    for sentence in sentences:
        ids += sentence
        ends.append(done + len(ids))
        if len(ids) + len(ends) >= _BLOCK:
            yield np.array(ids, "<i4"), np.array(ends, "<i8")
            done += len(ids)
            ids, ends = [], []
    yield np.array(ids, "<i4"), np.array(ends, "<i8")


def _validated(text: Text, name: str) -> Text:
    if not len(text.ids) or len(text.borders) < 2 or text.borders[-1] != len(text.ids):
        raise ValueError(
            f"{name} has {len(text.ids)} ids and the last sentence ends at {text.borders[-1]}; "
            "gather or store a text that is not empty"
        )
    return text


def ordered(
    ids: npt.NDArray[np.integer[Any]],
    batch_size: int,
    length: int,
    *,
    extra: int = 0,
    key: int | None = None,
    start: int = 0,
) -> Iterator[Batch[int]]:
    """Yield a text in order: it is cut into B columns, and each batch goes on with all of them.

    What does not fill the columns is left out. The last batch may be shorter.

    Args:
        ids: [M], in memory or on disk.
        batch_size: B.
        length: T.
        extra: E, how many ids in front of those that are new; at the beginning there are fewer.
        key: None, or 0 <= key < 2**128: then lengths vary, as to make a model robust: half of T in
            one of twenty batches, else T; to this a number is added whose standard deviation is 5,
            and the sum kept from 5 to T + 15.
        start: how many ids of each column to pass over, the `position` of the batch before.

    Yields:
        batches whose position is a number of ids.

    Raises:
        ValueError: a number is out of range, or the text is too short for B columns.

    Example:
        >>> [(x.tolist(), y.tolist(), at) for x, y, at in ordered(np.arange(11), 2, 3, extra=1)]
        [([[0, 1, 2], [5, 6, 7]], [[1, 2, 3], [6, 7, 8]], 3), ([[2, 3], [7, 8]], [[4], [9]], 4)]
    """
    _check(batch_size=(batch_size, 1), length=(length, 1), extra=(extra, 0), start=(start, 0))
    each = len(ids) // batch_size
    if each < 2:
        raise ValueError(
            f"{len(ids)} ids are too few for batch_size={batch_size}: a column needs at least 2"
        )
    columns = ids[: each * batch_size].reshape(batch_size, each)

    def batches() -> Iterator[Batch[int]]:
        begin = start
        while begin < each - 1:
            end = min(begin + (length if key is None else _length(key, begin, length)), each - 1)
            inputs = columns[:, max(0, begin - extra) : end].astype(np.int64)  # [B, E + T]
            yield Batch(inputs, columns[:, begin + 1 : end + 1].astype(np.int64), end)
            begin = end

    return batches()


def _length(key: int, position: int, length: int) -> int:
    draws = Draws(key, 0, position).uniform(13)
    middle = length if draws[0] < 0.95 else length / 2
    # The sum of twelve such numbers is nearly normal, and the same on every machine.
    return min(length + 15, max(5, int(middle + 5 * (math.fsum(draws[1:]) - 6))))


def sentences(
    texts: Sequence[Text],
    batch_size: int,
    length: int,
    *,
    extra: int = 0,
    key: int | None = None,
    epoch: int = 0,
    start: Place | None = None,
) -> Iterator[Batch[Place]]:
    """Yield sentences that have no order: each row takes the next one when it has used up its own.

    Texts follow each other; what does not fill a batch at the end of each is left out.

    Args:
        texts: at least one, such as the files of a corpus; one is looked at at a time.
        batch_size: B.
        length: T, of every batch.
        extra: E, how many ids of the batches before are in front of the inputs.
        key: None for texts and sentences as they are, or 0 <= key < 2**128: an order of them. To
            draw it takes 16 bytes a sentence of one text.
        epoch: with another number, the same key gives another order.
        start: where to begin, the `position` of the batch before.

    Yields:
        batches whose position is a `Place`.

    Raises:
        ValueError: a number is out of range, there are no texts, or `start` is of another batch
            size.

    Example:
        >>> text = gather([[1, 2, 3], [4, 5], [6, 7, 8, 9]])
        >>> [(x.tolist(), y.tolist()) for x, y, _ in sentences([text], 1, 2)]
        [([[1, 2]], [[2, 3]]), ([[4, 6]], [[5, 7]]), ([[7, 8]], [[8, 9]])]
    """
    _check(batch_size=(batch_size, 1), length=(length, 1), extra=(extra, 0), epoch=(epoch, 0))
    if not len(texts):
        raise ValueError("texts must hold at least one text")
    start = _beginning(0, batch_size) if start is None else start
    if start.rests.shape != (batch_size, 2):
        raise ValueError(
            f"start is of a batch of {len(start.rests)} rows; give the same batch_size, not "
            f"{batch_size}"
        )

    def batches(place: Place) -> Iterator[Batch[Place]]:
        numbers = _order(len(texts), key, epoch, 0)
        while place.texts < len(texts):
            number = int(numbers[place.texts])
            text = texts[number]
            order = _order(len(text.borders) - 1, key, epoch, number + 1)
            while (batch := _fill(text, order, place, length, extra)) is not None:
                yield batch
                place = batch.position
            place = _beginning(place.texts + 1, batch_size)

    return batches(start)


def _beginning(texts: int, batch_size: int) -> Place:
    nothing = np.zeros((batch_size, 2), np.int64)
    return Place(texts, 0, nothing, nothing[:, :0])


def _order(count: int, key: int | None, epoch: int, place: int) -> Sequence[int] | _Longs:
    return range(count) if key is None else Draws(key, epoch, place).order(count)


def _fill(
    text: Text, order: Sequence[int] | _Longs, place: Place, length: int, extra: int
) -> Batch[Place] | None:
    """Return the batch from a place on; None if there are too few sentences left."""
    new = np.empty((2, len(place.rests), length), np.int64)
    rests, taken = place.rests.copy(), place.sentences
    for row, (begin, end) in enumerate(place.rests.tolist()):
        filled = 0
        while filled < length:
            if end - begin <= 1:  # the last id of a sentence is only a target
                if taken == len(order):
                    return None
                begin, end = text.borders[order[taken] :][:2].tolist()
                taken += 1
            count = max(0, min(end - begin - 1, length - filled))
            ids = text.ids[begin : begin + count + 1]
            new[0, row, filled : filled + count] = ids[:count]
            new[1, row, filled : filled + count] = ids[1 : count + 1]
            begin, filled = begin + count, filled + count
        rests[row] = begin, end
    inputs = np.concatenate([place.context, new[0]], axis=1)
    context = inputs[:, inputs.shape[1] - min(extra, inputs.shape[1]) :]
    return Batch(inputs, new[1], Place(place.texts, taken, rests, context))


def _check(**numbers: tuple[int, int]) -> None:
    for name, (value, least) in numbers.items():
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}")
