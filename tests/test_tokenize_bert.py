"""BERT's tokenizers: equal to the published ones, pinned to one Unicode, places, special tokens."""

import os
import sys
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bert_corpus
import make_unicode
import pytest
import tokenizers
from bert_references import (
    NAMES,
    OLD_PEER,
    PINNED,
    Tokenize,
    check_offsets,
    plain,
    reference_words,
    references,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from fnlm.tokenize import _unicode, bert, wordpiece
from fnlm.tokenize._bert_words import CARE, PROFILES, SPECIAL, Spacing, make_rules, words

EXAMPLES = int(os.environ.get("FNLM_EXAMPLES", "300"))
# Make the character data anew, which takes ten seconds.
FULL = os.environ.get("FNLM_TEST_FULL", "0") != "0"

TEXT = """
The quick brown fox jumps over the lazy dog; wasn't it Jim Henson, a puppeteer? Unaffable!
Café naïve Ångström Straße İstanbul ΟΔΟΣ ΑΣ Σ ﬁn mở bài lạc trôi Začnimo
我能吞下玻璃而不伤身体 アリババ株式会社の公式サイトです 한국어 अपने पोस्ट ऑफिस में שלום
"""


def small_vocabulary() -> list[str]:
    """Return a vocabulary in which many words are known, cut or unknown."""
    everything = sorted(
        {*TEXT, *TEXT.lower(), *unicodedata.normalize("NFD", TEXT.lower())} - {"\n"}
    )
    letters = [character for character in everything if not character.isspace()]
    cut = ["un", "##aff", "##able", "##in", "##er", "quick", "The", "the", "fox", "##ox", "##σ"]
    tokens = [*SPECIAL, "[unused1]", *letters, *(f"##{letter}" for letter in letters[::2]), *cut]
    return list(dict.fromkeys([*tokens, "cafe", "caf", "##e", "ο", "οδος", "ß", "##s", "##t"]))


@pytest.fixture(scope="session")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("small") / "vocab.txt"
    file.write_text("".join(f"{token}\n" for token in small_vocabulary()), encoding="utf-8")
    return file


class Case:
    """The tokenizers of all profiles, and what they are to reproduce."""

    def __init__(self, path: Path, lower: bool) -> None:
        self.peers: dict[str, Tokenize] = references(path, lower)
        self.ours = {name: bert.load(path, lower_case=lower, profile=name) for name in NAMES}

    def check(self, text: str) -> None:
        """Equal tokens, equal ways to get them, and places that hold them."""
        for name, tokenizer in self.ours.items():
            ids = tokenizer.encode(text)
            if PINNED or name == "transformers":
                assert tokenizer.ids_to_tokens(ids) == self.peers[name](text), name
            found, offsets = tokenizer.encode_with_offsets(text)
            assert found == ids, name
            check_offsets(tokenizer, text, ids, offsets)


@pytest.fixture(scope="session", params=["lower-cased", "cased"])
def case(request: pytest.FixtureRequest, path: Path) -> Case:
    return Case(path, request.param == "lower-cased")


@pytest.fixture(scope="session")
def uncased(path: Path) -> dict[str, bert.Tokenizer]:
    return {name: bert.load(path, lower_case=True, profile=name) for name in NAMES}


@pytest.fixture(scope="session")
def cased(path: Path) -> dict[str, bert.Tokenizer]:
    return {name: bert.load(path, lower_case=False, profile=name) for name in NAMES}


# Inputs that broke somebody's tokenizer, and more of their kind.
AWKWARD = [
    "\U0001f971", "📷🤏", "\U0001f9be", "\U0001fae8", "\uf059 word", "a\u0301", "\u00e1", "a\u0300",
    "अपने पोस्ट ऑफिस में", "アリババ株式会社の公式サイトです", "mở bài lạc trôi", "x" * 99, "x" * 100,
    "x" * 101, "x" * 200, "x" * 201, "e\u0301" * 60, "é" * 101, "\x00", "\ufffd", "\x1c", "\x85",
    "\u2028", "\u200b", "\u200d", "\ufeff", "\u180e", "\u202f", "\u3000", "a\x1cb a\x85b a\x0bb",
    "a\u2028b a\u2029b a\u202fb", "A, [MASK] AllenNLP sentence.", "naïve [MASK]", "l'eure",
    "do not", "İ", "ΑΣ", "ß", "ﬁ", '=LLC-s nmrcsss mtiaiol!@"ccc technooay @"ccc"@"ccc',
    "", " ", "\x00\x01\x02", "\u00ad\u200b", "ΟΔΟΣ ΑΣ'Α ΑΣ'. Σ ΣΣ 1Σ \u00adΑ\u00adΣ\u00ad Σ\u0301",
    "the[MASK]fox", "[MASK]. [mask] [ MASK ] [MA\x00SK] [[MASK]] [CLS][SEP]", "中[MASK]国", "[Σ]",
    "\u302e\u302f\u0301 \U0001d165\U0001d16d\U0001d165 \u1715\u0334", "각 가\u11a8 \u1100\u1161",
    "\U0002b820 \U0002b91f \U0002b920 \uf900 \U0002f800", "“quoted”—text…", "$9.99^2`x`~|<>=+",
    "\U0010ffff \ue000 \u0378 \U0003ffff", "\u1c80 \ua7cb \U00010d50 \U00016ea0", "K Å Ω ẞ ſ ı",
    "\u0301a \u0301 .\u0301b \u20dd a\u20dd", "İİ\u0307 i\u0307", "\u0345Α\u0345Σ\u0345",
]  # fmt: skip


@pytest.mark.parametrize("text", AWKWARD, ids=lambda text: ascii(text)[:30])
def test_awkward_inputs(case: Case, text: str) -> None:
    case.check(text)
    case.check(f"The {text} fox{text}fox")


def test_a_text_of_many_kinds(case: Case) -> None:
    case.check(TEXT)
    case.check(TEXT.upper())
    case.check(unicodedata.normalize("NFD", TEXT))


# Only what Unicode 14 has assigned: on a newer Python the references know more.
known = st.characters(exclude_categories=["Cs"])
marks = st.sampled_from(
    "\u0301\u0316\u0334\u0345\u302e\u302f\u1715\u1734\U0001d165\U0001d16d\u093f"
)
clumsy = st.sampled_from(
    [*" \t\n.'aAbß中각가\u11a8Σσςİ\x00\x1c\u00ad\u2028", "[MASK]", "[UNK]", "The"]
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(text=st.lists(st.one_of(clumsy, marks, known), max_size=12).map("".join))
def test_any_text_equals_the_references(case: Case, text: str) -> None:
    case.check(text)


@settings(max_examples=EXAMPLES, deadline=None)
@given(text=st.lists(st.one_of(clumsy, st.characters(categories=["Cs"])), max_size=9).map("".join))
def test_no_text_raises(uncased: dict[str, bert.Tokenizer], text: str) -> None:
    for tokenizer in uncased.values():
        ids, offsets = tokenizer.encode_with_offsets(text)
        assert ids == tokenizer.encode(text)
        check_offsets(tokenizer, text, ids, offsets)


# What the profiles do differently.


def test_what_vanishes_depends_on_the_profile(uncased: dict[str, bert.Tokenizer]) -> None:
    """A private character, and one that Unicode 14 has not assigned."""
    for text in ("\uf059", "\U0001fae8"):
        tokens = {name: tokenizer.tokenize(f"the {text}") for name, tokenizer in uncased.items()}
        assert tokens["ppb-0.6.2"] == tokens["google-2018-11"] == ["the"]
        assert tokens["google-2019-03"] == ["the", "[UNK]"]
    assert uncased["transformers"].tokenize("\uf059") == []
    assert uncased["transformers"].tokenize("\U0001fae8") == ["[UNK]"]
    for tokenizer in uncased.values():
        assert tokenizer.tokenize("\U0001f971 📷🤏 \U0001f9be") == ["[UNK]"] * 3


@pytest.mark.parametrize(("name", "most"), [(n, p.max_characters) for n, p in PROFILES.items()])
def test_words_have_a_longest_length(
    uncased: dict[str, bert.Tokenizer], name: str, most: int
) -> None:
    tokenizer = uncased[name]
    assert most == (200 if name.startswith("google") else 100)
    for length in (99, 100, 101, 200, 201):
        tokens = tokenizer.tokenize("t" * length)
        assert tokens == (["[UNK]"] if length > most else ["t", *["##t"] * (length - 1)])
    assert tokenizer.tokenize("t\u0301" * most) == tokenizer.tokenize("t" * most)


def test_special_tokens_in_a_text(uncased: dict[str, bert.Tokenizer]) -> None:
    ppb, google, _, peer = uncased.values()
    assert ppb.tokenize("the [MASK] fox") == ["the", "[MASK]", "fox"]
    assert peer.tokenize("the[MASK]fox") == ["the", "[MASK]", "fox"]
    assert "[MASK]" not in google.tokenize("the [MASK] fox")
    assert "[MASK]" not in ppb.tokenize("the [MASK]. fox")
    assert "[MASK]" in ppb.tokenize("the [MA\x00SK] fox"), (
        "pytorch-pretrained-bert cleans a text first"
    )
    assert "[MASK]" not in peer.tokenize("the [MA\x00SK] fox"), "the peer does not"
    text = "A, [MASK] AllenNLP"
    ids, offsets = ppb.encode_with_offsets(text)
    mask = ids.index(ppb.vocab["[MASK]"])
    assert [text[start:end] for start, end in offsets[mask : mask + 2]] == ["[MASK]", "AllenNLP"]


def test_more_tokens_that_are_never_split(path: Path) -> None:
    vocab = wordpiece.read_vocab(path)
    for name in NAMES:
        tokenizer = bert.Tokenizer(vocab, profile=name, never_split=("[unused1]",))
        assert tokenizer.tokenize("The [unused1] fox") == ["the", "[unused1]", "fox"]
        assert "[MASK]" not in tokenizer.tokenize("[MASK]")
        none = bert.Tokenizer(vocab, profile=name, never_split=())
        assert not {*SPECIAL, "[unused1]"} & {*none.tokenize("[MASK] [unused1] [CLS]")} - {"[UNK]"}
    bigger = {**vocab, "[E 1]": len(vocab)}
    peer = bert.Tokenizer(bigger, profile="transformers", never_split=("[E 1]",))
    assert peer.tokenize("The[E 1]fox") == ["the", "[E 1]", "fox"]
    assert bert.Tokenizer(vocab, never_split=("none such",)).tokenize("the") == ["the"]


def test_settings_that_other_models_use(path: Path) -> None:
    """Lower-cased but with accents; ideographs in words; accents taken away from cased text."""
    vocab = wordpiece.read_vocab(path)
    for name in NAMES:
        kept = bert.Tokenizer(vocab, True, name, strip_accents=False)
        assert kept.tokenize("ï Ï i\u0307") == ["ï", "ï", "[UNK]"]
        stripped = bert.Tokenizer(vocab, False, name, strip_accents=True)
        assert stripped.tokenize("ï Ï Thé") == ["i", "[UNK]", "The"]
        joined = bert.Tokenizer(vocab, True, name, tokenize_chinese_chars=False)
        assert joined.tokenize("我能") != ["我", "能"]
        assert bert.Tokenizer(vocab, True, name).tokenize("我能我") == ["我", "能", "我"]
    peer = tokenizers.Tokenizer(tokenizers.models.WordPiece.from_file(str(path), unk_token="[UNK]"))
    peer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    for lower, strip, chinese in [(True, False, True), (False, True, True), (True, True, False)]:
        peer.normalizer = tokenizers.normalizers.BertNormalizer(True, chinese, strip, lower)
        tokenizer = bert.Tokenizer(vocab, lower, "transformers", (), strip, chinese)
        for text in (TEXT, *AWKWARD):
            assert tokenizer.encode(text) == peer.encode(text).ids


# Accents, cases, places.


def test_accents_vanish_only_from_lower_cased_text(
    uncased: dict[str, bert.Tokenizer], cased: dict[str, bert.Tokenizer]
) -> None:
    for name in NAMES:
        lower, same = uncased[name], cased[name]
        assert lower.encode("a\u0301") == lower.encode("\u00e1") == lower.encode("a\u0300")
        assert len({*map(tuple, map(same.encode, ("a\u0301 e", "\u00e1 e", "a e")))}) > 1
        assert plain("अपने पोस्ट में", lower) == "अपनपसटम" or "ो" in plain("पो", lower)
        assert plain("में", lower) == "म"
        assert plain("में", same) == "में"
        assert plain("バ", lower) == "ハ"
        assert plain("で", lower) == "て"
        assert plain("バ", same) == "バ"
        assert same.decode(same.encode("bài")) == "bài"
        assert lower.tokenize("İ") == ["i"]
        assert plain("ﬁß", lower) == "ﬁß"


def test_the_last_sigma_of_a_word(uncased: dict[str, bert.Tokenizer]) -> None:
    """Python lower-cases it by its place, the peer does not."""
    for name, tokenizer in uncased.items():
        last = "σ" if name == "transformers" else "ς"
        spacing = Spacing(make_rules(PROFILES[name], True, True, True, ()))
        rules = spacing.rules
        assert [w.text for w in words("ΟΔΟΣ ΣΑ Σ", rules)] == [f"οδο{last}", "σα", "σ"]
        assert (CARE in "Σ".translate(spacing)) == (name != "transformers")
        assert tokenizer.tokenize("ΟΔΟΣ") == ["οδος" if last == "ς" else "[UNK]"]


def test_places_count_characters_of_the_text_as_given(uncased: dict[str, bert.Tokenizer]) -> None:
    text = "\x00Cafe\u0301s  İ 한국어\u00ad[MASK]\ud83d\ude00 unaffablé!"
    expected = {
        "cafe": "Cafe\u0301", "##s": "s", "i": "İ", "un": "un", "##aff": "aff", "##able": "ablé",
        "!": "!",
    }  # fmt: skip
    for tokenizer in uncased.values():
        ids, offsets = tokenizer.encode_with_offsets(text)
        tokens = tokenizer.ids_to_tokens(ids)
        assert ids == tokenizer.encode(text)
        found = [text[start:end] for start, end in offsets]
        assert {*expected.items()} <= {*zip(tokens, found, strict=True)}
    text = "アリババです"
    ids, offsets = uncased["ppb-0.6.2"].encode_with_offsets(text)
    assert offsets == [(0, 6)] or "".join(text[a:b] for a, b in offsets) == text


@pytest.mark.parametrize(
    "text", ["\ud83d", "\udbc0", "hello \ud800 world", "\udc4d\ud83d"], ids=ascii
)
def test_lone_surrogates_vanish(case: Case, text: str) -> None:
    for tokenizer in case.ours.values():
        assert tokenizer.encode(text) == tokenizer.encode("".join(filter(str.isprintable, text)))
        ids, offsets = tokenizer.encode_with_offsets(text)
        assert ids == tokenizer.encode(text)
        check_offsets(tokenizer, text, ids, offsets)


def test_a_pair_of_surrogates_is_its_character(case: Case) -> None:
    for tokenizer in case.ours.values():
        assert tokenizer.encode("\ud83d\udc4d") == tokenizer.encode("👍") != []
        assert tokenizer.encode_with_offsets("the \ud83d\udc4d")[1][-1] == (4, 6)


# Unicode is pinned.


def characters_that_matter() -> Iterator[int]:
    """Yield every character that any of our tables names, its neighbours, and some of the rest."""
    named: set[int] = set()
    for fields in _unicode._sections().values():
        for field in fields:
            first, _, last = field.partition("=")[0].partition("-")
            for edge in (int(first, 16), int(last or first, 16)):
                named |= {edge - 1, edge, edge + 1}
    rest = range(0, sys.maxunicode + 1, 61)
    yield from sorted(code for code in named | {*rest} if 0 <= code <= sys.maxunicode)


@pytest.mark.parametrize("lower", [True, False], ids=["lower-cased", "cased"])
@pytest.mark.parametrize("name", NAMES)
def test_every_character_by_itself(name: str, lower: bool, path: Path) -> None:
    """The words around and of each character, by the table, with places, and by the reference."""
    codes = [c for c in characters_that_matter() if not 0xD800 <= c < 0xE000]
    assert len(codes) > 20_000
    if name == "transformers" and OLD_PEER:
        codes = [c for c in codes if unicodedata.category(chr(c)) != "Cn"]
    rules = make_rules(PROFILES[name], lower, lower, True, ())
    spacing = Spacing(rules)
    text = " ".join(f"a{chr(code)}b" for code in codes)
    ours = [word.text for word in words(text, rules)]
    assert text.translate(spacing).replace(CARE, "").split() == ours
    if PINNED or name == "transformers":
        assert ours == reference_words(name, lower)(text)


@pytest.mark.skipif(
    not FULL or not PINNED or tokenizers.__version__ != "0.23.3",
    reason="FNLM_TEST_FULL is not set, or the versions are not those of the data",
)
def test_the_character_data_are_what_the_script_makes() -> None:
    assert make_unicode.PATH.read_text(encoding="utf-8") == make_unicode.make()


@pytest.mark.parametrize("name", NAMES)
def test_ids_of_a_million_characters_are_those_recorded(name: str) -> None:
    assert sum(map(len, bert_corpus.lines())) == 1_000_000
    assert bert_corpus.digest(name) == bert_corpus.DIGESTS[name]


# Time and memory.


class Counting(dict[str, int]):
    """A vocabulary that counts how often it is asked."""

    asked = 0

    def get(self, key: str, default: Any = None) -> Any:
        self.asked += 1
        return super().get(key, default)


def test_time_is_linear_in_the_length_of_a_word() -> None:
    vocab = {"[UNK]": 0, "a": 1, "##aaa": 2, "##b": 3, "##a": 4}
    for word in ("a" * 10_000, "ab" * 5_000, "a" * 9_999 + "c"):
        known = wordpiece.pieces(vocab, max_characters=10**6)
        known = known._replace(first=Counting(known.first), later=Counting(known.later))
        pieces = wordpiece.split(word, known)
        assert (pieces[0][0] == 0) == word.endswith("c")
        asked = [table.asked for table in (known.first, known.later) if isinstance(table, Counting)]
        assert sum(asked) <= max(map(len, vocab)) * len(word)


@given(word=st.text("ab", max_size=30), later=st.sets(st.text("ab", min_size=1, max_size=4)))
def test_bounded_pieces_are_the_longest_ones(word: str, later: set[str]) -> None:
    """Against the definition: the longest of all lengths, again and again."""
    tokens = ["[UNK]", "a", "ba", *(f"##{piece}" for piece in sorted(later))]
    vocab = {token: at for at, token in enumerate(tokens)}
    expected: list[wordpiece.Piece] = []
    begin = 0
    while begin < len(word):
        prefix = "##" if begin else ""
        ends = [e for e in range(begin + 1, len(word) + 1) if prefix + word[begin:e] in vocab]
        if not ends:
            expected = [(0, 0, len(word))]
            break
        expected.append((vocab[prefix + word[begin : ends[-1]]], begin, ends[-1]))
        begin = ends[-1]
    assert wordpiece.split(word, wordpiece.pieces(vocab)) == expected


@pytest.mark.parametrize(
    "unit", ["a", "中", "a.", "e\u0301", "Σ", "\u0301", "\x00", "각"], ids=ascii
)
def test_long_runs_take_time_in_proportion(uncased: dict[str, bert.Tokenizer], unit: str) -> None:
    """Ten times the text takes some ten times the time, with room for a busy machine."""
    for name in ("ppb-0.6.2", "transformers"):
        tokenizer = uncased[name]

        def seconds(length: int, tokenizer: bert.Tokenizer = tokenizer) -> float:
            text = unit * (length // len(unit))
            start = time.process_time()
            assert tokenizer.encode(text) == tokenizer.encode_with_offsets(text)[0]
            return time.process_time() - start

        seconds(100)
        small, large = (min(seconds(length) for _ in range(2)) for length in (3_000, 30_000))
        assert large < 40 * small + 0.1
        assert len(tokenizer._tables.words) < 1000
