"""Byte-pair encoding: merging against a slow reference, the bounded cache, and training."""

import random
import time
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fnlm.tokenize import _bpe, _byte_merges


def merge_slowly(ids: list[int], rules: _bpe.Merges) -> list[int]:
    """The definition: one pair at a time, the lowest rank, of those the leftmost."""
    ids = list(ids)
    while True:
        found = [(rules.ranks[p], at) for at, p in enumerate(pairwise(ids)) if p in rules.ranks]
        if not found:
            return ids
        rank, at = min(found)
        ids[at : at + 2] = [rules.made[rank]]


@st.composite
def rule_sets(draw: st.DrawFn) -> _bpe.Merges:
    """Rules over the symbols 0 and 1 and what they make, in any order.

    A rule may come before the rule that makes its parts, and two rules may make one symbol:
    training gives neither at first, but files hold both.
    """
    pairs = draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), unique=True))
    # A symbol is not made of itself: a word of such might have no end of merges.
    made = [draw(st.integers(max(1, *pair) + 1, 7)) for pair in pairs]
    return _bpe.Merges({pair: at for at, pair in enumerate(pairs)}, tuple(pairs), tuple(made))


@settings(max_examples=300, deadline=None)
@given(rule_sets(), st.lists(st.integers(0, 1), max_size=40))
def test_merging_keeps_to_the_definition(rules: _bpe.Merges, ids: list[int]) -> None:
    given_ids = list(ids)
    expected = merge_slowly(ids, rules)
    assert _bpe.merge(ids, rules) == expected
    assert _bpe._merge_long(ids, rules) == expected
    assert ids == given_ids, "the argument was changed"


@pytest.mark.parametrize(
    ("pairs", "made", "ids", "expected"),
    [
        # A merge brings up a pair of lower rank, which takes a part of the next occurrence.
        (((2, 0), (0, 1)), (3, 2), [0, 1, 0, 1], [3, 1]),
        # Two rules make one symbol, the later one to the left.
        (((0, 1), (1, 0), (2, 2)), (2, 2, 3), [1, 0, 0, 1, 0, 1], [3, 2]),
        (((0, 0),), (1,), [0, 0, 0], [1, 0]),
    ],
    ids=["lower", "left", "odd"],
)
def test_which_of_two_merges_comes_first(
    pairs: tuple[_bpe.Pair, ...], made: tuple[int, ...], ids: list[int], expected: list[int]
) -> None:
    rules = _bpe.Merges({pair: at for at, pair in enumerate(pairs)}, pairs, made)
    assert merge_slowly(ids, rules) == expected
    assert _bpe.merge(ids, rules) == expected
    assert _bpe._merge_long(ids, rules) == expected


def learn(text: str, vocab_size: int) -> tuple[list[tuple[bytes, bytes]], _bpe.Merges]:
    pairs = _bpe.train([text], vocab_size, r"\S+")
    vocab = {bytes([byte]).decode("latin-1"): byte for byte in range(256)}
    names = [(left.decode("latin-1"), right.decode("latin-1")) for left, right in pairs]
    for left, right in names:
        vocab.setdefault(left + right, len(vocab))
    return pairs, _bpe.merges(names, vocab)


@pytest.fixture(scope="module")
def english() -> _bpe.Merges:
    """Rules learned from words of random letters of uneven frequency."""
    draw = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    weights = [1 / (rank + 1) for rank in range(26)]
    words = ["".join(draw.choices(letters, weights, k=draw.randint(1, 9))) for _ in range(4000)]
    return learn(" ".join(words), 900)[1]


@pytest.mark.parametrize("length", [0, 1, 2, 3, 127, 128, 129, 130, 517])
def test_long_and_short_words_are_merged_alike(english: _bpe.Merges, length: int) -> None:
    draw = random.Random(length)
    for letters in (b"a", b"ab", b"etaoin", bytes(range(97, 123))):
        ids = draw.choices(letters, k=length)
        assert _bpe.merge(ids, english) == merge_slowly(ids, english)


@pytest.mark.parametrize("letters", [b"a", b"et", b"etaoinshrdlucmfwypvbgkjqxz"])
def test_a_long_word_takes_time_in_proportion(english: _bpe.Merges, letters: bytes) -> None:
    """Eight times the length takes at most 32 times the time: n log n gives 9.4, n squared 64.

    What no longer fits the processor's cache takes twice as long on some machines.
    """
    draw = random.Random(0)

    def seconds(length: int) -> float:
        ids = draw.choices(letters, k=length)
        start = time.process_time()
        _bpe.merge(ids, english)
        return time.process_time() - start

    short = min(seconds(25_000) for _ in range(5))
    long = min(seconds(200_000) for _ in range(3))
    assert long <= 32 * short


def test_rules_that_do_not_fit_the_vocabulary_are_refused() -> None:
    with pytest.raises(ValueError, match="merge 'a' 'b' needs 'ab'"):
        _bpe.merges([("a", "b")], {"a": 0, "b": 1})
    with pytest.raises(ValueError, match="merge 'x' 'b' needs 'x'"):
        _bpe.merges([("x", "b")], {"a": 0, "b": 1, "xb": 2})


def test_of_a_rule_given_twice_the_first_counts() -> None:
    vocab = {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4}
    rules = _bpe.merges([("a", "b"), ("b", "c"), ("a", "b")], vocab)
    assert rules == _bpe.merges([("a", "b"), ("b", "c")], vocab)
    assert _bpe.merge([0, 1, 2], rules) == [3, 2]


def test_the_cache_stays_within_its_bounds() -> None:
    calls: Counter[str] = Counter()

    def encode(word: str) -> tuple[int, ...]:
        calls[word] += 1
        return tuple(map(ord, word))

    cache = _bpe.WordCache(encode, limit=10, longest=4)
    for _ in range(3):
        for number in range(25):
            assert cache[str(number)] == tuple(map(ord, str(number)))
            assert len(cache) <= 10
    for _ in range(3):
        assert cache["abcde"] == (97, 98, 99, 100, 101)
        assert "abcde" not in cache
    assert calls["abcde"] == 3
    calls.clear()
    assert [cache["9"] for _ in range(5)] == [(57,)] * 5
    assert calls["9"] <= 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("\ud83d\udc4d", "\U0001f44d"),
        ("\ud83d", "\ufffd"),
        ("\udc4d\ud83d", "\ufffd\ufffd"),
        ("a\ud800\ud83d\udc4db\udfff", "a\ufffd\U0001f44db\ufffd"),
    ],
    ids=ascii,
)
def test_surrogates_are_joined_or_replaced(text: str, expected: str) -> None:
    assert _bpe.well_formed(text) == expected


def train_slowly(text: str, vocab_size: int, min_count: int = 2) -> list[tuple[bytes, bytes]]:
    """The definition: count all pairs anew after every merge."""
    words = [[bytes([byte]) for byte in word.encode()] for word in text.split()]
    tokens = [bytes([byte]) for byte in range(256)]
    learned: list[tuple[bytes, bytes]] = []
    while len(tokens) < vocab_size:
        counts = Counter(pair for word in words for pair in pairwise(word))
        best = min(
            counts,
            key=lambda p: (-counts[p], tokens.index(p[0]), tokens.index(p[1])),
            default=None,
        )
        if best is None or counts[best] < min_count:
            break
        if best not in learned:
            learned.append(best)
        if best[0] + best[1] not in tokens:
            tokens.append(best[0] + best[1])
        for word in words:
            at = 0
            while at < len(word) - 1:
                if (word[at], word[at + 1]) == best:
                    word[at : at + 2] = [best[0] + best[1]]
                at += 1
    return learned


def test_training_finds_the_pairs_of_the_textbook_example() -> None:
    """Gage's string: `aa` is most frequent, then `ab`, then both together, then once more."""
    assert _bpe.train(["aaabdaaabac"], 259, r"\S+") == [(b"a", b"a"), (b"a", b"b"), (b"aa", b"ab")]


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("aab é\n"), max_size=150), st.integers(256, 290))
def test_training_keeps_to_the_definition(text: str, vocab_size: int) -> None:
    assert _bpe.train([text], vocab_size, r"\S+") == train_slowly(text, vocab_size)


def test_training_does_not_depend_on_the_order_of_the_texts() -> None:
    draw = random.Random(3)
    texts = ["".join(draw.choices("abcde fgh", k=40)) for _ in range(60)]
    expected = _bpe.train(texts, 330, r"\S+")
    draw.shuffle(texts)
    assert _bpe.train(texts, 330, r"\S+") == expected
    assert _bpe.train([" ".join(texts)], 330, r"\S+") == expected
    assert len(expected) >= 74


def test_training_stops_when_no_pair_is_frequent_enough() -> None:
    assert _bpe.train(["ab ab cd"], 300, r"\S+") == [(b"a", b"b")]
    assert _bpe.train(["ab ab cd"], 300, r"\S+", min_count=1) == [(b"a", b"b"), (b"c", b"d")]
    assert _bpe.train([], 300, r"\S+") == []
    with pytest.raises(ValueError, match="vocab_size=255"):
        _bpe.train(["ab"], 255, r"\S+")


def test_training_takes_any_string() -> None:
    merges = _bpe.train(["\ud800\ud800"], 258, r"(?s).+")
    assert merges == [(b"\xbf", b"\xbd"), (b"\xef", b"\xbf\xbd")]


# The short cuts of words in bytes.


@st.composite
def byte_rules(draw: st.DrawFn) -> tuple[_bpe.Merges, dict[int, bytes]]:
    """Rules over bytes as a vocabulary has them, in any order, and the bytes of each id."""
    tokens = [b"a", b"b", "é".encode()[:1], "é".encode()[1:]]
    pairs: dict[tuple[bytes, bytes], None] = {}
    for i, j in draw(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12)):
        pair = tokens[i % len(tokens)], tokens[j % len(tokens)]
        pairs[pair] = None
        if b"".join(pair) not in tokens:
            tokens.append(b"".join(pair))
    vocab = {bytes([byte]): byte for byte in range(256)}
    for token in tokens:
        vocab.setdefault(token, len(vocab))
    order = draw(st.permutations(list(pairs)))
    ids = tuple((vocab[left], vocab[right]) for left, right in order)
    made = tuple(vocab[left + right] for left, right in order)
    rules = _bpe.Merges({pair: rank for rank, pair in enumerate(ids)}, ids, made)
    return rules, {i: token for token, i in vocab.items()}


@settings(max_examples=300, deadline=None)
@given(byte_rules(), st.text("abé", max_size=9), st.integers(1, 40))
def test_the_short_cuts_give_what_merging_gives(
    made: tuple[_bpe.Merges, dict[int, bytes]], word: str, times: int
) -> None:
    rules, content = made
    known = _byte_merges.reachable(rules, range(256), len(content))
    encode = _byte_merges.encoder(rules, content, range(256), known.tolist())
    texts = [raw.decode(errors="replace") for raw in content.values()]
    tokens = [text for text in texts if "\ufffd" not in text]
    for text in (word, word * times, f"x{word}" * times, *tokens):
        assert list(encode(text)) == merge_slowly(list(text.encode()), rules)


@settings(max_examples=300, deadline=None)
@given(byte_rules())
def test_a_token_is_reachable_only_if_merging_makes_it(
    made: tuple[_bpe.Merges, dict[int, bytes]],
) -> None:
    rules, content = made
    for i, found in enumerate(_byte_merges.reachable(rules, range(256), len(content))):
        assert not found or merge_slowly(list(content[i]), rules) == [i]


def test_most_tokens_that_training_makes_are_reachable(english: _bpe.Merges) -> None:
    count = max(english.made) + 1
    assert _byte_merges.reachable(english, range(256), count).mean() > 0.95
