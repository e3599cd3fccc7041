"""Folders of tokenizers: which file is read, what `save` leaves, files that were cut short."""

import json
import os
import pickle
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import vocabularies
from conftest import data_path
from vocabularies import KINDS, write

from fnlm.tokenize import _files, bert, gpt, gpt2, transfo_xl
from fnlm.tokenize._bert_words import PROFILES, Special
from fnlm.tokenize.added import Added

FULL = os.environ.get("FNLM_TEST_FULL", "0") != "0"
families = pytest.mark.parametrize("family", sorted(KINDS))
Load = Callable[..., Any]
LOADS: dict[str, Load] = {
    "bert": bert.load,
    "gpt": gpt.load,
    "gpt2": gpt2.load,
    "transfo_xl": transfo_xl.load,
}
MAKES: dict[str, Callable[..., Any]] = {
    "bert": vocabularies.bert_small,
    "gpt": vocabularies.gpt_small,
    "gpt2": vocabularies.gpt2_small,
    "transfo_xl": vocabularies.xl_small,
}


# Which file of a folder is read.


def whole(family: str, folder: Path, token: str | None = None) -> Path:
    """Save the small vocabulary as the peer does, in tokenizer.json, perhaps with another token."""
    peer = KINDS[family].peer.from_pretrained(write(family, folder.with_name(f"{folder.name} old")))
    if token is not None:
        peer.add_tokens([token])
    peer.save_pretrained(folder)
    return folder


@families
def test_the_newer_form_wins_where_both_agree(family: str, tmp_path: Path) -> None:
    """What an in-place save of transformers 5 leaves: the old form, and a tokenizer.json."""
    folder = whole(family, write(family, tmp_path / "both"), "covid19")
    old = ["vocab.txt"] if family == "bert" else ["merges.txt", "vocab.json"]
    names = {path.name for path in folder.iterdir()}
    assert names == {*old, "tokenizer.json", "tokenizer_config.json"}
    ours = KINDS[family].load(folder)
    peer = KINDS[family].peer.from_pretrained(folder)
    for text in ("the covid19 cats", "COVID19", "covid1"):
        assert KINDS[family].encode(ours, text) == peer.encode(text, add_special_tokens=False)
    assert ours.tokens_to_ids(["covid19"]) == [len(peer) - 1]


@families
def test_forms_that_disagree_are_both_named(family: str, tmp_path: Path) -> None:
    folder = whole(family, write(family, tmp_path / "both"))
    name = "vocab.txt" if family == "bert" else "vocab.json"
    text = (folder / name).read_text(encoding="utf-8")
    swapped = text.replace("cat", "\0").replace("the", "cat").replace("\0", "the")
    (folder / name).write_text(swapped, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"tokenizer\.json and .*{name} hold different"):
        KINDS[family].load(folder)
    vocab = KINDS[family].load(folder / "tokenizer.json").vocab
    (folder / "tokenizer.json").unlink()
    assert KINDS[family].load(folder).vocab != vocab
    if family == "bert":
        assert KINDS[family].load(folder).vocab["cat"] == vocabularies.BERT_TOKENS.index("the")


@pytest.mark.parametrize("first", ["vocab.txt", "vocab.bin", "vocab.pkl"])
@pytest.mark.parametrize("second", ["vocab.txt", "vocab.bin", "vocab.pkl"])
def test_all_pairs_of_transformer_xls_forms(first: str, second: str, tmp_path: Path) -> None:
    def put(name: str, symbols: list[str]) -> None:
        if name == "vocab.txt":
            (tmp_path / name).write_text("\n".join(symbols) + "\n")
        else:
            ids = {symbol: at for at, symbol in enumerate(symbols)}
            data = {"idx2sym": symbols, "sym2idx": ids, "unk_idx": 1, "lower_case": False}
            (tmp_path / name).write_bytes(pickle.dumps(data))

    symbols = ["<eos>", "<unk>", "a", "b"]
    put(first, symbols)
    put(second, symbols)
    assert [*transfo_xl.load(tmp_path).vocab] == symbols
    put(second, ["<eos>", "<unk>", "b", "a"])
    if first == second:
        assert [*transfo_xl.load(tmp_path).vocab][2:] == ["b", "a"]
        return
    with pytest.raises(ValueError, match="hold different vocabularies"):
        transfo_xl.load(tmp_path)
    assert [*transfo_xl.load(tmp_path / second).vocab][2:] == ["b", "a"]
    assert [*transfo_xl.load(tmp_path / first).vocab][2:] == ["a", "b"]


def test_the_other_names_of_a_vocabulary_must_agree(tmp_path: Path) -> None:
    for family, names in (
        ("gpt", ("encoder_bpe_40000.json", "vocab_40000.bpe")),
        ("gpt2", ("encoder.json", "vocab.bpe")),
    ):
        folder = write(family, tmp_path / family)
        for old, new in zip(("vocab.json", "merges.txt"), names, strict=True):
            shutil.copy(folder / old, folder / new)
        assert KINDS[family].load(folder) == KINDS[family].load(folder / names[0])
        lines = (folder / names[1]).read_text().splitlines()
        (folder / names[1]).write_text("\n".join([*lines[:1], *lines[:0:-1], ""]))
        with pytest.raises(ValueError, match=rf"vocab\.json and .*{names[0]} hold different"):
            KINDS[family].load(folder)


# The file that was named.


@families
def test_the_file_that_was_named_is_read(family: str, tmp_path: Path) -> None:
    """A tokenizer.json and a vocabulary of another model side by side: each by its name."""
    folder = whole(family, tmp_path / "v", "covid19")
    other = MAKES[family]().extend(["<x>"]) if family != "bert" else None
    if other is None:
        (folder / "vocab.txt").write_text("[UNK]\nmine\n")
        (folder / "mine.vocab").write_text("[UNK]\nown\n")
        (folder / "tokenizer_config.json").unlink()
        assert [*bert.load(folder / "vocab.txt").vocab] == ["[UNK]", "mine"]
        assert [*bert.load(folder / "mine.vocab").vocab] == ["[UNK]", "own"]
        assert [*bert.load(str(folder / "mine.vocab")).vocab] == ["[UNK]", "own"]
    else:
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(write(family, tmp_path / "w") / name, folder / name)
        for name in ("vocab.json", "merges.txt"):
            assert not KINDS[family].load(folder / name).added
    found = KINDS[family].load(folder / "tokenizer.json")
    assert found.vocab_size == MAKES[family]().vocab_size + 1
    (folder / "tokenizer.json").rename(folder / "mine.json")
    assert KINDS[family].load(folder / "mine.json").vocab_size == found.vocab_size


def test_a_named_file_of_weights_stands_for_its_folder(tmp_path: Path) -> None:
    for family, load in LOADS.items():
        MAKES[family]().save(tmp_path / family)
        for name in ("model.safetensors", "config.json", "model.ckpt.index"):
            (tmp_path / family / name).write_text("{}")
            if family != "transfo_xl":
                assert load(tmp_path / family / name) == MAKES[family]()
    (tmp_path / "gpt2" / "notes.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r"notes\.txt is not called tokenizer\.json or "):
        gpt2.load(tmp_path / "gpt2" / "notes.txt")


def test_lists_of_added_tokens_come_out_of_the_hubs_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for family in KINDS:
        repository = tmp_path / f"models--owner--{family}"
        folder = write(family, repository / "snapshots" / ("0" * 40))
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0" * 40)
        before = LOADS[family](f"owner/{family}")
        listed = {"<e1>": before.vocab_size}
        (folder / "added_tokens.json").write_text(json.dumps(listed))
        assert LOADS[family](f"owner/{family}").tokens_to_ids(listed) == [before.vocab_size]


# Saving.


def random_tokenizer(draw: random.Random) -> tuple[str, Any]:
    family = draw.choice(sorted(MAKES))
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    added: list[str | Added] = []
    for content in draw.sample(["<s>", "New York", "covid19", "[E1]", "two words", "\ufeffx"], 3):
        chosen = {flag: draw.random() < 0.3 for flag in flags}
        added.append(Added(content, **chosen) if draw.random() < 0.5 else content)
    added = added[: draw.randint(0, 3)]
    settings: dict[str, Any] = {} if family == "transfo_xl" else {"added": added}
    if family == "gpt2":
        settings["add_prefix_space"] = draw.random() < 0.3
    elif family == "gpt":
        settings["mode"] = draw.choice(["original", "fallback"])
        settings["unknown"] = draw.choice(["<unk>", "<other>"])
        added += ["<other>"] if settings["unknown"] == "<other>" else []
    elif family == "transfo_xl":
        settings["delimiter"] = draw.choice([None, "", ",", "\n"])
        settings["unknown"] = draw.choice([None, "the"])
        settings["lower_case"] = draw.random() < 0.5
    else:
        settings["profile"] = draw.choice([*PROFILES])
        settings["lower_case"] = draw.random() < 0.5
        settings["strip_accents"] = draw.choice([None, True, False])
        settings["tokenize_chinese_chars"] = draw.random() < 0.5
        settings["never_split"] = draw.choice([None, (), ("[MASK]", "the"), ("none such", "x")])
        settings["special"] = draw.choice([Special(), Special("a", "b", "c", "e", "x")])
        if draw.random() < 0.3 and not any("<s>" in token for token in added):
            added += draw.choice([["the"], ["[MASK]"], [Added("cat", single_word=True)]])
    return family, MAKES[family](**settings)


def test_loading_gives_what_was_saved_last(tmp_path: Path) -> None:
    """Random tokenizers of random families, one after the other into one folder beside a model."""
    draw, kept = (
        random.Random(4),
        {"config.json": "{}", "model.safetensors": "weights", "a.txt": ""},
    )
    for name, content in kept.items():
        (tmp_path / name).write_text(content)
    for case in range(1500 if FULL else 60):
        if draw.random() < 0.2:  # what another program left
            for name in draw.sample(sorted(_files.OWNED), 3):
                (tmp_path / name).write_text("of another program")
        family, tokenizer = random_tokenizer(draw)
        tokenizer.save(tmp_path)
        again = LOADS[family](tmp_path)
        assert again == tokenizer, (case, tokenizer)
        for text in ("The covid19 [MASK]<s> a two words New York é", "", "new york,the"):
            try:
                expected = tokenizer.encode(text)
            except ValueError:  # Transformer-XL without an unknown symbol
                continue
            assert again.encode(text) == expected
        assert {name: (tmp_path / name).read_text() for name in kept} == kept
        left = {path.name for path in tmp_path.iterdir()} - kept.keys()
        assert left <= _files.OWNED and not any(name.startswith(".") for name in left)
        tokenizer.save(tmp_path / "fresh")
        assert left - {"fresh"} == {path.name for path in (tmp_path / "fresh").iterdir()}
        shutil.rmtree(tmp_path / "fresh")
        for other in LOADS.keys() - {family}:
            with pytest.raises((ValueError, FileNotFoundError)):
                LOADS[other](tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bert.Tokenizer({"[UNK]": 0, "a\nb": 1}), "cannot be a line of vocab.txt"),
        (lambda: bert.Tokenizer({"\ufeff[UNK]": 0, "[UNK]": 1}), "cannot be a line of vocab.txt"),
        (lambda: bert.Tokenizer({"[UNK]": 0, "\ud800": 1}), "cannot be a line of vocab.txt"),
        (lambda: gpt.Tokenizer({"<unk>": 0, "\ud800": 1}, []), "which is not text"),
        (
            lambda: gpt.Tokenizer({"<unk>": 0, " ": 1, "a": 2, " a": 3}, [(" ", "a")]),
            r"hold '  a', which cannot be a line of merges\.txt",
        ),
        (lambda: transfo_xl.Tokenizer({"\ufeffa": 0}), "cannot be a line"),
    ],
)
def test_unloadable_vocabularies_are_not_saved(
    make: Callable[[], Any], message: str, tmp_path: Path
) -> None:
    vocabularies.bert_small().save(tmp_path)
    with pytest.raises(ValueError, match=message):
        make().save(tmp_path)
    assert bert.load(tmp_path) == vocabularies.bert_small()


# A kill.

WATCHED = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link")


def killed_at(operation: int, place: Path, tokenizer: Any) -> bool:
    """Save in a process that is killed just before its n-th operation on files; was it killed?"""
    pid = os.fork()
    if pid == 0:
        left = operation

        def hook(event: str, args: tuple[Any, ...]) -> None:
            nonlocal left
            if event in WATCHED and str(place) in str(args[0]):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        tokenizer.save(place)
        os._exit(0)
    return os.waitpid(pid, 0)[1] != 0


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Path]:
    return (tmp_path / str(number) for number in range(1000))


PAIRS = [
    (vocabularies.gpt2_small(added=("<x>",)), vocabularies.gpt2_small()),
    (vocabularies.bert_small(), vocabularies.bert_small(lower_case=False, added=("<x>",))),
    (vocabularies.gpt_small(added=("<x>",)), vocabularies.gpt_small(mode="original")),
    (vocabularies.xl_small(), vocabularies.bert_small()),
]


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(("old", "new"), PAIRS if FULL else PAIRS[1:4:2], ids=repr)
def test_a_kill_at_any_operation_leaves_the_old_or_the_new(
    old: Any, new: Any, places: Iterator[Path]
) -> None:
    def load(place: Path) -> Any:
        found = []
        for tokenizer in (old, new):
            family = type(tokenizer).__module__.rpartition(".")[2]
            try:
                found.append(LOADS[family](place))
            except (ValueError, FileNotFoundError):
                continue
        (one,) = {*found}  # one of them, whichever family asks
        return one

    outcomes = set()
    for operation, place in enumerate(places, start=1):
        old.save(place)
        was_killed = killed_at(operation, place, new)
        found = load(place)
        assert found in (old, new), f"killed at operation {operation}: {found}"
        outcomes.add(found == new)
        new.save(place)
        assert load(place) == new
        if not was_killed:
            break
    assert outcomes == {False, True} and operation > 10


# Merges that are missing.


@pytest.mark.parametrize("family", ["gpt", "gpt2"])
def test_merges_that_were_cut_short_are_refused(family: str, tmp_path: Path) -> None:
    whole_text = (write(family, tmp_path) / "merges.txt").read_text(encoding="utf-8")
    complete = KINDS[family].load(tmp_path)
    refused = 0
    for size in range(len(whole_text)):
        (tmp_path / "merges.txt").write_text(whole_text[:size], encoding="utf-8")
        try:
            assert KINDS[family].load(tmp_path) == complete
        except ValueError as error:
            assert "merge" in str(error)
            refused += 1
    assert refused >= len(whole_text) - 2  # all but the last end of line


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("gpt", ("openai-gpt/encoder_bpe_40000.json", "openai-gpt/vocab_40000.bpe")),
        ("gpt2", ("gpt2/encoder.json", "gpt2/vocab.bpe")),
    ],
)
def test_published_merges_are_whole_with_special_tokens_of_any_kind(
    family: str, names: tuple[str, str], tmp_path: Path
) -> None:
    end = "</w>" if family == "gpt" else ""
    vocab = json.loads(data_path(f"vocab/{names[0]}").read_text(encoding="utf-8"))
    merges = _files.read_merges(data_path(f"vocab/{names[1]}"))
    special = [
        "<s>", "</s>", "<pad>", "<unk>", "<mask>", "<sep>", "<cls>", "<bos>", "<eos>", "<|pad|>",
        "<|im_start|>", "<|im_end|>", "<|startoftext|>", "[PAD]", "[CLS]", "[SEP]", "[MASK]",
        "[UNK]", "_start_", "_delimiter_", "_classify_", "madeupword0000", "<extra_id_0>",
        "<special1>", "<unused0>",
    ]  # fmt: skip
    vocab |= {token: len(vocab) + at for at, token in enumerate(special) if token not in vocab}
    assert _files.unmade(vocab, merges, end) == []
    for size in (0, 1, 100, len(merges) // 2, len(merges) - 1):
        assert _files.unmade(vocab, merges[:size], end)
    assert set(_files.unmade(vocab, merges[:-1], end)) == {"".join(merges[-1])}


def test_the_case_of_published_vocabularies_is_inferred_from_their_tokens(tmp_path: Path) -> None:
    for name, lower in (
        ("bert-base-uncased", True),
        ("bert-base-cased", False),
        ("bert-base-multilingual-cased", False),
        ("bert-base-chinese", True),
    ):
        path = tmp_path / "bert-lowercased-and-cased" / "vocab.txt"
        path.parent.mkdir(exist_ok=True)
        shutil.copy(data_path(f"vocab/bert/{name}-vocab.txt"), path)
        assert bert.load(path).lower_case == bert.load(path.parent).lower_case == lower
        if lower:  # a few words with a capital that somebody put in the place of unused ones
            text = path.read_text(encoding="utf-8").replace("[unused5]", "COVID")
            path.write_text(text, encoding="utf-8")
            with pytest.raises(ValueError, match=r"capital letters in 1 of .*'COVID'.*give lower"):
                bert.load(path)
            assert bert.load(path, lower_case=True).lower_case
