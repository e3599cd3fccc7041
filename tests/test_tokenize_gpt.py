"""GPT's tokenizer: two modes, each equal to its peer, whatever is installed."""

import copy
import gzip
import json
import pickle
import random
import shutil
import subprocess
import sys
import time
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import pytest
from conftest import ROOT, data_path
from hypothesis import given
from hypothesis import strategies as st
from make_gpt_words import GOLDEN, ours
from peers import hf, ppb, quiet

from fnlm.tokenize import _english, gpt
from fnlm.tokenize._fix_text import _compose, _fix, clean, edited, whole
from fnlm.tokenize._gpt_words import WAYS, Mode, traced

SYMBOLS = [chr(code) for code in range(33, 127)] + ["é", "\n"]
MERGES = [("t", "h"), ("th", "e</w>"), ("l", "o"), ("lo", "w</w>"), ("n", "'"), ("n'", "t</w>")]
JOINED = [left + right for left, right in MERGES]
VOCAB = {
    token: at
    for at, token in enumerate(["<unk>", *SYMBOLS, *(s + "</w>" for s in SYMBOLS), *JOINED])
}
MODES: tuple[Mode, ...] = ("original", "fallback")
SMALL = {mode: gpt.Tokenizer(VOCAB, MERGES, mode) for mode in MODES}
FILES = {"encoder_bpe_40000.json": "vocab.json", "vocab_40000.bpe": "merges.txt"}
RECORDED = json.loads(GOLDEN.read_text())["texts"]

anything = st.text(
    st.one_of(
        st.characters(), st.sampled_from("abc .,'’\"&;<>\r\n\té\u0301ﬁ０—…Ã©â€œ\ud83d\udc4d\ud800")
    )
)
each_mode = pytest.mark.parametrize("mode", MODES)


@lru_cache
def published(mode: Mode) -> gpt.Tokenizer:
    return gpt.load(data_path("vocab/openai-gpt"), mode=mode)


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tokenizer of pytorch-pretrained-bert, without spaCy."""
    directory = tmp_path_factory.mktemp("peer")
    for name, new in FILES.items():
        shutil.copy(data_path(f"vocab/openai-gpt/{name}"), directory / new)
    tokenizer = load_peer(directory)
    if tokenizer.fix_text is not None:
        pytest.skip("spaCy and its model 'en' are installed: the peer takes its other way")
    return tokenizer


def load_peer(directory: Path) -> Any:
    with quiet():
        return ppb().OpenAIGPTTokenizer.from_pretrained(str(directory))


def ids_of(peer: Any, text: str) -> list[int]:
    return peer.convert_tokens_to_ids(peer.tokenize(text))


def lines_of(name: str) -> list[str]:
    return gzip.decompress(data_path(name).read_bytes()).decode().split("\n")


def corpus(name: str) -> list[str]:
    """Texts of the optional data: all of the small ones, every 20th line of the large one."""
    if name == "naughty strings":
        texts = json.loads(data_path("tokenizer/blns-3of4.json").read_text())
        return [text for text in texts if isinstance(text, str)]
    if name == "udhr":
        rows = [json.loads(line) for line in lines_of("tokenizer/udhr.jsonl.gz") if line]
        return [value[:4000] for row in rows for value in row.values() if isinstance(value, str)]
    return lines_of("wikitext/wiki.test.raw.gz")[::20]


@pytest.mark.parametrize("name", ["wiki", "udhr", "naughty strings"])
def test_fallback_ids_equal_pytorch_pretrained_bert_without_spacy(peer: Any, name: str) -> None:
    texts = corpus(name)
    assert len(texts) > 80
    for text in texts:
        assert published("fallback").encode(text) == ids_of(peer, text), ascii(text[:80])


def test_original_words_equal_those_recorded_from_ftfy_and_spacy() -> None:
    assert len(RECORDED) > 50
    for text, fixed, words in RECORDED:
        assert _fix(whole(text, False)).text == fixed
        assert ours(text) == words


def test_original_ids_are_those_of_the_recorded_words(peer: Any) -> None:
    for text, _, words in RECORDED:
        expected = [piece for word in words for piece in peer.bpe(word.lower()).split(" ")]
        assert published("original").encode(text) == peer.convert_tokens_to_ids(expected)


def test_original_words_equal_spacy_where_it_is_installed() -> None:
    from make_gpt_words import Peers

    pytest.importorskip("spacy", exc_type=ImportError)
    pytest.importorskip("ftfy", exc_type=ImportError)
    peers = Peers()
    texts = corpus("wiki")
    same = sum(ours(text) == peers.words(peers.fix(text)) for text in texts)
    assert same >= 0.999 * len(texts)


PROBE = """
import json, sys, types
absent = json.loads(sys.argv[1])
for name in ("spacy", "ftfy"):
    sys.modules[name] = None if absent else types.ModuleType(name)
    if not absent:  # what pytorch-pretrained-bert would call
        sys.modules[name].load = sys.modules[name].fix_text = lambda *_, **__: 1 / 0
sys.path.insert(0, sys.argv[2])
from fnlm.tokenize import gpt
vocab, merges, texts = json.load(sys.stdin)
both = [gpt.Tokenizer(vocab, [tuple(m) for m in merges], m) for m in ("original", "fallback")]
print(json.dumps([[t.encode(text) for text in texts] for t in both]))
"""


def test_the_same_ids_with_and_without_spacy_and_ftfy() -> None:
    texts = [text for text, _, _ in RECORDED]

    def run(absent: bool) -> Any:
        command = [sys.executable, "-c", PROBE, json.dumps(absent), str(ROOT)]
        given = json.dumps([VOCAB, MERGES, texts])
        done = subprocess.run(command, input=given, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    here = [[SMALL[mode].encode(text) for text in texts] for mode in MODES]
    assert run(absent=True) == run(absent=False) == here
    assert here[0] != here[1]


@each_mode
@given(anything)
def test_every_string_has_ids_and_offsets_in_it(mode: Mode, text: str) -> None:
    tokenizer = SMALL[mode]
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text) and len(offsets) == len(ids)
    assert all(0 <= at < tokenizer.vocab_size for at in ids)
    assert all(0 <= start < end <= len(text) for start, end in offsets)
    assert tokenizer.tokens_to_ids(tokenizer.tokenize(text)) == ids


@given(st.text(st.characters(codec="utf-8")))
def test_composing_by_clusters_equals_composing_the_whole(text: str) -> None:
    found = edited(whole(text, True), _compose(text))
    assert found.text == unicodedata.normalize("NFC", text)
    assert found.offsets is not None and len(found.offsets) == len(found.text)


@given(
    anything.map(lambda text: text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
)
def test_clean_text_is_clean_and_fixes_are_final(text: str) -> None:
    cleaned, places = clean(text, traced=True)
    assert cleaned == clean(text).text and places is not None and len(places) == len(cleaned)
    assert "  " not in cleaned and cleaned == cleaned.strip()
    fixed = _fix(whole(text, False)).text
    assert "<" in text or _fix(whole(fixed, False)).text == fixed


@given(st.text(st.sampled_from("aB.'$5%:=<>&é…°C"), min_size=1))
def test_words_leave_nothing_out(text: str) -> None:
    for chunk in clean(text).text.split():
        assert "".join(_english.split(chunk)) == chunk


@pytest.mark.parametrize(
    ("mode", "text", "expected"),
    [
        ("original", "The “LOW”  &lt;", ["The", "“", "LOW", "”", "&lt;"]),
        ("original", "DON'T don't—", ["DON'T", "do", "n't", "—"]),
        ("original", "a…\r\n b", ["a", "…", "\r\n ", "b"]),
        ("original", "cafÃ©\ne\u0301", ["cafÃ©", "\n", "e\u0301"]),
        ("original", "\ufeffﬁx \ud83d\udc4d!", ["ﬁx", "\ud83d\udc4d", "!"]),
        ("fallback", "Ünder DON'T", ["Ünder", "DON", "'", "T"]),
        ("fallback", "e\u0301 \ud83d\udc4d, 漢字", ["e\u0301", "\ud83d\udc4d", ",", "漢", "字"]),
    ],
)
def test_places_are_where_the_words_were(mode: Mode, text: str, expected: list[str]) -> None:
    words = traced(text, WAYS[mode])
    assert [text[word.offsets[0][0] : word.offsets[-1][1]] for word in words] == expected


def test_decode_equals_pytorch_pretrained_bert_with_and_without_clean_up(peer: Any) -> None:
    tokenizer = published("original")
    texts = [text for text, _, _ in RECORDED] + ["i do not know . it 's he 've"]
    choose = random.Random(0)
    rows = [tokenizer.encode(text) for text in texts]
    rows += [choose.choices(range(tokenizer.vocab_size), k=30) for _ in range(50)]
    for ids in rows:
        for clean_up in (True, False):
            expected = peer.decode(ids, clean_up_tokenization_spaces=clean_up)
            assert tokenizer.decode(ids, clean_up=clean_up) == expected
        assert "".join(tokenizer.decode_stream(ids)) == tokenizer.decode(ids, clean_up=False)


def test_special_tokens_follow_the_vocabulary(tmp_path: Path) -> None:
    names = ["_start_", "_delimiter_", "two words"]
    tokenizer = SMALL["original"].extend(names[:2]).extend(names[2:])
    first = len(VOCAB)
    assert tokenizer.special == ("<unk>", *names)
    assert tokenizer.tokens_to_ids(names) == [first, first + 1, first + 2]
    assert tokenizer.vocab_size == first + 3
    text = "_start_ the_delimiter_ two words"
    ids, offsets = tokenizer.encode_with_offsets(text, allowed_special="all")
    assert ids == [first, VOCAB["the</w>"], first + 1, first + 2]
    assert [text[i:j] for i, j in offsets] == ["_start_", "the", "_delimiter_", "two words"]
    assert not {first, first + 1, first + 2} & set(tokenizer.encode(text))
    allowed = tokenizer.encode(text, allowed_special={"two words"})
    assert first + 2 in allowed and first not in allowed
    assert tokenizer.decode(ids) == "_start_the _delimiter_two words"
    assert tokenizer.decode(ids, skip_special=True) == "the"
    tokenizer.save(tmp_path)
    assert gpt.load(tmp_path) == tokenizer
    theirs = load_peer(tmp_path)
    assert theirs.special_tokens == {name: first + at for at, name in enumerate(names)}


@each_mode
def test_the_mode_is_saved_with_the_tokenizer(mode: Mode, tmp_path: Path) -> None:
    SMALL[mode].save(tmp_path)
    other = MODES[MODES[0] == mode]
    assert gpt.load(tmp_path) == SMALL[mode]
    assert gpt.load(tmp_path, mode=other) == SMALL[other]
    (tmp_path / "tokenizer_config.json").unlink()
    assert gpt.load(tmp_path).mode == "original"
    assert SMALL[mode] != SMALL[other]
    for again in (copy.deepcopy(SMALL[mode]), pickle.loads(pickle.dumps(SMALL[mode]))):
        assert again == SMALL[mode] and hash(again) == hash(SMALL[mode])
        assert again.encode("The low") == SMALL[mode].encode("The low")


def test_the_peers_load_what_is_saved(tmp_path: Path) -> None:
    SMALL["fallback"].save(tmp_path)
    text = "the low slow don't, été 5%"
    assert ids_of(load_peer(tmp_path), text) == SMALL["fallback"].encode(text)
    with quiet():
        theirs = hf().OpenAIGPTTokenizer.from_pretrained(tmp_path)
    assert theirs.encode(text) == SMALL["fallback"].encode(text)


def test_openais_files_load_under_their_own_names() -> None:
    tokenizer = published("original")
    assert tokenizer.vocab_size == 40478 and tokenizer.special == ("<unk>",)
    assert tokenizer.tokenize("Hello\nworld’s") == ["hello</w>", "\n</w>", "world</w>", "'s</w>"]


def test_many_texts_are_shared_among_processes() -> None:
    texts = ["the low", "", "DON'T", "é" * 3]
    tokenizer = SMALL["original"]
    expected = [tokenizer.encode(text) for text in texts]
    assert tokenizer.encode_batch(texts) == expected
    assert tokenizer.encode_batch(texts, workers=2) == expected


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda t, _: t.encode(cast(Any, b"low")), TypeError, ["bytes", "str"]),
        (lambda t, _: t.encode_batch("low"), ValueError, ["one string"]),
        (lambda t, _: t.encode("low", allowed_special={"_x_"}), ValueError, ["_x_", "<unk>"]),
        (lambda t, _: t.decode([0, len(VOCAB)]), ValueError, [str(len(VOCAB)), "vocab_size"]),
        (lambda t, _: t.tokens_to_ids(["nope"]), ValueError, ["'nope'", "vocabulary"]),
        (lambda t, _: t.extend("_x_"), ValueError, ["one string"]),
        (lambda t, _: t.extend(["the</w>"]), ValueError, ["'the</w>'", "already"]),
        (lambda t, _: gpt.Tokenizer(VOCAB, MERGES, cast(Any, "spacy")), ValueError, ["'spacy'"]),
        (lambda t, _: gpt.Tokenizer({"a": 0}, []), ValueError, ["<unk>"]),
        (lambda t, _: gpt.Tokenizer({"<unk>": 1}, []), ValueError, ["ids 0 to 0"]),
        (lambda t, _: gpt.Tokenizer(VOCAB, [("q", "z")]), ValueError, ["'q'", "'qz'"]),
        (lambda t, d: gpt.load(d / "none"), FileNotFoundError, ["none"]),
        (lambda t, d: saved_with_mode(t, d, "best"), ValueError, ["'best'", "original"]),
    ],
)
def test_misuse_is_named(
    call: Any, error: type[Exception], words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(error) as caught:
        call(SMALL["original"], tmp_path)
    for word in words:
        assert word in str(caught.value)


def saved_with_mode(tokenizer: gpt.Tokenizer, directory: Path, mode: str) -> gpt.Tokenizer:
    tokenizer.save(directory)
    (directory / "tokenizer_config.json").write_text(json.dumps({"mode": mode}))
    return gpt.load(directory)


HOSTILE = [
    "a",
    "'",
    "(",
    "x.",
    "1'",
    ".",
    "&amp;amp;",
    " ",
    "\n ",
    "'s",
    "e\u0301",
    "a:",
    "a@",
    "#",
]


@pytest.mark.parametrize("piece", HOSTILE, ids=ascii)
@each_mode
def test_time_grows_with_the_length(mode: Mode, piece: str) -> None:
    """Four times the text may take ten times as long, not sixteen; what is quick is let pass."""

    def seconds(length: int) -> float:
        text = "&" + (piece * length)[:length]
        start = time.process_time()
        SMALL[mode].encode_with_offsets(text)
        return time.process_time() - start

    short, long = seconds(4_000), seconds(16_000)
    assert long < max(10 * short, 1.5)
