"""Byte-pair encoding by `tiktoken`, where it is installed and proved to give the same ids.

`tiktoken` joins those neighbours first whose bytes together have the lowest rank, whichever tokens
they are; a merge rule names both. The ids are the same for any bytes

- if the ids that rules make rise in the order of the rules, so that they may serve as ranks,
- and if merging the bytes of each token alone gives that token (`_byte_merges.reachable`).

Proof: a rule joins neighbours whose bytes are a token of its rank, so that both programs do the
same until `tiktoken` joins two neighbours, into a token T, that no rule joins. No merge so far
crossed the border of their bytes, so those within it are what merging these bytes alone begins
with. It would end there, with the two, and T would not be reachable.

How a text is cut into words is left to `tiktoken` for ASCII alone: what else is a letter depends
on its version. Before 0.13, it takes time by the square of a word's length, and is not used.
"""

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import regex

from fnlm.tokenize import _bpe

# Characters of new words that Python merges first: a prompt need not wait for the tables of a
# library, which take as long to make as it saves on a long text.
_PATIENCE = 2_000
_OLDEST = (0, 13)
_SAMPLES, _SENTENCE = 200, " It's 12%, x\n\n \t they'll  \x1c_"


class Library(NamedTuple):
    """What a compiled library does for one vocabulary."""

    name: str
    word: Callable[[bytes], list[int]]  # the bytes of a word -> its ids
    words: Callable[[str], list[int]]  # ASCII text -> the ids of its words


class Choice:
    """Which program merges the bytes of new words: a library, once there is much to merge.

    Args:
        rules: merge rules over ids.
        bytes_ids: the ids of the 256 bytes.
        pattern: regular expression of one word.
        allowed: whether a library may be used, if there is one; False also where it is not proved
            to give the same ids.

    Example:
        >>> choice = Choice(_bpe.Merges({}, (), ()), tuple(range(256)), ".", allowed=False)
        >>> choice.library(100) is None, choice.name
        (True, 'python')
    """

    __slots__ = ("arguments", "found", "left")

    def __init__(
        self, rules: _bpe.Merges, bytes_ids: tuple[int, ...], pattern: str, *, allowed: bool
    ) -> None:
        allowed = allowed and all(a < b for a, b in pairwise(rules.made))
        self.arguments = (rules.pairs, rules.made, bytes_ids, pattern) if allowed else None
        self.left = _PATIENCE
        self.found: Library | None = None

    def library(self, characters: int) -> Library | None:
        """Return the library, if it shall merge the next characters; they are counted."""
        arguments = self.arguments  # another thread may be here as well
        if arguments is not None:
            self.left -= characters
            if self.left < 0:
                self.found = _library(*arguments)
                self.arguments = None
        return self.found

    @property
    def name(self) -> str:
        """What merges the bytes of new words, once there is much to merge."""
        library = self.library(self.left + 1)
        return "python" if library is None else library.name


@lru_cache(4)
def _library(
    pairs: tuple[_bpe.Pair, ...], made: tuple[int, ...], bytes_ids: tuple[int, ...], pattern: str
) -> Library | None:
    """Return `tiktoken` with these rules, or None where it is absent, old, or found to differ."""
    try:
        import tiktoken

        if tuple(map(int, tiktoken.__version__.split(".")[:2])) < _OLDEST:
            return None
        content = {token_id: bytes([byte]) for byte, token_id in enumerate(bytes_ids)}
        for (left, right), joined in zip(pairs, made, strict=True):
            content[joined] = content[left] + content[right]
        ranks = {token: token_id for token_id, token in content.items()}
        encoding = tiktoken.Encoding(
            "fnlm", pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
        )
        core = encoding._core_bpe
        library = Library("tiktoken", core.encode_single_piece, core.encode_ordinary)
        # For a version that none of the tests has seen: tokens in a row, and a sentence.
        rules = _bpe.Merges({pair: rank for rank, pair in enumerate(pairs)}, pairs, made)
        step = len(made) // _SAMPLES + 1
        for tokens in zip(made[::step], reversed(made[::step]), made[1::step], strict=False):
            word = b"".join(content[token] for token in tokens)
            if library.word(word) != _bpe.merge([bytes_ids[byte] for byte in word], rules):
                return None
        words = regex.findall(pattern, _SENTENCE)
        if library.words(_SENTENCE) != [i for word in words for i in library.word(word.encode())]:
            return None
    except (ImportError, AttributeError, TypeError, ValueError):
        return None
    return library
