"""Pretraining examples for BERT: pairs of sentences with some of their tokens masked.

A corpus is a text file with a sentence a line and a blank line between documents. A row is::

    [CLS] first [SEP] second [SEP]

where `second` follows `first` in its document or, half of the time, is from another document; 15 %
of the tokens are to be predicted by the model, most of them replaced by [MASK].

All choices are functions of a key (an integer), an epoch and the index of a document or sentence:
draw i is the i-th output of the Philox4x64 counter generator with that key, whose counter starts at
these numbers. So the same key gives the same rows in any order, in any chunks and in any number of
processes, and a run that was interrupted goes on at any place.

Sources: Devlin et al. 2018, section 3.1 and appendix A.2, and `create_pretraining_data.py` of its
code. Salmon et al. 2011 (Philox). Deviations: a random sentence is never of the same document,
where the original tries ten times; every row masks a fixed share of its tokens, also of sentence
pairs.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from fnlm.tasks import _read
from fnlm.tasks._draws import Draws
from fnlm.tasks._types import Bools, Ints, Progress, Source, Tokenizer
from fnlm.tasks.features import SpecialTokens, convert, rows, special_tokens, truncate_pair

Pairing = Literal["documents", "sentences"]
_Longs = npt.NDArray[np.int64]


class Corpus(NamedTuple):
    """The ids of a corpus; S sentences in D documents, M tokens in all."""

    ids: Ints  # [M]
    sentences: _Longs  # [S + 1] sentence s is ids[sentences[s] : sentences[s + 1]]
    documents: _Longs  # [D + 1] document d has the sentences documents[d] to documents[d + 1] - 1


class _Pair(NamedTuple):
    """Two texts of a row."""

    first: list[int]
    second: list[int]
    is_random: bool  # whether the second is from another document


class Features(NamedTuple):
    """Rows for a model: N pairs of T tokens."""

    ids: Ints  # [N, T] with masked tokens
    token_types: Ints  # [N, T]
    mask: Bools  # [N, T]
    lm_labels: Ints  # [N, T] the original id where it is to be predicted, else -1
    next_labels: Ints  # [N] 0: the second text follows the first, 1: it is a random one


def read(source: Source) -> tuple[tuple[str, ...], ...]:
    r"""Read a corpus: documents of sentences.

    Args:
        source: a file, perhaps compressed by gzip; or dicts with the column "text", such as a data
            set of the package `datasets`, whose texts are the lines of such a file: one row may be
            a line or several.

    Raises:
        FileNotFoundError: the file is not there.
        TypeError: a row is no dict.
        ValueError: there is no sentence, or a row has no text.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "corpus.txt"
        ...     _ = path.write_text("One sentence.\nAnother one.\n\nA new document.\n")
        ...     read(path)
        (('One sentence.', 'Another one.'), ('A new document.',))
    """
    documents: list[list[str]] = [[]]
    for line in map(str.strip, _lines(source)):
        if line:
            documents[-1].append(line)
        elif documents[-1]:
            documents.append([])
    if not documents[0]:
        what = source if isinstance(source, str | Path) else "the corpus"
        raise ValueError(f"{what} holds no sentences; a corpus has one on each line")
    return tuple(tuple(document) for document in documents if document)


def _lines(source: Source) -> Iterable[str]:
    if isinstance(source, str | Path):
        return _read.read_lines(source)
    rows = _read.dict_rows(source, {"text": "text"})
    return (line for _, cells in rows for line in cells["text"].split("\n"))


class _Sentences(NamedTuple):
    ids: Ints  # [M]
    lengths: Ints  # [S]


def encode(
    documents: Sequence[Sequence[str]],
    tokenizer: Tokenizer,
    *,
    workers: int = 1,
    progress: Progress | None = None,
    cache: str | Path | None = None,
) -> Corpus:
    """Return the ids of a corpus; sentences that have no token, such as odd spaces, are left out.

    Args:
        documents: those of a file.
        tokenizer: BERT's.
        workers, progress, cache: as for `fnlm.tasks.features.convert`; records are sentences.

    Example:
        >>> from fnlm.tokenize import bert
        >>> tokenizer = bert.Tokenizer({"[UNK]": 0, "a": 1, "b": 2})
        >>> corpus = encode([["a b", "b"], ["a"]], tokenizer)
        >>> [array.tolist() for array in corpus]
        [[1, 2, 2, 1], [0, 2, 3, 4], [0, 2, 3]]
    """
    sentences = [sentence for document in documents for sentence in document]
    make = partial(_encode, tokenizer=tokenizer)
    ids, lengths = convert(
        make, sentences, _Sentences, workers=workers, progress=progress, cache=cache
    )
    owners = np.repeat(np.arange(len(documents)), [len(document) for document in documents])
    counts = np.bincount(owners[lengths > 0], minlength=len(documents))
    return Corpus(ids, _borders(lengths[lengths > 0]), _borders(counts[counts > 0]))


def _encode(sentences: Sequence[str], first: int, tokenizer: Tokenizer) -> _Sentences:
    del first  # ids do not depend on their position
    encoded = [tokenizer.encode(sentence) for sentence in sentences]
    ids = np.array(list(chain.from_iterable(encoded)), np.int32)
    return _Sentences(ids, np.array([len(sentence) for sentence in encoded], np.int32))


def _borders(lengths: npt.NDArray[Any]) -> _Longs:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


class _Settings(NamedTuple):
    key: int
    epoch: int
    pairing: Pairing
    max_seq_length: int
    short_probability: float
    masked_fraction: float
    max_masked: int
    mask_id: int
    vocab_size: int


def features(
    corpus: Corpus,
    tokenizer: Tokenizer,
    key: int,
    *,
    epoch: int = 0,
    pairing: Pairing = "documents",
    max_seq_length: int = 128,
    short_probability: float = 0.1,
    masked_fraction: float = 0.15,
    max_masked: int = 20,
    workers: int = 1,
    progress: Progress | None = None,
    cache: str | Path | None = None,
) -> Features:
    """Return the rows of one epoch.

    Of the tokens to be predicted, 80 % are replaced by [MASK], 10 % by any token of the vocabulary,
    and 10 % are left. Where a pair is too long, the longer text loses a token off its front or its
    end until both fit.

    Args:
        corpus: at least two documents.
        tokenizer: the one that encoded it.
        key: 0 <= key < 2**128; the same key gives the same rows.
        epoch: with another number, the same key gives other rows.
        pairing: "documents": each document is cut into pieces as long as a row, and each piece into
            two texts of one or more sentences. "sentences": a row for each sentence but the last of
            a document, with the sentence after it.
        max_seq_length: T.
        short_probability: share of the documents that are cut into shorter pieces, of a random
            length, so that the model sees such rows, too. For `pairing="documents"`.
        masked_fraction: share of the tokens to be predicted, at least one in a row ...
        max_masked: ... and at most this many.
        workers, progress, cache: as for `fnlm.tasks.features.convert`; records are documents, or
            pairs of sentences.

    Raises:
        ValueError: there is only one document, so no random one, or a number is out of range.

    Example:
        >>> from fnlm.tokenize import bert
        >>> words = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"]
        >>> tokenizer = bert.Tokenizer({word: i for i, word in enumerate(words)})
        >>> corpus = encode([["a b", "b", "c a"], ["c c c"]], tokenizer)
        >>> rows = features(corpus, tokenizer, key=2, pairing="sentences", max_seq_length=8)
        >>> rows.ids.tolist(), rows.lm_labels.max(axis=1).tolist(), rows.next_labels.tolist()
        ([[2, 4, 6, 3, 6, 3, 1, 1], [2, 6, 3, 7, 4, 3, 1, 1]], [5, 5], [0, 0])
    """
    mask_id = tokenizer.tokens_to_ids(["[MASK]"])[0]
    settings = _Settings(
        *(key, epoch, pairing, max_seq_length, short_probability, masked_fraction, max_masked),
        *(mask_id, tokenizer.vocab_size),
    )
    _check(corpus, settings)
    units = np.arange(len(corpus.documents) - 1)
    if pairing == "sentences":
        last = corpus.documents[1:] - 1
        units = np.setdiff1d(np.arange(len(corpus.sentences) - 1), last)
    make = partial(_rows, corpus=corpus, special=special_tokens(tokenizer), settings=settings)
    return convert(make, units.tolist(), Features, workers=workers, progress=progress, cache=cache)


def _check(corpus: Corpus, settings: _Settings) -> None:
    if len(corpus.documents) < 3:
        raise ValueError(
            f"the corpus has {len(corpus.documents) - 1} documents; random next sentences need at "
            "least 2, so divide it by blank lines"
        )
    for name, valid, expected in (
        ("key", 0 <= settings.key < 1 << 128, "from 0 to 2**128 - 1"),
        ("epoch", 0 <= settings.epoch < 1 << 64, "from 0 to 2**64 - 1"),
        ("pairing", settings.pairing in ("documents", "sentences"), "'documents' or 'sentences'"),
        (
            "max_seq_length",
            settings.max_seq_length >= 5,
            "at least 5, for [CLS], two [SEP] and 2 tokens",
        ),
        ("short_probability", 0 <= settings.short_probability <= 1, "from 0 to 1"),
        ("masked_fraction", 0 <= settings.masked_fraction <= 1, "from 0 to 1"),
        ("max_masked", settings.max_masked >= 1, "at least 1"),
    ):
        if not valid:
            raise ValueError(f"{name}={getattr(settings, name)!r} must be {expected}")


def _rows(
    units: Sequence[int], first: int, corpus: Corpus, special: SpecialTokens, settings: _Settings
) -> Features:
    """Return the rows of some documents or sentences; they do not depend on `first`."""
    del first
    pairs: list[_Pair] = []
    masked: list[tuple[_Longs, npt.NDArray[np.float64], npt.NDArray[np.float64]]] = []
    for unit in units:
        draws = Draws(settings.key, settings.epoch, unit)
        for pair in _pairs(corpus, unit, draws, settings):
            pairs.append(pair)
            # The next pair of a document goes on with the same draws.
            masked.append(_choice(pair, draws, settings))
    ids, token_types, mask = rows(
        [(pair.first, pair.second) for pair in pairs], special, settings.max_seq_length
    )
    labels = np.full_like(ids, -1)
    for row, (positions, chance, replacements) in enumerate(masked):
        labels[row, positions] = ids[row, positions]
        # 80 % become [MASK], 10 % a random token, 10 % stay.
        random_ids = (replacements * settings.vocab_size).astype(np.int32)
        others = np.where(chance < 0.9, ids[row, positions], random_ids)
        ids[row, positions] = np.where(chance < 0.8, settings.mask_id, others)
    next_labels = np.array([pair.is_random for pair in pairs], np.int32)
    return Features(ids, token_types, mask, labels, next_labels)


def _choice(
    pair: _Pair, draws: Draws, settings: _Settings
) -> tuple[_Longs, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Draw the masked positions of a row, and two uniform numbers for each: the case, a token."""
    a, b = len(pair.first), len(pair.second)
    share = max(1, round((a + b) * settings.masked_fraction))
    count = min(share, settings.max_masked, a + b)
    chosen = np.argsort(draws.uniform(a + b), kind="stable")[:count]
    # Past [CLS] and, in the second text, past [SEP].
    return chosen + 1 + (chosen >= a), draws.uniform(count), draws.uniform(count)


def _pairs(corpus: Corpus, unit: int, draws: Draws, settings: _Settings) -> Iterator[_Pair]:
    room = settings.max_seq_length - 3
    if settings.pairing == "documents":
        pairs = _document_pairs(corpus, unit, draws, room, settings.short_probability)
    else:
        pairs = _sentence_pair(corpus, unit, draws)
    for first, second, is_random in pairs:
        lengths = truncate_pair(len(first), len(second), room)
        yield _Pair(_cut(first, lengths[0], draws), _cut(second, lengths[1], draws), is_random)


def _sentence_pair(corpus: Corpus, sentence: int, draws: Draws) -> Iterator[_Pair]:
    """Yield a sentence and the next one, or one of another document."""
    is_random = draws.below(2) == 1
    document = int(np.searchsorted(corpus.documents, sentence, side="right")) - 1
    after = _elsewhere(corpus, document, draws) if is_random else sentence + 1
    yield _Pair(_text(corpus, sentence, sentence + 1), _text(corpus, after, after + 1), is_random)


def _document_pairs(
    corpus: Corpus, document: int, draws: Draws, room: int, short_probability: float
) -> Iterator[_Pair]:
    """Cut a document into pieces of about `room` tokens, and each into two texts."""
    start, stop = corpus.documents[document : document + 2].tolist()
    target = room
    if draws.uniform(1)[0] < short_probability:
        target = 2 + draws.below(room - 1)
    while start < stop:
        end = _reach(corpus, start, stop, target)
        cut = start + 1 + (draws.below(end - start - 1) if end - start > 1 else 0)
        first = _text(corpus, start, cut)
        is_random = cut == end or draws.below(2) == 1
        if is_random:  # the unused sentences of the piece begin the next one
            begin, start = _elsewhere(corpus, document, draws), cut
            other = int(np.searchsorted(corpus.documents, begin, side="right"))
            limit = int(corpus.documents[other])
            second = _text(corpus, begin, _reach(corpus, begin, limit, target - len(first)))
        else:
            second, start = _text(corpus, cut, end), end
        yield _Pair(first, second, is_random)


def _reach(corpus: Corpus, begin: int, stop: int, tokens: int) -> int:
    """Return the end of the fewest sentences, at least one, that have so many tokens."""
    end = int(np.searchsorted(corpus.sentences, corpus.sentences[begin] + tokens))
    return min(max(end, begin + 1), stop)


def _elsewhere(corpus: Corpus, document: int, draws: Draws) -> int:
    """Return a sentence of another document; each of them is equally likely."""
    begin, end = corpus.documents[document : document + 2].tolist()
    sentence = draws.below(len(corpus.sentences) - 1 - (end - begin))
    return sentence if sentence < begin else sentence + end - begin


def _text(corpus: Corpus, begin: int, end: int) -> list[int]:
    return corpus.ids[corpus.sentences[begin] : corpus.sentences[end]].tolist()


def _cut(text: list[int], length: int, draws: Draws) -> list[int]:
    """Truncate a text at its front and its end, where each token falls at random."""
    front = int((draws.uniform(len(text) - length) < 0.5).sum())
    return text[front : front + length]
