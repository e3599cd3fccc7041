"""GPT-2's tokenizer: equal to its peers, lossless, total; offsets, special tokens, saving.

Words are merged in Python here, as one of the peers may do it otherwise.
"""

import gzip
import json
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import regex
import tiktoken
import tokenizers
from conftest import data_path
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken_ext import openai_public  # type: ignore[import-untyped]

from fnlm.tokenize import _bpe, _byte_level, gpt2

EXAMPLES = int(os.environ.get("FNLM_EXAMPLES", "300"))
END = gpt2.END_OF_TEXT

TRAINING_TEXT = (
    """
It was the best of times, it was the worst of times, it's what they'd said; we'll see, I'm sure.
The quick brown fox jumps over the lazy dog. In 1812 and 1984 there were 365 or 366 days a year.
    def apply(params, ids, cache=None):
        return logits, cache
Zażółć gęślą jaźń. Ça va, l'été? Größe über Straße. Съешь ещё этих мягких французских булок.
我能吞下玻璃而不伤身体。いろはにほへと ちりぬるを 가나다라마바사 नमस्ते दुनिया שלום עולם 👩‍👩‍👧 👍👍🏽
"""
    * 4
)

# Table of inputs that broke somebody's tokenizer, and more of their kind.
AWKWARD = [
    "你", "a—b", "é", "ñ°", "\x80", "\xff", "Ā", "ĠĊ", "y is ?", " ?", "a\x1cb", "a\x1c\x1d \x1fb",
    "x²½Ⅷ", "it’s it's IT'S", "'s's 's'ss '", "  a\n\n b \t", "a  \n", "\n\n  b", "a \n \n b",
    "👩\u200d👩\u200d👧", "नमस्ते", "", " ", "  ", "   ", "\n", " \n", "\t \r\n", "\x00", "\ufffd",
    "\x1c", "\x85", "\u2028", "\u200b", "\u200d", "\ufeff", "\u180e", "\u202f", "\u3000",
    "a\u202fb", "a \u3000b", "\x00\x01 \x02", END, f"a {END}b", "<|endoftext|", "l'eure", "do not",
    "#version: 0.2", "a" * 1000, "ab" * 300, "é" * 200, "ab " * 40, "\U0010ffff \U0010fffe",
    "アリババ株式会社の公式サイトです", "mở bài lạc trôi",
]  # fmt: skip


def peer_tiktoken(tokenizer: gpt2.Tokenizer) -> tiktoken.Encoding:
    content = tokenizer._tables.content
    special = {END: tokenizer.tokens_to_ids([END])[0]}
    ranks = {bytes_: at for at, bytes_ in content.items() if at not in special.values()}
    return tiktoken.Encoding(
        "peer", pat_str=openai_public.r50k_pat_str, mergeable_ranks=ranks, special_tokens=special
    )


def peer_tokenizers(directory: Path) -> tokenizers.Tokenizer:
    """The peer as GPT-2 sets it up, from the files that we saved."""
    vocab, merges = directory / "vocab.json", directory / "merges.txt"
    peer = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(str(vocab), str(merges)))
    peer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    peer.decoder = tokenizers.decoders.ByteLevel()
    return peer


class Case:
    """A tokenizer and its peers."""

    def __init__(self, tokenizer: gpt2.Tokenizer, directory: Path) -> None:
        tokenizer.save(directory)
        self.tokenizer, self.directory = tokenizer, directory
        self.tiktoken, self.tokenizers = peer_tiktoken(tokenizer), peer_tokenizers(directory)

    def check(self, text: str) -> None:
        """Equal ids in all ways to get them, equal to the peers' ids, and the text back."""
        ids = self.tokenizer.encode(text)
        assert ids == self.tiktoken.encode_ordinary(text)
        assert ids == self.tokenizers.encode(text).ids
        assert self.tokenizer.decode(ids) == text
        found, offsets = self.tokenizer.encode_with_offsets(text)
        assert found == ids
        check_offsets(self.tokenizer, text, ids, offsets)


def check_offsets(
    tokenizer: gpt2.Tokenizer, text: str, ids: list[int], offsets: _byte_level.Offsets
) -> None:
    """Each slice holds its token's bytes; slices cover the text, and overlap by a character."""
    assert len(ids) == len(offsets)
    for at, (start, end) in zip(ids, offsets, strict=True):
        assert 0 <= start < end <= len(text)
        assert tokenizer.decode_bytes([at]) in text[start:end].encode()
    for (start, end), (next_start, next_end) in pairwise(offsets):
        assert next_start == end or (next_start == end - 1 and next_end >= end and start <= end - 1)
    if text:
        assert (offsets[0][0], offsets[-1][1]) == (0, len(text))
    # Where a token begins inside a character, that is because its bytes begin there.
    begin = 0
    for at, (start, _) in zip(ids, offsets, strict=True):
        here = len(text[:start].encode())
        assert here <= begin < here + len(text[start].encode())
        begin += len(tokenizer.decode_bytes([at]))


@pytest.fixture(scope="session")
def small() -> gpt2.Tokenizer:
    return replace(gpt2.train([TRAINING_TEXT], 600), compiled=False)


@pytest.fixture(scope="session")
def real() -> gpt2.Tokenizer:
    return gpt2.load(data_path("vocab/gpt2/vocab.bpe").parent, compiled=False)


@pytest.fixture(scope="session")
def small_case(small: gpt2.Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(small, tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def real_case(real: gpt2.Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(real, tmp_path_factory.mktemp("real"))


@pytest.fixture(params=["small", "real"], scope="session")
def case(request: pytest.FixtureRequest) -> Case:
    """The case of a small vocabulary, learned here, and that of the published one."""
    found: Case = request.getfixturevalue(f"{request.param}_case")
    return found


def read(name: str) -> str:
    raw = data_path(name).read_bytes()
    return (gzip.decompress(raw) if name.endswith(".gz") else raw).decode()


# Equality with the peers, and the text back.


@pytest.mark.parametrize("text", AWKWARD, ids=lambda text: ascii(text)[:30])
def test_awkward_inputs(case: Case, text: str) -> None:
    case.check(text)
    case.check(f"see {text} here")


def test_wikitext(real_case: Case) -> None:
    case, text = real_case, read("wikitext/wiki.test.raw.gz")
    ids = case.tokenizer.encode(text)
    assert ids == case.tiktoken.encode_ordinary(text)
    assert ids == case.tokenizers.encode(text).ids
    assert case.tokenizer.decode(ids) == text
    lines = text.splitlines(keepends=True)
    by_line = [encoding.ids for encoding in case.tokenizers.encode_batch(lines)]
    assert case.tokenizer.encode_batch(lines) == by_line
    found, offsets = case.tokenizer.encode_with_offsets(text)
    assert found == ids
    assert {after[0] - before[1] for before, after in pairwise(offsets)} <= {0, -1}
    for line in lines[::25]:
        check_offsets(case.tokenizer, line, *case.tokenizer.encode_with_offsets(line))


@pytest.mark.parametrize("name", ["udhr", "emoji", "blns", "utf8-demo"])
def test_collections_of_hard_text(real_case: Case, name: str) -> None:
    if name == "udhr":
        rows = map(json.loads, read("tokenizer/udhr.jsonl.gz").splitlines())
        texts = [value for row in rows for value in row.values() if isinstance(value, str)]
    elif name == "emoji":
        texts = read("tokenizer/emoji-test.txt.gz").splitlines(keepends=True)[::5]
        texts.append(read("tokenizer/emoji-test.txt.gz"))
    elif name == "blns":
        texts = json.loads(read("tokenizer/blns-3of4.json"))
    else:
        texts = [read("tokenizer/UTF-8-demo.txt")]
    for text in texts:
        if len(text) < 2000:
            real_case.check(text)
        ids = real_case.tokenizer.encode(text)
        assert ids == real_case.tiktoken.encode_ordinary(text)
        assert ids == real_case.tokenizers.encode(text).ids
        assert real_case.tokenizer.decode(ids) == text
    assert len(texts) >= 1


# The peers' tables of letters are older than ours or newer: only what every Unicode since 14 has
# assigned is compared, anything else must come back unchanged all the same.
known = st.characters(exclude_categories=["Cs", "Cn"])
clumsy = st.sampled_from(
    [*" \n\t'aé1²👍\x1c\x85\u3000", "  ", "'s", "'ll", "the", " b", END],
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(text=st.one_of(st.text(known), st.lists(st.one_of(clumsy, known)).map("".join)))
def test_any_text_equals_the_peers(case: Case, text: str) -> None:
    case.check(text)


@settings(max_examples=EXAMPLES, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(small: gpt2.Tokenizer, text: str) -> None:
    ids = small.encode(text)
    assert small.decode(ids) == "".join(small.decode_stream(iter(ids))) == text
    assert small.tokens_to_ids(small.tokenize(text)) == ids
    check_offsets(small, text, *small.encode_with_offsets(text))


@settings(max_examples=EXAMPLES, deadline=None)
@given(text=st.lists(st.sampled_from([*" \n\t\x1c\x85\u3000ab1.'é", "'s", "   "])).map("".join))
def test_the_short_cut_finds_the_words_of_the_pattern(text: str) -> None:
    first, *rest = _byte_level.units_of(text)
    units = [unit.replace(_byte_level.GLUE, " ") for unit in [first, *(f" {u}" for u in rest)]]
    found = [word for unit in units for word in _byte_level.words_of(unit)]
    assert found == _byte_level.words_of(text)


def test_every_space_of_the_pattern_is_one_for_the_short_cut() -> None:
    """What the proof of the short cut rests on: it knows every space that `regex` knows."""
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    spaces = set(regex.findall(r"\s", everything))
    assert spaces == {" ", *_byte_level.SPACES}
    assert {space for space in spaces if space.isascii()} == {" ", *_byte_level.ASCII_SPACES}


def test_a_text_may_hold_what_stands_for_a_space_in_the_short_cut(case: Case) -> None:
    for text in (f"a {_byte_level.GLUE}  b", f"a{_byte_level.GLUE}b  a b", "a  b a b"):
        assert case.tokenizer.encode(text) == case.tiktoken.encode_ordinary(text)


# Surrogates.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\ud83d", "\ufffd"),
        ("\ud83d\udc4d", "👍"),
        ("\udbc0", "\ufffd"),
        ("hello \ud800 world", "hello \ufffd world"),
        ("\udc4d\ud83d and \ud83d\udc4d!", "\ufffd\ufffd and 👍!"),
    ],
    ids=ascii,
)
def test_surrogates(case: Case, text: str, expected: str) -> None:
    ids = case.tokenizer.encode(text)
    assert ids == case.tokenizer.encode(expected)
    assert case.tokenizer.decode(ids) == expected
    found, offsets = case.tokenizer.encode_with_offsets(text)
    assert found == ids
    assert (offsets[0][0], offsets[-1][1]) == (0, len(text))
    for at, (start, end) in zip(ids, offsets, strict=True):
        assert case.tokenizer.decode_bytes([at]) in _bpe.well_formed(text[start:end]).encode()


@settings(max_examples=EXAMPLES, deadline=None)
@given(text=st.text(st.one_of(st.characters(categories=["Cs"]), st.sampled_from(" a\U0001f44d"))))
def test_any_mixture_with_surrogates(small: gpt2.Tokenizer, text: str) -> None:
    ids = small.encode(text)
    assert small.decode(ids) == _bpe.well_formed(text)
    found, offsets = small.encode_with_offsets(text)
    assert found == ids
    for at, (start, end) in zip(ids, offsets, strict=True):
        assert small.decode_bytes([at]) in _bpe.well_formed(text[start:end]).encode()


# Decoding.


@pytest.mark.parametrize(
    "raw", [b"\xff", b"\xc3(", b"\xe2\x82\x81", b"\xf0(\x8c\xbc", b"\x80"], ids=str
)
def test_any_bytes_decode(small: gpt2.Tokenizer, raw: bytes) -> None:
    ids = small.tokens_to_ids([_byte_level.ALPHABET[byte] for byte in raw])
    assert small.decode(ids) == raw.decode("utf-8", "replace")
    assert small.decode(ids, errors="ignore") == raw.decode("utf-8", "ignore")
    if "\ufffd" in small.decode(ids):
        with pytest.raises(UnicodeDecodeError):
            small.decode(ids, errors="strict")


@settings(max_examples=EXAMPLES, deadline=None)
@given(raw=st.binary())
def test_bytes_come_back(small: gpt2.Tokenizer, raw: bytes) -> None:
    ids = small.tokens_to_ids([_byte_level.ALPHABET[byte] for byte in raw])
    assert small.decode_bytes(ids) == raw
    assert "".join(small.decode_stream(ids)) == small.decode(ids) == raw.decode("utf-8", "replace")


@pytest.mark.parametrize("bad", [-1, 600, 10**20])
def test_ids_out_of_range_are_named(small: gpt2.Tokenizer, bad: int) -> None:
    assert small.vocab_size == 600
    calls: list[Callable[[Iterable[int]], Any]] = [
        small.decode,
        small.decode_bytes,
        small.ids_to_tokens,
        lambda ids: list(small.decode_stream(ids)),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=rf"ids holds {bad}, outside 0 to 599 \(vocab_size"):
            call([0, bad])
        with pytest.raises(TypeError):
            call([0.5])  # type: ignore[list-item]


def test_arrays_decode(small: gpt2.Tokenizer) -> None:
    numpy = pytest.importorskip("numpy")
    torch = pytest.importorskip("torch")
    ids = small.encode("the lazy dog")
    for array in (numpy.array(ids), torch.tensor(ids), tuple(ids), iter(ids)):
        assert small.decode(array) == "the lazy dog"


def test_unknown_tokens_are_named(small: gpt2.Tokenizer) -> None:
    with pytest.raises(ValueError, match="tokens holds 'no such token'.* 600 tokens"):
        small.tokens_to_ids(["a", "no such token"])
    with pytest.raises(ValueError, match="tokens='abc' is one string"):
        small.tokens_to_ids("abc")


# Special and added tokens.


def test_special_tokens_are_text_unless_allowed(case: Case) -> None:
    tokenizer, text = case.tokenizer, f"one{END} two{END}"
    (end,) = tokenizer.tokens_to_ids([END])
    assert end not in tokenizer.encode(text)
    assert tokenizer.special == (END,)
    expected = case.tiktoken.encode(text, allowed_special="all")
    assert expected.count(end) == 2
    for allowed in ("all", {END}, [END], iter([END])):
        assert tokenizer.encode(text, allowed_special=allowed) == expected
    assert tokenizer.encode_batch([text, text], allowed_special=iter([END])) == [expected] * 2
    assert tokenizer.encode(text, allowed_special=set()) == tokenizer.encode(text)
    ids, offsets = tokenizer.encode_with_offsets(text, allowed_special="all")
    assert ids == expected
    assert tokenizer.decode(ids) == text
    check_offsets(tokenizer, text, ids, offsets)
    assert tokenizer.tokenize(END, allowed_special="all") == [END]


@pytest.mark.parametrize("allowed", [{"<pad>"}, END, ["all"]], ids=str)
def test_names_that_are_not_special_are_refused(small: gpt2.Tokenizer, allowed: Any) -> None:
    for call in (small.encode, small.encode_with_offsets, small.tokenize):
        with pytest.raises(ValueError, match=r"allowed_special=.*\('<\|endoftext\|>',\)"):
            call("text", allowed_special=allowed)


ADDED = ["Začnimo", "kuća", "međa", "two words", " ", "\n\n\n", "<a", "<a>", "ĠĠx", "👍👍"]


def test_added_tokens_keep_their_text(case: Case, tmp_path: Path) -> None:
    before = case.tokenizer.vocab_size
    tokens = [token for token in ADDED if token not in case.tokenizer.vocab]
    assert len(tokens) >= 8
    tokenizer = case.tokenizer.extend(tokens)
    ids = list(range(before, before + len(tokens)))
    assert tokenizer.tokens_to_ids(tokens) == ids
    assert tokenizer.ids_to_tokens(ids) == tokens
    assert [tokenizer.decode([at]) for at in ids] == tokens
    assert tokenizer.vocab_size == before + len(tokens)
    assert case.tokenizer.vocab_size == before, "the first tokenizer has changed"
    for token, at in zip(tokens, ids, strict=True):
        text = f"x{token}y"
        assert tokenizer.encode(text) == case.tokenizer.encode(text)
        assert at in tokenizer.encode(text, allowed_special=[token])
        assert tokenizer.decode(tokenizer.encode(text, allowed_special="all")) == text
    assert tokenizer.encode("<a><a", allowed_special="all") == tokenizer.tokens_to_ids(
        ["<a>", "<a"]
    )
    tokenizer.save(tmp_path)
    assert gpt2.load(tmp_path) == tokenizer


@pytest.mark.parametrize("token", ["", "a", END, "\ud800"], ids=ascii)
def test_tokens_that_cannot_be_added_are_refused(small: gpt2.Tokenizer, token: str) -> None:
    with pytest.raises(ValueError, match="added holds"):
        small.extend([token])
    with pytest.raises(ValueError, match="is one string"):
        small.extend("ab")


# Time and memory.


def test_a_million_times_the_same_letter(case: Case) -> None:
    start = time.process_time()
    ids = case.tokenizer.encode("a" * 1_000_000)
    assert time.process_time() - start < 2
    assert case.tokenizer.decode(ids) == "a" * 1_000_000


def test_a_megabyte_without_a_space(case: Case) -> None:
    text = "".join(letter for letter in TRAINING_TEXT if letter.isalpha())
    text *= 1_000_000 // len(text.encode())
    start = time.process_time()
    ids = case.tokenizer.encode(text)
    assert time.process_time() - start < 10
    assert case.tokenizer.decode(ids) == text
    short = text[:20_000]
    assert case.tokenizer.encode(short) == case.tiktoken.encode_ordinary(short)


def test_caches_are_bounded(small: gpt2.Tokenizer) -> None:
    tokenizer = gpt2.Tokenizer(small.vocab, small.merges)
    caches = tokenizer._tables.words, tokenizer._tables.units, tokenizer._tables.first
    for cache in caches:
        cache.limit = 100
    for number in range(500):
        text = f"{number} ({number})\t{number}\n{'x' * number}"
        assert tokenizer.encode(text) == small.encode(text)
        assert all(len(cache) <= 100 for cache in caches)
        assert all(len(word) <= 128 for cache in caches for word in cache)
        assert all(sum(1 + len(word) // 32 for word in cache) <= 100 for cache in caches)


# A value: pure, hashable, picklable; several processes; files.


def test_encoding_changes_nothing(small: gpt2.Tokenizer) -> None:
    before = pickle.dumps(small)
    texts = ["one two", f"three{END}"]
    allowed = {END}
    ids = small.encode_batch(texts, allowed_special=allowed)
    again = small.encode_batch(texts, allowed_special=allowed)
    small.encode_with_offsets(texts[1], allowed_special=allowed)
    small.extend(["<new>"])
    given_ids = [list(row) for row in ids]
    assert [small.decode(row) for row in ids] == texts
    ids[0].append(0)
    assert small.encode_batch(texts, allowed_special=allowed) == again == given_ids
    assert (texts, allowed) == (["one two", f"three{END}"], {END})
    assert pickle.dumps(small) == before
    with pytest.raises(AttributeError):
        small.merges = ()  # type: ignore[misc]
    with pytest.raises(TypeError):
        small.vocab["a"] = 0  # type: ignore[index]


def test_equality_and_pickles(small: gpt2.Tokenizer) -> None:
    copy = pickle.loads(pickle.dumps(small))
    assert copy == small
    assert hash(copy) == hash(small)
    assert copy.encode(TRAINING_TEXT) == small.encode(TRAINING_TEXT)
    assert small != small.extend(["<new>"])
    assert repr(small) == f"gpt2.Tokenizer(vocab_size=600, special=['{END}'])"


def test_wrong_arguments_are_named(small: gpt2.Tokenizer) -> None:
    with pytest.raises(ValueError, match="workers=0"):
        small.encode_batch(["a"], workers=0)
    with pytest.raises(ValueError, match="texts='one' is one string"):
        small.encode_batch("one")
    for text, kind in ((b"one", "bytes"), (["one"], "list"), (None, "NoneType")):
        with pytest.raises(TypeError, match=f"text is of type {kind}, not str"):
            small.encode(text)  # type: ignore[arg-type]


def test_saved_files_load_in_transformers(case: Case) -> None:
    transformers = pytest.importorskip("transformers")
    peer = transformers.GPT2Tokenizer.from_pretrained(case.directory)
    for text in AWKWARD:
        if END not in text:
            assert peer(text)["input_ids"] == case.tokenizer.encode(text)
    assert len(peer) == case.tokenizer.vocab_size
    assert gpt2.load(case.directory) == case.tokenizer


def test_directories_of_transformers_load(case: Case, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    peer = transformers.GPT2Tokenizer.from_pretrained(case.directory)
    peer.add_tokens(["<sep>", "two words"])
    peer.save_pretrained(tmp_path)
    tokenizer = gpt2.load(tmp_path)
    assert tokenizer.encode(TRAINING_TEXT) == case.tokenizer.encode(TRAINING_TEXT)
    assert tokenizer.encode("a<sep>", allowed_special="all") == peer("a<sep>")["input_ids"]
    assert tokenizer == case.tokenizer.extend(["<sep>", "two words"])


def test_saved_again_the_files_are_the_same(case: Case, tmp_path: Path) -> None:
    gpt2.load(case.directory).save(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / name).read_bytes() == (case.directory / name).read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["merges.txt", "vocab.json"]


def test_first_names_of_the_files(small: gpt2.Tokenizer, tmp_path: Path) -> None:
    small.save(tmp_path)
    (tmp_path / "vocab.json").rename(tmp_path / "encoder.json")
    merges = (tmp_path / "merges.txt").read_text(encoding="utf-8")
    (tmp_path / "merges.txt").unlink()
    (tmp_path / "vocab.bpe").write_bytes(merges.replace("\n", "\r\n").encode())
    assert gpt2.load(str(tmp_path)) == small
    assert gpt2.load(tmp_path / "vocab.bpe") == small


# Errors of loading.


def test_an_empty_directory_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"holds no tokenizer.json or vocab.json\+merges.txt or"
    ):
        gpt2.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="is no directory and no name of a model"):
        gpt2.load(tmp_path / "missing")


def test_a_name_that_the_hub_cannot_give(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError) as caught:
        gpt2.load("no-such-owner/no-such-model")
    for part in (
        "'no-such-owner/no-such-model' is no directory",
        "the hub",
        "by hand",
        "merges.txt",
    ):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_hubs_cache_is_enough(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small: gpt2.Tokenizer
) -> None:
    """Files that are in the cache are read without a word to the network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--owner--model"
    small.save(repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    assert gpt2.load("owner/model") == small


def damage(directory: Path, name: str, old: str, new: str) -> None:
    text = (directory / name).read_text(encoding="utf-8")
    assert old in text
    (directory / name).write_text(text.replace(old, new, 1), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("vocab.json", "{", "", "vocab.json is not JSON"),
        ("vocab.json", '"!": 0', '"!": "0"', "not a JSON object of token: id"),
        ("vocab.json", '"!": 0', '"!": 1', "must give its 600 tokens the ids 0 to 599"),
        ("vocab.json", '"!": 0, ', "", r"vocab lacks 1 of the 256 symbols .* '!'"),
        ("merges.txt", "\n", "\nno-such-token x\n", "merge 'no-such-token' 'x' needs"),
        ("merges.txt", "\n", "\none two three\n", "merges.txt, line 2: 'one two three' is not two"),
        ("merges.txt", "\n", "\nalone\n", "merges.txt, line 2: 'alone' is not two"),
    ],
)
def test_damaged_files_are_named(
    small: gpt2.Tokenizer, tmp_path: Path, name: str, old: str, new: str, message: str
) -> None:
    small.save(tmp_path)
    damage(tmp_path, name, old, new)
    with pytest.raises(ValueError, match=message):
        gpt2.load(tmp_path)


def test_added_tokens_must_follow(small: gpt2.Tokenizer, tmp_path: Path) -> None:
    small.save(tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"<pad>": 700}')
    with pytest.raises(ValueError, match=r"added tokens \['<pad>'\].*follow the 600"):
        gpt2.load(tmp_path)


def test_other_kinds_of_tokenizer_json_are_refused(tmp_path: Path) -> None:
    other = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    other.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="is not a GPT-2 tokenizer: .*'WordPiece'"):
        gpt2.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(ValueError, match="is not a tokenizer.json file"):
        gpt2.load(tmp_path)


# Training.


def test_training_gives_the_vocabulary_asked_for() -> None:
    tokenizer = gpt2.train([TRAINING_TEXT], 400)
    assert tokenizer.vocab_size == 400
    assert tokenizer.tokens_to_ids([END]) == [399]
    assert tokenizer.ids_to_tokens([0, 255]) == ["!", "Ń"]
    parts = TRAINING_TEXT.split(".")
    assert gpt2.train(reversed(parts), 400) == gpt2.train(iter(parts), 400)
    with pytest.raises(ValueError, match="vocab_size=256 is below 257"):
        gpt2.train(["text"], 256)


def test_training_never_merges_over_the_end_of_a_text() -> None:
    tokenizer = gpt2.train([f"ab{END}ab{END}" * 50], 300)
    assert tokenizer.vocab == {**{s: i for i, s in enumerate(sorted(_byte_level.ALPHABET))},
                               "ab": 256, END: 257}  # fmt: skip
