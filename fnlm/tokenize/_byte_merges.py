"""Byte-pair encoding of a word's bytes, by two short cuts that hold for the rules at hand.

- A word that is one token needs no merging if merging would make that token of it. Of most tokens
  that is so, but not of all that rules may make; `reachable` proves it for each.
- No token holds certain bytes side by side, so no merge joins them, and a long word may be cut
  there. The pieces, often one character each, are few and found in a cache.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, pairwise

import numpy as np
import numpy.typing as npt

from fnlm.tokenize import _bpe

# Longer tokens, or those of more parts within parts than this, may count as not reachable.
_STEPS = 64
LONG = 128  # characters of a word that is looked at for places to cut


def encoder(
    rules: _bpe.Merges,
    content: Mapping[int, bytes],
    bytes_ids: Sequence[int],
    known: Sequence[bool],
) -> Callable[[str], tuple[int, ...]]:
    """Return a function from a word to its ids, those that `_bpe.merge` makes of its bytes.

    Args:
        rules: merge rules over ids.
        content: id -> the bytes it stands for.
        bytes_ids: the ids of the 256 bytes.
        known: whether each id is `reachable`.

    Example:
        >>> rules = _bpe.Merges({(104, 105): 0}, ((104, 105),), (256,))
        >>> content = {i: bytes([i]) for i in range(256)} | {256: b"hi"}
        >>> encode = encoder(rules, content, range(256), reachable(rules, range(256), 257).tolist())
        >>> encode("hi"), encode("hih")
        ((256,), (256, 104))
    """
    alone = {content[i]: (i,) for i in rules.made if known[i]}
    joined = _neighbours([content[i] for i in dict.fromkeys(rules.made)])

    def encode_bytes(raw: bytes) -> tuple[int, ...]:
        return alone.get(raw) or tuple(_bpe.merge([bytes_ids[byte] for byte in raw], rules))

    pieces = _bpe.WordCache(lambda piece: encode_bytes(piece.encode("latin-1")))

    def encode(word: str) -> tuple[int, ...]:
        raw = word.encode()
        if len(word) <= LONG:
            return encode_bytes(raw)
        numbers, text = np.frombuffer(raw, np.uint8), raw.decode("latin-1")
        cuts = (~joined[numbers[:-1], numbers[1:]]).nonzero()[0] + 1
        parts = [text[begin:end] for begin, end in pairwise([0, *cuts.tolist(), len(raw)])]
        return tuple(chain.from_iterable(map(pieces.__getitem__, parts)))

    return encode


def reachable(rules: _bpe.Merges, symbols: Sequence[int], count: int) -> npt.NDArray[np.bool_]:
    """Return for each id whether merging the symbols that it is made of gives it alone.

    Proof, for a token that one rule makes of two reachable parts of lower ranks: within each part,
    merges come in order of rank. So the two tokens that meet at the border between the parts are
    known for every rank: backwards from the parts, the one that was made last falls apart first.
    The parts come about unless two that meet may be merged before the next of them is made.

    Args:
        rules: merge rules over ids.
        symbols: ids that words consist of before any merge.
        count: number of ids.

    Returns:
        bool [count]: False also where the proof does not apply.

    Example:
        >>> pairs = (1, 2), (0, 1), (4, 2)
        >>> rules = _bpe.Merges({pair: at for at, pair in enumerate(pairs)}, pairs, (3, 4, 5))
        >>> reachable(rules, [0, 1, 2], 6).tolist()  # 5 is 0 1 2, of which merging makes 0 3
        [True, True, True, True, True, False]
    """
    made = np.array(rules.made, np.int64)
    left, right = np.array(rules.pairs, np.int64).reshape(-1, 2).T
    rank = np.full(count, -1)
    rank[made] = order = np.arange(len(made))
    once = np.bincount(made, minlength=count)[made] == 1
    fits = _uncrossed((once & (rank[left] < order) & (rank[right] < order)).nonzero()[0],
                      left, right, rank)  # fmt: skip
    result = np.zeros(count, np.bool_)
    result[np.array(symbols, np.int64)] = True
    for _ in range(_STEPS):
        before = result.sum()
        result[made[fits]] |= result[left[fits]] & result[right[fits]]
        if result.sum() == before:
            break
    return result


def _uncrossed(
    rows: npt.NDArray[np.int64],
    left: npt.NDArray[np.int64],
    right: npt.NDArray[np.int64],
    rank: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Return those of the rules `rows` before which nothing is merged over their border."""
    count, found = len(rank), []
    codes = left * count + right
    order = codes.argsort()
    codes = codes[order]
    a, b = left[rows], right[rows]  # the two that meet
    for _ in range(_STEPS):
        last = np.maximum(rank[a], rank[b])
        found.append(rows[last < 0])  # back at symbols
        rows, a, b, last = (x[last >= 0] for x in (rows, a, b, last))
        if not len(rows):
            break
        # Of merges of equal rank the leftmost comes first, so that of b falls apart before that of
        # a, and a merge over the border comes before that of b and after that of a.
        of_b = rank[b] == last
        a, b = np.where(of_b, a, right[last]), np.where(of_b, left[last], b)
        over = a * count + b
        at = np.minimum(codes.searchsorted(over), len(codes) - 1)
        fits = (codes[at] != over) | (order[at] >= last + of_b)
        rows, a, b = rows[fits], a[fits], b[fits]
    return np.concatenate(found)


def _neighbours(tokens: Sequence[bytes]) -> npt.NDArray[np.bool_]:
    """Return whether a byte may be followed by another within a token: bool [256, 256]."""
    joined = np.zeros((256, 256), np.bool_)
    text = np.frombuffer(b"".join(tokens), np.uint8)
    inside = np.ones(len(text), np.bool_)
    inside[np.cumsum([len(token) for token in tokens], dtype=np.int64) - 1] = False
    at = inside.nonzero()[0]
    joined[text[at], text[at + 1]] = True
    return joined
