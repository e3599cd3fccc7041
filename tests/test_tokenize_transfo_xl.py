"""Transformer-XL's tokenizer: equal to pytorch-pretrained-bert's; its files, pytorch-pretrained-bert's, hostile ones."""

import gzip
import os
import pickle
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import data_path
from hostile import cuts, flips, little_memory, nothing_runs
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_pretrained_bert import tokenization_transfo_xl as ppb
from test_hostile_pickles import BOMBS, CALLS, calls, swap_pickle

from fnlm.tokenize import transfo_xl, words
from fnlm.tokenize.transfo_xl import Tokenizer

EXAMPLES = int(os.environ.get("FNLM_EXAMPLES", "300"))
Theirs = ppb.TransfoXLTokenizer

# Odd white space, letters whose lower case is longer or depends on their place, delimiters.
ALPHABET = "ab AB ,|<>\t\x0b\x1c\x1f\x85\xa0\u180e\u200b\u2003\u2028\u3000\ufeff"
ALPHABET += "İΣσςßẞé\u0301漢👍\ud83d\x00"
TEXTS = st.one_of(st.text(ALPHABET, max_size=40), st.text(max_size=40))
DELIMITERS = st.sampled_from([None, " ", ",", "|", "ab", ""])


def theirs_of(lines: list[str], **arguments: Any) -> Any:
    """pytorch-pretrained-bert's tokenizer, its vocabulary that of some lines."""
    made = Theirs(**arguments)
    made.count_sents([made.tokenize(line) for line in lines])
    made.build_vocab()
    return made


def assert_same(ours: Tokenizer, theirs: Any) -> None:
    assert [*ours.vocab] == theirs.idx2sym
    assert dict(ours.vocab) == dict(theirs.sym2idx)
    assert ours.vocab_size == len(theirs)


def unpacked(name: str, folder: Path) -> Path:
    """A file of WikiText as such: pytorch-pretrained-bert reads no gzip."""
    path = folder / name.replace("/", "-").removesuffix(".gz")
    path.write_bytes(gzip.decompress(data_path(f"wikitext/{name}").read_bytes()))
    return path


# Words and vocabularies.


@settings(max_examples=EXAMPLES)
@given(TEXTS, st.booleans(), DELIMITERS)
def test_words_equal_pytorch_pretrained_bert(text: str, lower_case: bool, delimiter: str | None) -> None:
    theirs = Theirs(lower_case=lower_case, delimiter=delimiter)
    found = words.split(text, lower_case, delimiter)
    assert found == [*theirs.tokenize(text)]
    tokenizer = Tokenizer({}, lower_case, delimiter)
    for ends in ({"add_eos": True}, {"add_double_eos": True}, dict.fromkeys(ENDS, True)):
        if delimiter != "":  # there, pytorch-pretrained-bert adds a list to a string
            assert tokenizer.tokenize(text, **ends) == theirs.tokenize(text, **ends)


ENDS = ("add_eos", "add_double_eos")


@settings(max_examples=EXAMPLES)
@given(TEXTS, st.booleans(), DELIMITERS)
def test_places_are_those_of_the_words(text: str, lower_case: bool, delimiter: str | None) -> None:
    places = words.places(text, lower_case, delimiter)
    lowered = [text[a:b].lower() if lower_case else text[a:b] for a, b in places]
    # A last sigma may become another letter than one before the delimiter "ab".
    lowered = [part.replace("ς", "σ") for part in lowered]
    found = [word.replace("ς", "σ") for word in words.split(text, lower_case, delimiter)]
    if delimiter == "" and lower_case:  # a letter that becomes two stands for both
        assert all(word in part for word, part in zip(found, lowered, strict=True))
    else:
        assert lowered == found
    assert places == sorted(places)


def test_offsets_are_of_the_text_as_it_was_given() -> None:
    tokenizer = transfo_xl.train(["i\u0307x b"], special=["<eos>", "<S>", "<unk>"])
    text = " İx  Q b\n"
    ids, offsets = replace(tokenizer, lower_case=True).encode_with_offsets(text, add_eos=True)
    assert ids == [3, 2, 4, 0]
    assert offsets == [(1, 3), (5, 6), (7, 8), (9, 9)]
    ids, offsets = tokenizer.encode_with_offsets(text, add_double_eos=True)
    assert ids == [1, 2, 2, 4, 1]
    assert [offsets[0], offsets[-1]] == [(0, 0), (9, 9)]


LINES = st.lists(st.text("abc de\u2003,.fF\n<>unk", max_size=30), max_size=12)
SPECIAL = st.sampled_from([(), ("<eos>",), ("<unk>", "<eos>"), ("<UNK>",), ("a", "<unk>", "a")])


@settings(max_examples=EXAMPLES)
@given(LINES, SPECIAL, st.integers(0, 4), st.sampled_from([None, 0, 1, 5]), st.booleans(), TEXTS)
def test_vocabularies_and_ids_equal_pytorch_pretrained_bert(
    lines: list[str],
    special: tuple[str, ...],
    min_freq: int,
    max_size: int | None,
    lower_case: bool,
    text: str,
) -> None:
    theirs = theirs_of(
        lines,
        special=[*special],
        min_freq=min_freq,
        max_size=max_size,
        lower_case=lower_case,
    )
    ours = transfo_xl.train(
        lines, special=special, min_freq=min_freq, max_size=max_size, lower_case=lower_case
    )
    assert_same(ours, theirs)
    for line in (*lines, text):
        try:
            wanted = theirs.convert_tokens_to_ids(theirs.tokenize(line))
        except ValueError:
            with pytest.raises(ValueError, match="is not among the .* no unknown symbol"):
                ours.encode(line)
        else:
            assert ours.encode(line) == ours.tokens_to_ids(ours.tokenize(line)) == wanted
            assert ours.decode(wanted) == theirs.decode(wanted)
            assert ours.decode(wanted, exclude=[0, 2]) == theirs.decode(wanted, exclude=[0, 2])
            assert ours.encode_with_offsets(line)[0] == wanted
            assert ours.ids_to_tokens(wanted) == theirs.convert_ids_to_tokens(wanted)


@settings(max_examples=EXAMPLES)
@given(TEXTS, DELIMITERS)
def test_texts_come_back(text: str, delimiter: str | None) -> None:
    """With their own delimiter, where pytorch-pretrained-bert always puts a space."""
    tokenizer = transfo_xl.train([text], delimiter=delimiter)
    found = tokenizer.decode(tokenizer.encode(text))
    assert found == (" ".join(text.split()) if delimiter is None else text.strip())


@pytest.mark.parametrize("name", ["wikitext-2", "wikitext-103"])
def test_wikitext_equals_pytorch_pretrained_bert(name: str, tmp_path: Path) -> None:
    """Counting, building and encoding as `get_lm_corpus` does for these files."""
    valid = unpacked(f"{name}/valid-first60.txt.gz", tmp_path)
    test = unpacked(f"{name}/test.txt.gz", tmp_path)
    theirs = Theirs(special=["<eos>"], lower_case=False)
    for path in (valid, test):
        theirs.count_file(str(path))
    theirs.build_vocab()
    counts = words.count(words.lines(valid, data_path(f"wikitext/{name}/test.txt.gz")))
    assert counts == theirs.counter
    ours = transfo_xl.build(counts, special=["<eos>"])
    assert_same(ours, theirs)
    wanted = theirs.encode_file(str(test), ordered=True).numpy()
    found = np.concatenate([np.array(ids) for ids in ours.encode_file(test)])
    np.testing.assert_array_equal(found, wanted)
    assert len(found) == 245_569, "the published count"
    theirs.min_freq, theirs.max_size = 3, 5000
    theirs.build_vocab()
    small = transfo_xl.build(counts, special=["<eos>"], min_freq=3, max_size=5000)
    assert_same(small, theirs)
    lines = [*words.lines(valid)][:300]
    sentences = [theirs.tokenize(line, add_eos=True) for line in lines]
    encoded = [ids.tolist() for ids in theirs.encode_sents(sentences)]
    assert small.encode_batch(lines, add_eos=True) == encoded
    assert any(small.vocab["<unk>"] in ids for ids in small.encode_batch(lines))


def test_lines_are_those_of_files(tmp_path: Path) -> None:
    content = "a b\r\n\n c\x85d\u2028e\rf\n\n"
    (plain := tmp_path / "x.txt").write_bytes(content.encode())
    (packed := tmp_path / "x.txt.gz").write_bytes(gzip.compress(content.encode()))
    wanted = ["a b\n", "\n", " c\x85d\u2028e\n", "f\n", "\n"]
    assert [*words.lines(plain, packed)] == wanted * 2
    theirs = theirs_of(wanted, special=["<eos>"])
    ours = transfo_xl.train(words.lines(plain), special=["<eos>"])
    assert_same(ours, theirs)
    assert [*ours.encode_file(plain)] == [x.tolist() for x in theirs.encode_file(str(plain))]
    for damaged, message in (
        (b"a\xff", "is not UTF-8"),
        (packed.read_bytes()[:-9], "is damaged"),
        (packed.read_bytes()[:20] + b"xxxxxxxx", "is damaged"),
    ):
        plain.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"x.txt {message}"):
            [*words.lines(plain)]
    with pytest.raises(FileNotFoundError, match="nothing.txt"):
        [*words.lines(tmp_path / "nothing.txt")]


def test_ends_of_lines(tmp_path: Path) -> None:
    """An end that the vocabulary lacks is an error, where pytorch-pretrained-bert takes the unknown symbol."""
    (path := tmp_path / "x.txt").write_text("b a\n\nb\n")
    ours = transfo_xl.train(["a b"], special=["<S>", "<eos>"])
    assert [*ours.encode_file(path)] == [[3, 2, 1], [1], [3, 1]]
    assert [*ours.encode_file(path, add_double_eos=True)] == [[0, 3, 2, 0], [0, 0], [0, 3, 0]]
    assert [*ours.encode_file(path, add_eos=False)] == [[3, 2], [], [3]]
    lacking = transfo_xl.train(["a b <unk>"])
    for ends in ({"add_eos": True}, {"add_double_eos": True}):
        with pytest.raises(ValueError, match=r"'<(eos|S)>' is to end a line, .* special=\['<"):
            lacking.encode("a", **ends)


# Errors.


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda t: t.encode(b"a"), TypeError, "text is of type bytes, not str; decode"),
        (lambda t: t.encode(["a"]), TypeError, "text is of type list.* encode_batch"),
        (lambda t: t.encode("a z"), ValueError, "'z' is not among the 2 symbols .* special="),
        (lambda t: t.encode_batch("a"), ValueError, "texts='a' is one string"),
        (lambda t: t.tokens_to_ids("a"), ValueError, "tokens='a' is one string"),
        (lambda t: t.ids_to_tokens([2]), ValueError, r"ids holds 2, outside 0 to 1 \(vocab_size"),
        (lambda t: t.decode([-1]), ValueError, "ids holds -1, outside 0 to 1"),
        (lambda t: t.decode([0.5]), TypeError, "float"),
        (lambda _: transfo_xl.train("a b"), ValueError, "texts='a b' is one string"),
        (lambda _: transfo_xl.train([], special="ab"), ValueError, "special='ab' is one string"),
        (lambda _: transfo_xl.train([], max_size=-1), ValueError, "max_size=-1 must be at least"),
        (lambda _: Tokenizer({"a": 1}), ValueError, "1 symbols the ids 0 to 0"),
        (lambda _: Tokenizer({"a": 0}, unknown="b"), ValueError, "unknown='b' must be one of"),
    ],
)
def test_errors(call: Callable[[Tokenizer], object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call(transfo_xl.train(["a b"]))


def test_equality_pickles_and_arrays_of_ids() -> None:
    tokenizer = transfo_xl.train(["a b <unk>"], lower_case=True)
    again = pickle.loads(pickle.dumps(tokenizer))
    assert (again, hash(again)) == (tokenizer, hash(tokenizer))
    assert again != replace(tokenizer, delimiter=" ")
    assert repr(again) == (
        "transfo_xl.Tokenizer(vocab_size=3, lower_case=True, delimiter=None, unknown='<unk>')"
    )
    assert tokenizer.decode(np.array([0, 2])) == tokenizer.decode(torch.tensor([0, 2])) == "a <unk>"
    assert tokenizer.encode_batch(["a", "c B"], workers=2) == [[0], [2, 1]]


# Files: ours.


@settings(max_examples=EXAMPLES // 3)
@given(LINES, st.booleans(), DELIMITERS, SPECIAL)
def test_saved_tokenizers_come_back(
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[str],
    lower_case: bool,
    delimiter: str | None,
    special: tuple[str, ...],
) -> None:
    """Also symbols that are empty, or hold white space, as other delimiters leave them."""
    folder = tmp_path_factory.mktemp("saved")
    lines = [line.replace("\n", "\x85\u2028") for line in lines]
    made = transfo_xl.train(lines, special=special, lower_case=lower_case, delimiter=delimiter)
    made.save(folder)
    for place in (folder, str(folder), folder / "vocab.txt"):
        assert transfo_xl.load(place) == made
    assert transfo_xl.load(folder, lower_case=True).lower_case


def test_tokens_that_hold_line_breaks_are_not_saved(tmp_path: Path) -> None:
    for symbol in ("a\nb", "a\r", "\ud800"):
        with pytest.raises(ValueError, match="cannot be a line of vocab.txt"):
            Tokenizer({symbol: 0}).save(tmp_path)
    assert not [*tmp_path.iterdir()]


def test_vocabulary_files_equal_pytorch_pretrained_bert(tmp_path: Path) -> None:
    """As that of the One Billion Words: a symbol and its count a line, "<UNK>" for the unknown."""
    (path := tmp_path / "1b_word_vocab.txt").write_text(
        "<S> 100\n the\t90 \n<unk> 9\r\nthe 5\n<UNK> 8\n\u2003é\u3000x\n", newline=""
    )
    theirs = Theirs(vocab_file=str(path))
    theirs.build_vocab()
    ours = transfo_xl.load(path)
    assert_same(ours, theirs)
    assert ours.unknown == "<UNK>"
    text = "the é zzz <unk>"
    ids = ours.encode(text, add_double_eos=True)
    assert ids == theirs.convert_tokens_to_ids(theirs.tokenize(text, add_double_eos=True))
    (path := tmp_path / "vocab.txt").write_text("a\n\nb\n")
    with pytest.raises(ValueError, match="vocab.txt, line 2 is empty"):
        transfo_xl.load(tmp_path)
    path.write_text("")
    with pytest.raises(ValueError, match="vocab.txt is empty"):
        transfo_xl.load(path)
    path.write_text("a\nb\n")
    assert transfo_xl.load(tmp_path) == Tokenizer({"a": 0, "b": 1})
    path.write_bytes(b"a\n\xff")
    with pytest.raises(ValueError, match="vocab.txt is not UTF-8"):
        transfo_xl.load(path)


def test_settings_that_are_not_ours(tmp_path: Path) -> None:
    Tokenizer({"a": 0}).save(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    for content, message in (
        ("[]", "is not a JSON object"),
        ('{"tokenizer_class": "BertTokenizer"}', "is not of a TransfoXLTokenizer"),
        (
            '{"tokenizer_class": "TransfoXLTokenizer", "lower_case": 1}',
            "has lower_case=1, not a bool",
        ),
        ('{"tokenizer_class": "TransfoXLTokenizer", "unknown": "b"}', "unknown='b' must be one"),
        ("{", "is not JSON"),
    ):
        config.write_text(content)
        with pytest.raises(ValueError, match=message):
            transfo_xl.load(tmp_path)
    config.unlink()
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no vocab.txt.* or vocab.bin"):
        transfo_xl.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no corpus.bin"):
        transfo_xl.load_corpus(tmp_path)


# Files: pytorch-pretrained-bert's, and those of its source.


def write(value: Any, path: Path, way: str) -> Path:
    """Write a file as torch does, now or before 1.6, or as a plain pickle."""
    if way.startswith("pickle"):
        path.write_bytes(pickle.dumps(value, protocol=int(way[-1])))
    else:
        torch.save(value, path, _use_new_zipfile_serialization=way == "zip")
    return path


WAYS = ["zip", "legacy", "pickle 2", "pickle 4"]
each_way = pytest.mark.parametrize("way", WAYS)


@each_way
@pytest.mark.parametrize("special", [("<eos>",), ("<unk>", "<eos>"), ("unk",), ()])
def test_vocab_bin_is_read(way: str, special: tuple[str, ...], tmp_path: Path) -> None:
    """As `save_vocabulary` of pytorch-pretrained-bert writes it: all of its attributes."""
    lines = ["a b unk <unk> É", "漢 a \x85 b a"]
    theirs = theirs_of(lines, special=[*special], lower_case=True, min_freq=1)
    path = write(theirs.__dict__, tmp_path / "vocab.bin", way)
    with nothing_runs():
        ours = transfo_xl.load(path)
    assert transfo_xl.load(tmp_path) == ours
    assert_same(ours, theirs)
    assert ours.lower_case
    text = "A zzz É"
    assert ours.encode(text) == theirs.convert_tokens_to_ids(theirs.tokenize(text))


def test_vocab_bin_of_the_function_of_pytorch_pretrained_bert(tmp_path: Path) -> None:
    theirs = theirs_of(["a b", "c"], delimiter=" ")
    theirs.save_vocabulary(str(tmp_path))
    ours = transfo_xl.load(tmp_path)
    assert_same(ours, theirs)
    assert (ours.delimiter, ours.lower_case, ours.unknown) == (" ", False, None)


def made_corpus(path: Path) -> Any:
    for split in ("train", "valid", "test"):
        (path / f"{split}.txt").write_text(f"a b {split}\n\n b\n" * 3)
    corpus = ppb.TransfoXLCorpus(special=["<eos>"])
    corpus.build_corpus(str(path), "wt2")
    return corpus


@each_way
def test_corpus_bin_is_read(way: str, tmp_path: Path) -> None:
    """As pytorch-pretrained-bert's converter writes it: all attributes but the vocabulary, NumPy arrays."""
    wanted = made_corpus(tmp_path)
    content = {k: v for k, v in wanted.__dict__.items() if k != "vocab"}
    for dtype in ("<i8", ">i4", "u2", "i1"):
        arrays = {split: content[split].numpy().astype(dtype) for split in ("train", "valid")}
        write({**content, **arrays, "test": None}, tmp_path / "corpus.bin", way)
        with nothing_runs():
            found = transfo_xl.load_corpus(tmp_path)
        assert [*found] == ["train", "valid"]
        for split, parts in found.items():
            assert [part.dtype for part in parts] == [np.int64]
            np.testing.assert_array_equal(parts[0], content[split].numpy())


@pytest.mark.parametrize("way", ["zip", "legacy"])
def test_cached_corpora_are_read(way: str, tmp_path: Path) -> None:
    """As `get_lm_corpus` writes it: the object itself, with its tokenizer and tensors."""
    wanted = made_corpus(tmp_path)
    path = write(wanted, tmp_path / "cache.pt", way)
    assert_same(transfo_xl.load(path), wanted.vocab)
    found = transfo_xl.load_corpus(tmp_path)
    for split in ("train", "valid", "test"):
        np.testing.assert_array_equal(found[split][0], getattr(wanted, split).numpy())
    whole = torch.arange(100, dtype=torch.int32)
    sentences = {"train": ["x.txt"], "valid": [whole[3:9], whole[5:], torch.tensor([7])]}
    write(sentences, path, way)
    found = transfo_xl.load_corpus(path)
    assert [part.tolist() for part in found.pop("valid")] == [
        [*range(3, 9)], [*range(5, 100)], [7]
    ]  # fmt: skip
    assert not found


@pytest.mark.parametrize("module", ["vocabulary", "utils.vocabulary"])
def test_corpora_of_the_source_are_read(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As kimiyoung/transformer-xl writes corpus.pkl: objects of its own classes."""
    modules = {name: ModuleType(name) for name in ("data_utils", "utils", module)}
    for name, here in modules.items():
        monkeypatch.setitem(sys.modules, name, here)
    vocab_class = type("Vocab", (), {"__module__": module})
    corpus_class = type("Corpus", (), {"__module__": "data_utils"})
    setattr(modules[module], "Vocab", vocab_class)  # noqa: B010
    setattr(modules["data_utils"], "Corpus", corpus_class)  # noqa: B010
    theirs = theirs_of(["a b <unk>"], special=["<eos>"])
    vocab, corpus = vocab_class(), corpus_class()
    vocab.__dict__.update(theirs.__dict__)
    corpus.__dict__.update(vocab=vocab, train=np.arange(5), valid=None, cutoffs=[3])
    for name, way in (("corpus.pkl", "pickle 2"), ("cache.pkl", "pickle 4"), ("cache.pt", "zip")):
        path = write(corpus, tmp_path / name, way)
        assert_same(transfo_xl.load(path), theirs)
        assert transfo_xl.load_corpus(path)["train"][0].tolist() == [0, 1, 2, 3, 4]


def test_pickles_of_python_2_are_read(tmp_path: Path) -> None:
    """There, a dict in order is made of a list of lists, and bytes are text."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01K\x03\x85"
        b"cnumpy\ndtype\n(U\x02i2K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x06\x01\x00\x02\x00\xff\x7ftb"
    )
    ids = b"ccollections\nOrderedDict\n](](U\x01aK\x00e](X\x02\x00\x00\x00\xc3\xa9K\x01ee\x85R"
    content = b"\x80\x02}(U\x07idx2sym](U\x01aX\x02\x00\x00\x00\xc3\xa9eU\x07sym2idx" + ids
    path = tmp_path / "corpus.pkl"
    path.write_bytes(content + b"U\x05train" + array + b"u.")
    assert dict(transfo_xl.load(path).vocab) == {"a": 0, "é": 1}
    assert transfo_xl.load_corpus(path)["train"][0].tolist() == [1, 2, 32767]


# Damaged and hostile files.


def outcomes(read: Callable[[Path], object], path: Path, contents: Iterator[bytes]) -> Counter[str]:
    """Read files of these contents: nothing runs, and every error is a clear one."""
    counts: Counter[str] = Counter()
    for content in contents:
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        with nothing_runs():
            try:
                read(path)
                counts["read"] += 1
            except ValueError as error:
                assert path.parent.name in str(error) or "vocab" in str(error), error
                assert len(str(error)) < 2000
                counts["error"] += 1
    return counts


@pytest.mark.parametrize("way", ["zip", "legacy", "pickle 4"])
def test_damaged_files(way: str, tmp_path: Path, tally: Callable[..., None]) -> None:
    value = {
        "idx2sym": ["<eos>", "a"],
        "sym2idx": OrderedDict([("<eos>", 0), ("a", 1)]),
        "train": np.arange(3),
    }
    if not way.startswith("pickle"):
        value["valid"] = torch.arange(3)
    content = write(value, tmp_path / "x.bin", way).read_bytes()
    stride = 5 if way == "zip" else 2
    for read in (transfo_xl.load, transfo_xl.load_corpus):
        tried = [*flips(content), *cuts(content)][::stride]
        counts = outcomes(read, tmp_path / "y.bin", iter(tried))
        tally(f"vocabulary and corpus pickles, {way}", counts)
        assert counts["error"] > 0.3 * len(tried)


def programs(argument: str) -> Iterator[bytes]:
    """Pickles that call something: alone, as the symbols, and among the attributes."""
    for name in CALLS:
        for at, body in enumerate(calls(name, argument)):
            key = (b"idx2sym", b"counter", b"train")[at % 3]
            item = b"U" + bytes([len(key)]) + key + body
            yield b"\x80\x02" + body + b"."
            yield b"\x80\x02}" + item + b"s."
            yield b"\x80\x02}(U\x07idx2sym](U\x01ae" + item + b"u."


def test_hostile_pickles_run_nothing(tmp_path: Path, tally: Callable[..., None]) -> None:
    """What is read are names alone, and calls of those that a vocabulary is made of: as records."""
    sentinel = tmp_path / "was_here"
    bodies = [*programs(f"touch {sentinel}")]
    content = write({"w": torch.arange(6.0)}, tmp_path / "w.bin", "zip").read_bytes()
    for read in (transfo_xl.load, transfo_xl.load_corpus):
        path = tmp_path / "vocab.bin"
        counts = outcomes(read, path, iter(bodies[::2]))
        counts += outcomes(read, path, (swap_pickle(content, body, False) for body in bodies[1::8]))
        tally("hostile vocabularies and corpora", counts)
        assert counts["error"] > 1500
        assert counts["read"] < 40
    assert not sentinel.exists()


def test_the_forbidden_name_and_the_remedy_are_named(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, ("touch was_here",)

    path = write({"idx2sym": ["a"], "counter": Evil()}, tmp_path / "vocab.bin", "zip")
    with pytest.raises(ValueError, match=r"vocab.bin .* (posix|nt) system, .* a vocab.txt, one a"):
        transfo_xl.load(tmp_path)
    os.rename(path, tmp_path / "corpus.bin")
    with pytest.raises(ValueError, match=r"corpus.bin .* (posix|nt) system, .* encode the text"):
        transfo_xl.load_corpus(tmp_path)


def test_bombs_end_in_errors_in_little_memory(tmp_path: Path) -> None:
    for name, program in BOMBS.items():
        if len(program) < 10_000 and program[:1] == b"\x80":  # else it is a text
            (path := tmp_path / f"{len(name)}.bin").write_bytes(program)
            for read in (transfo_xl.load, transfo_xl.load_corpus):
                with little_memory(1 << 22), pytest.raises(ValueError, match=r"\.bin|vocab"):
                    read(path)


ODD = ["unk_idx", "lower_case", "delimiter", "idx2sym", "sym2idx", "vocab", "train"]


@pytest.mark.parametrize("name", ODD)
def test_endless_values_are_not_written_out(name: str, tmp_path: Path) -> None:
    """A list of lists of ten times the list before, where something else should be."""
    lists = BOMBS["laughs"][:-1]  # the hundredth is in memo 99
    symbols = b"" if name in ("vocab", "idx2sym") else b"U\x07idx2sym](U\x01ae"
    key = b"U" + bytes([len(name)]) + name.encode()
    (path := tmp_path / "x.bin").write_bytes(lists + b"}(" + symbols + key + b"hcu.")
    with little_memory(1 << 22), pytest.raises(ValueError, match="x.bin can't be read"):
        transfo_xl.load_corpus(path)
    if name in ("sym2idx", "train"):  # of no meaning if it is no dict, or in a vocabulary
        assert transfo_xl.load(path).vocab_size == 1
    else:
        with little_memory(1 << 22), pytest.raises(ValueError, match="x.bin can't be read"):
            transfo_xl.load(path)


def test_ids_are_not_multiplied(tmp_path: Path) -> None:
    """A list of one array a hundred thousand times is a small file."""
    array = pickle.dumps(np.zeros(10_000, np.int8), protocol=4)
    start = b"\x80\x04}(\x8c\x05train](" + array[array.index(b"\x8c") : -1] + b"\x94"
    memo = start.count(b"\x94") - 1
    repeated = start + (b"h" + bytes([memo])) * 100_000 + b"eu."
    (path := tmp_path / "corpus.pkl").write_bytes(repeated)
    with little_memory(1 << 25), pytest.raises(ValueError, match="more ids than it holds"):
        transfo_xl.load_corpus(path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "holds no tokenizer"),
        ({}, "has no idx2sym"),
        ({"idx2sym": ["a", 1]}, "has no idx2sym"),
        ({"idx2sym": ["a", "a"]}, "holds 'a' twice"),
        ({"idx2sym": ["a"], "sym2idx": {"a": 1}}, "contradict each other"),
        ({"idx2sym": ["a"], "unk_idx": 1}, "unk_idx is none of the 1 ids"),
        ({"idx2sym": ["a"], "lower_case": 1}, "lower_case is no bool"),
        ({"idx2sym": ["a"], "delimiter": 1}, "delimiter no text"),
        ({"idx2sym": ["a"], "vocab": 3, "train": np.zeros((2, 2), np.int64)}, None),
    ],
)
def test_pickles_of_other_things(value: Any, message: str | None, tmp_path: Path) -> None:
    path = write(value, tmp_path / "vocab.bin", "pickle 4")
    if message is None:
        assert transfo_xl.load(path).vocab_size == 1
    else:
        with pytest.raises(ValueError, match=message):
            transfo_xl.load(path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"train": None}, "no ids under train"),
        ({"train": np.zeros((2, 2), np.int64)}, "no array of integers with one axis"),
        ({"train": np.zeros(2)}, "no integers"),
        ({"train": torch.zeros(2)}, "no integers"),
        ({"train": torch.arange(9)[::2]}, "no array of integers with one axis"),
        ({"train": [1, 2]}, "no array of integers with one axis"),
    ],
)
def test_corpora_of_other_things(value: Any, message: str, tmp_path: Path) -> None:
    write(value, tmp_path / "corpus.bin", "zip")
    with pytest.raises(ValueError, match=message):
        transfo_xl.load_corpus(tmp_path)


def test_a_large_vocabulary_is_read(tmp_path: Path) -> None:
    """It may take more steps than a file of weights."""
    write({"idx2sym": ["a"], "more": [None] * 1_000_001}, tmp_path / "vocab.bin", "legacy")
    assert transfo_xl.load(tmp_path).vocab_size == 1
