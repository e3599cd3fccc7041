"""GPT-2's tokenizer with a compiled library: the ids and offsets of Python, or it is not used."""

import gzip
import json
import pickle
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiktoken
from conftest import data_path
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tokenize_gpt2 import AWKWARD, END, EXAMPLES, TRAINING_TEXT

from fnlm.tokenize import _byte_level, _compiled, gpt2

BYTES = sorted(_byte_level.ALPHABET)
Rules = list[tuple[str, str]]


def tokenizer_of(merges: Rules, tokens: list[str] | None = None) -> gpt2.Tokenizer:
    """The tokenizer of these merges, with the tokens that they make in this order or in theirs."""
    made = tokens or [left + right for left, right in merges]
    vocab = {token: at for at, token in enumerate(dict.fromkeys([*BYTES, *made, END]))}
    return gpt2.Tokenizer(vocab, merges)


def both(tokenizer: gpt2.Tokenizer) -> tuple[gpt2.Tokenizer, gpt2.Tokenizer]:
    """The same in Python, and with the library from the first character on."""
    with_library = replace(tokenizer, compiled=True)
    assert with_library.engine in ("tiktoken", "python")
    return replace(tokenizer, compiled=False), with_library


def check(pair: tuple[gpt2.Tokenizer, gpt2.Tokenizer], text: str) -> None:
    python, library = pair
    assert library.encode(text) == python.encode(text)
    assert library.encode(text) == python.encode(text), "a second time"
    assert library.encode_with_offsets(text) == python.encode_with_offsets(text)


@pytest.fixture(autouse=True)
def libraries() -> Iterator[None]:
    """Each test finds the library anew, and leaves none."""
    _compiled._library.cache_clear()
    yield
    _compiled._library.cache_clear()


@pytest.fixture(scope="module")
def small() -> gpt2.Tokenizer:
    return gpt2.train([TRAINING_TEXT], 600)


# Equal ids and offsets.

pieces = st.sampled_from(
    [*"aabbc é中\n\t\0\x1c\x85\u3000'!1", "  ", "'s", "'ll", " a", " ab", "ab" * 70, END, "\ud83d"]
)
texts = st.one_of(st.text(st.characters()), st.lists(pieces, max_size=40).map("".join))


@st.composite
def tables(draw: st.DrawFn) -> gpt2.Tokenizer:
    """Merges and tokens of a few symbols, in any order: most are such as no training gives."""
    known = [*"abcĠĊÃ©"]
    pairs: dict[tuple[str, str], None] = {}
    for i, j in draw(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)), max_size=14)):
        pair = known[i % len(known)], known[j % len(known)]
        pairs[pair] = None
        known += [] if "".join(pair) in known else ["".join(pair)]
    merges = [*pairs]
    if draw(st.booleans()):
        merges = draw(st.permutations(merges))
    tokens = [left + right for left, right in merges]
    return tokenizer_of(merges, draw(st.permutations(tokens)) if draw(st.booleans()) else tokens)


@settings(max_examples=EXAMPLES, deadline=None)
@given(table=tables(), found=st.lists(texts, min_size=1, max_size=5))
def test_any_table_gives_the_ids_of_python(table: gpt2.Tokenizer, found: list[str]) -> None:
    pair = both(table)
    for text in found:
        check(pair, text)


@settings(max_examples=EXAMPLES // 3, deadline=None)
@given(corpus=st.lists(pieces, max_size=80).map("".join), size=st.integers(257, 290), text=texts)
def test_what_training_makes_gives_the_ids_of_python(corpus: str, size: int, text: str) -> None:
    pair = both(gpt2.train([corpus], size))
    for each in (text, corpus, f"{corpus}{text}" * 3):
        check(pair, each)


@settings(max_examples=EXAMPLES, deadline=None)
@given(text=texts)
def test_any_text_gives_the_ids_of_python(small: gpt2.Tokenizer, text: str) -> None:
    pair = both(small)
    assert pair[1].engine == "tiktoken"
    check(pair, text)


def read(name: str) -> str:
    raw = data_path(name).read_bytes()
    return (gzip.decompress(raw) if name.endswith(".gz") else raw).decode()


def test_hard_texts_give_the_ids_of_python(small: gpt2.Tokenizer) -> None:
    pair = both(small)
    for text in (*AWKWARD, TRAINING_TEXT):
        check(pair, text)


def test_collections_give_the_ids_of_python() -> None:
    pair = both(gpt2.load(data_path("vocab/gpt2/vocab.bpe").parent))
    assert [one.engine for one in pair] == ["python", "tiktoken"]
    names = ("udhr.jsonl.gz", "emoji-test.txt.gz", "blns-3of4.json", "UTF-8-demo.txt")
    collected = [read(f"tokenizer/{name}") for name in names]
    collected += [*AWKWARD, TRAINING_TEXT, *json.loads(collected[2])]
    for text in (*collected, read("lm/state_union.txt.gz")[:200_000]):
        check(pair, text)


@pytest.mark.parametrize("letters", ["a", " ", "\n", "ab", "e\u0301", "漢字", "👍", "!?", "\0 "])
def test_long_words_give_the_ids_of_python(small: gpt2.Tokenizer, letters: str) -> None:
    draw = random.Random(0)
    pair = both(small)
    for count in (99, 100, 127, 128, 129, 20_000):
        check(pair, letters * (count // len(letters)))
        check(pair, "".join(draw.choices(letters, k=count)))


def test_only_ascii_is_cut_by_the_library(small: gpt2.Tokenizer) -> None:
    """What else is a letter depends on its version; a long text of spaces would stop it."""
    tokenizer = both(small)[1]
    choice, cut = tokenizer._tables.compiled, []
    assert choice.found is not None
    words = choice.found.words

    def spy(text: str) -> list[int]:
        cut.append(text)
        return words(text)

    choice.found = choice.found._replace(words=spy)
    text = f"It's caf\xe9 \u0391\U0001fae8  (a\n b) {'x' * 127} {'x' * 128} {'x' * 129}{' ' * 500}"
    assert tokenizer.encode(text) == replace(small, compiled=False).encode(text)
    assert cut == [" (a\n", " b)", f" {'x' * 127}", f" {'x' * 128}"]


def test_threads_may_share_a_tokenizer(small: gpt2.Tokenizer) -> None:
    texts = [f"{TRAINING_TEXT[number:]}{number}" for number in range(40)]
    expected = replace(small, compiled=False).encode_batch(texts)
    tokenizer = replace(small, compiled=True)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(tokenizer.encode, texts)) == expected


# Where it is used.


def engine_of(merges: Rules, tokens: list[str] | None = None) -> str:
    return tokenizer_of(merges, tokens).engine


@pytest.mark.parametrize(
    ("merges", "tokens", "word"),
    [
        # Merging a b c gives a bc: no merge makes abc of it.
        ([("b", "c"), ("a", "b"), ("ab", "c")], None, "abc"),
        # Two rules make abc, the second one after cd.
        ([("a", "b"), ("b", "c"), ("ab", "c"), ("c", "d"), ("a", "bc")], None, "abcd"),
        # The second rule has the lower id.
        ([("a", "b"), ("b", "c")], ["bc", "ab"], "abc"),
        # A rule before the one that makes its part.
        ([("ab", "c"), ("a", "b")], None, "abab"),
    ],
    ids=["unreachable", "made twice", "order of ids", "order of rules"],
)
def test_a_table_that_is_not_proved_is_left_to_python(
    merges: Rules, tokens: list[str] | None, word: str
) -> None:
    assert engine_of([("a", "b"), ("ab", "c")]) == "tiktoken"
    tokenizer = tokenizer_of(merges, tokens)
    assert tokenizer.engine == "python"
    check(both(tokenizer), word)


@pytest.mark.parametrize(
    ("merges", "tokens"),
    [([("b", "c"), ("a", "b"), ("ab", "c")], None), ([("a", "b"), ("b", "c")], ["bc", "ab"])],
    ids=["unreachable", "order of ids"],
)
def test_without_its_conditions_the_library_would_give_other_ids(
    merges: Rules, tokens: list[str] | None
) -> None:
    tokenizer = tokenizer_of(merges, tokens)
    made = {left + right for left, right in merges}
    ranks = {
        tokenizer.decode_bytes([at]): at
        for token, at in tokenizer.vocab.items()
        if token in BYTES or token in made
    }
    peer = tiktoken.Encoding("", pat_str=".+", mergeable_ranks=ranks, special_tokens={})
    assert peer.encode_ordinary("abc") != tokenizer.encode("abc")


def test_the_published_vocabulary_is_proved() -> None:
    tokenizer = gpt2.load(data_path("vocab/gpt2/vocab.bpe").parent)
    assert tokenizer.engine == "tiktoken"
    assert tokenizer.extend(["<pad>"]).engine == "tiktoken"


def test_the_switch_is_kept(small: gpt2.Tokenizer, tmp_path: Path) -> None:
    off = replace(small, compiled=False)
    assert (off.compiled, off.engine) == (False, "python")
    assert off == small and hash(off) == hash(small), "it changes no ids"
    for copy in (off.extend(["<new>"]), pickle.loads(pickle.dumps(off)), replace(off, added=())):
        assert (copy.compiled, copy.engine) == (False, "python")
    off.save(tmp_path)
    assert gpt2.load(tmp_path).engine == "tiktoken"
    assert gpt2.load(tmp_path, compiled=False).engine == "python"


def test_it_is_not_imported_for_a_prompt() -> None:
    code = (
        "import sys; from fnlm.tokenize import gpt2\n"
        "t = gpt2.train(['low lower lowest'], 260)\n"
        "t.encode(' '.join(map(str, range(150)))); print('tiktoken' in sys.modules)\n"
        "t.encode(' '.join(map(str, range(150, 1500)))); print('tiktoken' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


class Wrong:
    """Another program under the same name."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self._core_bpe = SimpleNamespace(encode_single_piece=list, encode_ordinary=list)


class OtherWords(tiktoken.Encoding):
    """One that cuts a text at other places."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords | {"pat_str": ".+"})


@pytest.mark.parametrize(
    "module",
    [
        None,
        SimpleNamespace(),
        SimpleNamespace(__version__="0.12.9"),
        SimpleNamespace(__version__="next"),
        SimpleNamespace(__version__="0.99.0"),
        SimpleNamespace(__version__="0.99.0", Encoding=Wrong),
        SimpleNamespace(__version__="0.99.0", Encoding=OtherWords),
    ],
    ids=["absent", "no version", "old", "no number", "other names", "other ids", "other words"],
)
def test_what_is_no_library_that_gives_these_ids_is_left_alone(
    module: Any, monkeypatch: pytest.MonkeyPatch, small: gpt2.Tokenizer
) -> None:
    monkeypatch.setitem(sys.modules, "tiktoken", module)
    tokenizer = replace(small, compiled=True)
    assert tokenizer.engine == "python"
    check((replace(small, compiled=False), tokenizer), TRAINING_TEXT)
