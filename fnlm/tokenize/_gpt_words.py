"""The two pre-tokenizers of GPT, from a text to the lower-cased words that byte-pair encoding cuts.

Each has a fast path (chunks that can be cached, and the words of a chunk) and one with offsets.
"""

from collections.abc import Callable, Iterator
from functools import cache
from itertools import accumulate, pairwise
from typing import Literal, NamedTuple

from fnlm.tokenize import _bert_words, _english
from fnlm.tokenize._bpe import well_formed
from fnlm.tokenize._byte_level import with_origin
from fnlm.tokenize._fix_text import Span, clean

Mode = Literal["original", "fallback"]


class Word(NamedTuple):
    """A word, and the offsets of each of its characters in the text."""

    text: str
    offsets: list[Span]


class Way(NamedTuple):
    """A pre-tokenizer: how the words of a text are found."""

    chunks: Callable[[str], list[str]]  # text -> pieces that are cut independently
    words: Callable[[str], list[str]]  # chunk -> its words
    traced: Callable[[str], Iterator[Word]]  # text without surrogates -> its words, with offsets


def _chunks(text: str) -> list[str]:
    return clean(well_formed(text)).text.split(" ")


def _words(chunk: str) -> list[str]:
    return [word.lower() for word in _english.split(chunk)] if chunk else []


def _traced(text: str) -> Iterator[Word]:
    cleaned = clean(text, traced=True)
    spans = cleaned.offsets or []
    start = 0
    for chunk in cleaned.text.split(" "):
        for word in _english.split(chunk) if chunk else ():
            pairs = zip(word, spans[start : start + len(word)], strict=True)
            yield Word(word.lower(), [span for c, span in pairs for _ in c.lower()])
            start += len(word)
        start += 1  # the space


@cache
def _basic() -> tuple[_bert_words.Rules, _bert_words.Spacing]:
    profile = _bert_words.PROFILES["ppb-0.6.2"]
    rules = _bert_words.make_rules(profile, True, True, True, ())
    return rules, _bert_words.Spacing(rules)


def _basic_chunks(text: str) -> list[str]:
    rules, spacing = _basic()
    spaced = text.translate(spacing)
    if _bert_words.CARE in spaced:
        return [word.text for word in _bert_words.words(well_formed(text), rules)]
    return spaced.split()


def _basic_traced(text: str) -> Iterator[Word]:
    for word, starts, ends in _bert_words.words(text, _basic()[0]):
        yield Word(word, list(zip(starts, ends, strict=True)))


WAYS: dict[Mode, Way] = {
    "original": Way(_chunks, _words, _traced),
    "fallback": Way(_basic_chunks, lambda word: [word], _basic_traced),
}


def traced(text: str, way: Way) -> Iterator[Word]:
    """Yield the words of any text, with their offsets in it.

    Example:
        >>> [*traced("Don't", WAYS["original"])][1]
        Word(text="n't", offsets=[(2, 3), (3, 4), (4, 5)])
    """
    formed, origin = with_origin(text)
    for word, spans in way.traced(formed):
        if origin is not None:
            spans = [(origin[start], origin[end]) for start, end in spans]
        yield Word(word, spans)


def offsets_in(word: Word, sizes: list[int]) -> Iterator[Span]:
    """Yield the offsets of the tokens of a word from their sizes in characters."""
    for begin, end in pairwise(accumulate(sizes, initial=0)):
        spans = word.offsets[begin:end]
        yield min(start for start, _ in spans), max(stop for _, stop in spans)


@cache
def _transformers_rules() -> _bert_words.Rules:
    profile = _bert_words.PROFILES["transformers"]
    return _bert_words.make_rules(profile, True, True, True, ())


def normalized(text: str) -> list[tuple[str, int, int]]:
    """Return the characters of a text as `transformers` normalizes it, with their offsets."""
    return _bert_words.normalized(text, _transformers_rules())
