"""Byte-pair encoding (BPE): the merge loop, a bounded cache of words, and training.

A word is a list of symbol ids. ``Merges`` says which neighbours may join and in which order;
``merge`` joins the pair of lowest rank (the leftmost of several) until no pair is left. Nothing
here knows what a symbol is: GPT-2's symbols are bytes, GPT's are characters.

Source: Sennrich et al. 2016, section 3.2. Ranks and ids are kept apart, so that two merges may
make the same token, as happens in vocabularies in use.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from heapq import heapify, heappop, heappush
from itertools import pairwise, repeat
from typing import NamedTuple

import regex

Pair = tuple[int, int]

# Up to about this many symbols (measured) a scan of the whole word is the faster way.
SHORT = 128
_NEVER = 1 << 62


class Merges(NamedTuple):
    """The merge rules of one vocabulary, over symbol ids."""

    ranks: dict[Pair, int]  # neighbours -> order of the rule, 0 first
    pairs: tuple[Pair, ...]  # rank -> neighbours
    made: tuple[int, ...]  # rank -> id of the joined symbol


def merges(pairs: Iterable[tuple[str, str]], vocab: Mapping[str, int]) -> Merges:
    """Return the merge rules of pairs of symbols, in order of rank, over the ids of `vocab`.

    Args:
        pairs: neighbours that join, first rule first; of a rule given twice the first counts.
        vocab: symbol -> id.

    Returns:
        The rules.

    Raises:
        ValueError: a pair, or what it makes, is not in `vocab`.

    Example:
        >>> merges([("a", "b")], {"a": 0, "b": 1, "ab": 2})
        Merges(ranks={(0, 1): 0}, pairs=((0, 1),), made=(2,))
    """
    ranks: dict[Pair, int] = {}
    made: list[int] = []
    for left, right in pairs:
        try:
            pair = vocab[left], vocab[right]
            joined = vocab[left + right]
        except KeyError as error:
            raise ValueError(
                f"merge {left!r} {right!r} needs {error.args[0]!r}, which the vocabulary lacks; "
                "vocabulary and merges must come from the same model"
            ) from None
        if pair not in ranks:
            ranks[pair] = len(made)
            made.append(joined)
    return Merges(ranks, tuple(ranks), tuple(made))


def merge(ids: list[int], rules: Merges) -> list[int]:
    """Join neighbours, lowest rank first and leftmost among equals, until none can be joined.

    Args:
        ids: the symbols of one word; not changed.
        rules: the merge rules.

    Returns:
        The symbols left. Time grows as n log n at worst.

    Example:
        >>> rules = merges([("a", "b"), ("ab", "c")], {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4})
        >>> merge([0, 1, 2, 0, 1], rules)
        [4, 3]
    """
    if len(ids) > SHORT:
        return _merge_long(ids, rules)
    rank_of, made = rules.ranks.get, rules.made
    ids = ids.copy()
    ranks = list(map(rank_of, pairwise(ids), repeat(_NEVER)))  # of the pair at i, i + 1
    while ranks:
        best = min(ranks)
        if best == _NEVER:
            break
        i = ranks.index(best)
        ids[i : i + 2] = [made[best]]
        # The merged symbol has new neighbours on both sides; all other ranks stay.
        del ranks[i]
        if i < len(ranks):
            ranks[i] = rank_of((ids[i], ids[i + 1]), _NEVER)
        if i:
            ranks[i - 1] = rank_of((ids[i - 1], ids[i]), _NEVER)
    return ids


class _Buckets(dict[int, list[int]]):
    """Rank -> positions where a pair of that rank may be; the ranks are in a heap as well."""

    __slots__ = ("heap",)

    def __init__(self) -> None:
        self.heap: list[int] = []

    def __missing__(self, rank: int) -> list[int]:
        heappush(self.heap, rank)
        positions: list[int] = []
        self[rank] = positions
        return positions


def _merge_long(ids: list[int], rules: Merges) -> list[int]:
    """Return what `merge` returns, by a doubly linked list and one bucket of positions per rank."""
    rank_of, count = rules.ranks.get, len(ids)
    ids = [*ids, -1]  # -1 is the end, and a symbol that was merged into its left; in no rule
    previous, following = [*range(-1, count)], [*range(1, count + 2)]  # the linked list
    buckets = _Buckets()
    for i, rank in enumerate(map(rank_of, pairwise(ids))):
        if rank is not None:
            buckets[rank].append(i)
    heap = buckets.heap
    while heap:
        best = heappop(heap)
        (left, right), joined = rules.pairs[best], rules.made[best]
        positions = sorted(buckets.pop(best))
        for done, i in enumerate(positions, start=1):
            j = following[i]
            if ids[i] != left or ids[j] != right:
                continue  # stale: an earlier merge took one of the two
            # Merge: i takes the joined symbol, and j leaves the list.
            ids[i], ids[j] = joined, -1
            following[i] = after = following[j]
            previous[after] = i
            # The two new pairs go into the buckets of their ranks.
            if (rank := rank_of((joined, ids[after]))) is not None:
                buckets[rank].append(i)
            before = previous[i]
            if (rank := rank_of((ids[before], joined))) is not None:
                buckets[rank].append(before)
            # A new pair of a lower rank is merged before the other positions of this rank.
            if heap and heap[0] < best and done < len(positions):
                buckets[best] = positions[done:]
                heappush(heap, best)
                break
    return [symbol for symbol in ids if symbol >= 0]


class WordCache(dict[str, tuple[int, ...]]):
    """A cache word -> ids, filled on demand, of bounded size.

    Words longer than `longest` characters are encoded anew each time. A cache that would exceed
    `limit` is emptied before the next word is stored.

    Args:
        encode: word -> ids, called for a word that is not in the cache.
        limit: the most words in the cache, one counting once more for every 32 characters.
        longest: the most characters of a word in the cache.

    Example:
        >>> cache = WordCache(lambda word: tuple(map(ord, word)), limit=2)
        >>> cache["ab"], len(cache)
        ((97, 98), 1)
    """

    __slots__ = ("encode", "limit", "longest", "used")

    def __init__(
        self, encode: Callable[[str], tuple[int, ...]], limit: int = 1 << 17, longest: int = 128
    ) -> None:
        super().__init__()
        self.encode, self.limit, self.longest, self.used = encode, limit, longest, 0

    def __missing__(self, word: str) -> tuple[int, ...]:
        """Encode `word`, and cache it if it is not long."""
        ids = self.encode(word)
        if len(word) <= self.longest:
            self.used += 1 + len(word) // 32
            if self.used > self.limit:
                self.clear()
                self.used = 1 + len(word) // 32
            self[word] = ids
        return ids


def well_formed(text: str) -> str:
    r"""Return `text` with surrogate pairs joined and lone surrogates replaced by U+FFFD.

    Example:
        >>> well_formed("\ud83d\udc4d") == "\U0001f44d", well_formed("a\ud800b") == "a\ufffdb"
        (True, True)
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def train(
    texts: Iterable[str], vocab_size: int, pattern: str, *, min_count: int = 2
) -> list[tuple[bytes, bytes]]:
    r"""Learn byte-level merges: repeatedly merge the most frequent pair of neighbours.

    Args:
        texts: any number of texts; each is cut into words by `pattern`, no merge crosses a word.
        vocab_size: number of tokens to reach, the 256 bytes included.
        pattern: regular expression (of the `regex` module) of one word.
        min_count: stop when the most frequent pair is seen fewer times than this.

    Returns:
        The merges in order: `vocab_size - 256`, more where two make the same token, fewer where
        the texts hold no more. The order of the texts is of no account, and of equally frequent
        pairs the one of lower ids is joined.

    Raises:
        ValueError: `vocab_size` is below 256.

    Example:
        >>> train(["low lower lowest"], 258, r"\w+")
        [(b'l', b'o'), (b'lo', b'w')]
    """
    if vocab_size < 256:
        raise ValueError(f"vocab_size={vocab_size} is below 256, the number of bytes; raise it")
    counts: Counter[str] = Counter()
    find = regex.compile(pattern).findall
    for text in texts:
        counts.update(find(well_formed(text)))
    state = _Training(sorted(counts.items()))
    tokens = [bytes([byte]) for byte in range(256)]
    ids = {token: i for i, token in enumerate(tokens)}
    learned: dict[tuple[bytes, bytes], None] = {}
    while len(tokens) < vocab_size and (pair := state.most_frequent(min_count)):
        left, right = tokens[pair[0]], tokens[pair[1]]
        learned[left, right] = None
        if left + right not in ids:  # another pair may have made the same token before
            ids[left + right] = len(tokens)
            tokens.append(left + right)
        state.join(pair, ids[left + right])
    return list(learned)


class _Training:
    """The words of a corpus with their pair counts, kept up to date as pairs are joined."""

    def __init__(self, counts: list[tuple[str, int]]) -> None:
        self.words = [list(word.encode()) for word, _ in counts]
        self.counts = [count for _, count in counts]
        self.pairs: Counter[Pair] = Counter()
        self.where: defaultdict[Pair, set[int]] = defaultdict(set)
        for index, word in enumerate(self.words):
            for pair in pairwise(word):
                self.pairs[pair] += self.counts[index]
                self.where[pair].add(index)
        self.heap = [(-count, pair) for pair, count in self.pairs.items()]
        heapify(self.heap)

    def most_frequent(self, min_count: int) -> Pair | None:
        """Return the most frequent pair, or None if it is seen fewer than `min_count` times."""
        while self.heap:
            count, pair = heappop(self.heap)
            if -count == self.pairs[pair]:
                return pair if -count >= min_count else None
            if self.pairs[pair] > 0:  # the count has fallen since: back into its place
                heappush(self.heap, (-self.pairs[pair], pair))
        return None

    def join(self, pair: Pair, joined: int) -> None:
        """Join every occurrence of `pair`, left to right, into the symbol `joined`."""
        changed: Counter[Pair] = Counter()
        for index in self.where.pop(pair):
            old, count = self.words[index], self.counts[index]
            new = _replace(old, pair, joined)
            for old_pair in pairwise(old):
                changed[old_pair] -= count
            for new_pair in pairwise(new):
                changed[new_pair] += count
                if joined in new_pair:
                    self.where[new_pair].add(index)
            self.words[index] = new
        for other, difference in changed.items():
            if difference:
                self.pairs[other] += difference
                if difference > 0:
                    heappush(self.heap, (-self.pairs[other], other))
        del self.pairs[pair]


def _replace(word: list[int], pair: Pair, joined: int) -> list[int]:
    """Return `word` with every occurrence of `pair`, left to right, replaced by `joined`."""
    new = []
    i, last = 0, len(word) - 1
    while i <= last:
        if i < last and (word[i], word[i + 1]) == pair:
            new.append(joined)
            i += 2
        else:
            new.append(word[i])
            i += 1
    return new
