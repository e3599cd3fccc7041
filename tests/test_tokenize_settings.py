"""Settings of the peers' tokenizers: each is heeded, harmless or refused, and none is forgotten.

The settings are taken from the peers' own classes and files. Whatever value one has, the ids are
those of the peer, or the error names file and setting.
"""

import contextlib
import copy
import inspect
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_pretrained_bert as ppb
import tokenizers
import transformers
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.tokenization_utils_tokenizers import TokenizersBackend
from vocabularies import KINDS, ids, write

from fnlm.tokenize import (
    _bert_files,
    _gpt2_files,
    _gpt_files,
    _settings,
    _transfo_xl_files,
    _whole,
    bert,
    transfo_xl,
)

FULL = os.environ.get("FNLM_TEST_FULL", "0") != "0"
FAMILIES = {"bert": _bert_files.FAMILY, "gpt": _gpt_files.FAMILY, "gpt2": _gpt2_files.FAMILY}
SHAPES = {"bert": _whole.BERT, "gpt": _whole.GPT, "gpt2": _whole.GPT2}
families = pytest.mark.parametrize("family", sorted(FAMILIES))
CLASSES = (
    transformers.BertTokenizer, BertTokenizerLegacy, transformers.GPT2Tokenizer,
    transformers.OpenAIGPTTokenizer, TokenizersBackend, PreTrainedTokenizerBase,
    ppb.BertTokenizer, ppb.GPT2Tokenizer, ppb.OpenAIGPTTokenizer,
)  # fmt: skip
# Arguments that are no settings of a file, and what pytorch-pretrained-bert's class takes in their place.
NO_SETTINGS = {"self", "kwargs", "args", "vocab_file", "merges_file", "special_tokens"}
TEXTS = (
    "The café, thé cat!", "COVID 19\u00a0the 中文 x", " the cat", "", "\n the", "[MASK] the [UNK]a",
    "a<|endoftext|>the", "the <unk> cat <s>x", "cat\u0301 CAT_the", "x" * 101, "x the <e1>cat",
)  # fmt: skip


def settings_of_the_peers() -> set[str]:
    """Arguments of the classes, and the keywords and settings that their code asks for."""
    found: set[str] = set()
    for kind in CLASSES:
        found |= inspect.signature(kind.__init__).parameters.keys()
        for name in ("__init__", "_from_pretrained", "from_pretrained", "convert_to_native_format"):
            if (method := kind.__dict__.get(name)) is not None:
                code = inspect.getsource(getattr(method, "__func__", method))
                asked = (
                    r'kwargs(?:\.pop|\.get|\.setdefault)?[\[(]"(\w+)"|"(\w+)" (?:not )?in \w*kwargs'
                )
                found |= {one or other for one, other in re.findall(asked, code)}
    found |= set(PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES)
    peer = KINDS["bert"].peer.from_pretrained
    found |= {"tokenizer_class", "fast_tokenizer_files", peer.__name__} - {peer.__name__}
    return found - NO_SETTINGS


# Of `from_pretrained` itself: where to look, and not what a folder says.
OF_THE_CALL = {
    "proxies", "subfolder", "_from_pipeline", "_from_auto", "_commit_hash", "cache_dir",
    "force_download", "revision", "token", "pretrained_model_name_or_path", "is_fast",
}  # fmt: skip


def kinds_of(family: str, key: str) -> list[str]:
    """What a setting is, by our tables."""
    own = FAMILIES[family]
    others = {name for known in FAMILIES.values() for name in known.heeded} - own.heeded.keys()
    heeded = {*own.heeded, *_settings.NAMED, *_settings.LISTED, _settings.ROWS, "tokenizer_class"}
    tables = {
        "heeded": heeded,
        "harmless": _settings.HARMLESS.keys() | others,
        "refused": _settings.REFUSED.keys(),
    }
    return [name for name, table in tables.items() if key in table]


@families
def test_every_setting_of_the_peers_is_in_one_table(family: str) -> None:
    found = settings_of_the_peers() - OF_THE_CALL
    assert {"do_lower_case", "never_split", "add_prefix_space", "max_len", "errors"} <= found
    assert len(found) > 45
    wrong = {key: kinds_of(family, key) for key in sorted(found)}
    assert {key: kinds for key, kinds in wrong.items() if len(kinds) != 1} == {}
    assert all(_settings.HARMLESS.values())


VALUES: tuple[Any, ...] = (
    True, False, None, "x", "", 0, 7, [], {}, ["<s>"], "<s>", {"content": "<s>"}, {"e1": "<e1>"},
    {"__type": "AddedToken", "content": "<e1>", "lstrip": True, "special": True}, [["t", "h"]],
    "the", "[MASK]", "GPT2Tokenizer", "BertJapaneseTokenizer", 1.5, {"7": {"content": "<e1>"}},
)  # fmt: skip


def config_cases(family: str) -> Iterator[tuple[str, Any]]:
    """All values of all settings; in the gate a part."""
    for number, key in enumerate(sorted(settings_of_the_peers() - OF_THE_CALL)):
        every = 1 if FULL else 2 if kinds_of(family, key) == ["heeded"] else 7
        for value in VALUES[number % every :: every]:
            yield key, value


@families
def test_a_setting_gives_the_peers_ids_or_is_refused_by_name(family: str, tmp_path: Path) -> None:
    kind, folder = KINDS[family], write(family, tmp_path)
    before = [kind.encode(kind.load(folder), text) for text in TEXTS]
    config = folder / "tokenizer_config.json"
    counts = {"refused": 0, "equal": 0, "changed": 0, "both refuse": 0}
    for key, value in config_cases(family):
        named = kinds_of(family, key)
        config.write_text(json.dumps({key: value}))
        try:
            ours = kind.load(folder)
        except ValueError as error:
            assert str(config) in str(error) or key in str(error), (key, value)
            assert key in str(error), (key, value, str(error))
            assert named != ["harmless"], (key, value, str(error))
            counts["refused"] += 1
            continue
        mine = [kind.encode(ours, text) for text in TEXTS]
        try:
            peer = kind.peer.from_pretrained(folder)
            theirs = [peer.encode(text, add_special_tokens=False) for text in TEXTS]
        except Exception:  # whatever it is: the peer can't read the file
            counts["both refuse"] += 1
            continue
        if key not in ("do_lower_case", "never_split") or value is not None:
            if not (key == "never_split" and family == "bert"):  # the legacy class's alone
                assert mine == theirs, (key, value)
        counts["equal" if mine == before else "changed"] += 1
    assert counts["refused"] > 60 and counts["equal"] > 50, counts
    assert counts["changed"] > 5, counts


def test_never_split_is_as_in_the_legacy_class(tmp_path: Path) -> None:
    folder = write("bert", tmp_path)
    config = {"never_split": ["The", "caf"], "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    vocab = ids([*bert.load(folder).vocab, "The"])
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    peer = BertTokenizerLegacy(str(folder / "vocab.txt"), **config)
    ours = bert.load(folder)
    for text in ("The the THE cat", "The, The", "x The"):
        assert ours.tokenize(text) == peer.tokenize(text)


# tokenizer.json, field by field.


def fields(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all values in an object, but for those inside vocabularies and merges."""
    items: Any = ()
    if path[-2:] not in (("model", "vocab"), ("model", "merges")):
        items = value.items() if isinstance(value, dict) else ()
        items = enumerate(value[:3]) if isinstance(value, list) else items
    for key, inner in items:
        yield (*path, key)
        yield from fields(inner, (*path, key))


def saved_by_the_peer(family: str, folder: Path) -> Path:
    peer = KINDS[family].peer.from_pretrained(write(family, folder / "old"))
    peer.add_tokens([tokenizers.AddedToken("<s>", normalized=True), "<e1>"])
    peer.save_pretrained(folder / "new")
    (folder / "new" / "tokenizer_config.json").unlink()
    return folder / "new" / "tokenizer.json"


MORE: dict[str, list[Any]] = {
    "normalizer": [{"type": "Lowercase"}, {"type": "Sequence", "normalizers": []}, {"type": "NFC"}],
    "pre_tokenizer": [{"type": "Whitespace"}, {"type": "BertPreTokenizer"}],
    "post_processor": [
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        {"type": "RobertaProcessing", "sep": ["x", 1], "cls": ["x", 1]},
    ],
    "truncation": [
        {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    ],
    "decoder": [None, {"type": "Fuse"}],
    "dropout": [0.1, 1.0, 0.0],
    "unk_token": ["x", "[MASK]", "<unk>"],
    "continuing_subword_prefix": ["", "@@"],
    "end_of_word_suffix": ["", "</w>", "@"],
    "max_input_chars_per_word": [3, 100],
    "id": [0, 7, 10**6],
    "content": ["<other>", "the"],
}


def ids_of_the_peers(family: str, path: Path) -> Iterator[list[list[int]]]:
    """Yield what `tokenizers` and the class of transformers, which heeds less, make of a file."""
    with contextlib.suppress(Exception):  # whatever it is: this one can't read the file
        raw = tokenizers.Tokenizer.from_file(str(path))
        raw.no_truncation()
        yield [raw.encode(text, add_special_tokens=False).ids for text in TEXTS]
    with contextlib.suppress(Exception):
        peer = KINDS[family].peer.from_pretrained(path.parent)
        yield [peer.encode(text, add_special_tokens=False) for text in TEXTS]


@families
def test_a_field_gives_the_peers_ids_or_is_refused_by_name(family: str, tmp_path: Path) -> None:
    kind, path = KINDS[family], saved_by_the_peer(family, tmp_path)
    data = json.loads(path.read_text(encoding="utf-8"))
    before = [kind.encode(kind.load(path.parent), text) for text in TEXTS]
    counts = {"refused": 0, "equal": 0, "changed": 0}
    places = [*fields(data)]
    assert len(places) > 50
    for number, place in enumerate(places):
        pool: list[Any] = [True, False, None, "x", 0, [], {}, "gone"]
        pool = pool if FULL else pool[number % 3 :: 3]
        for value in [*MORE.get(str(place[-1]), ()), *pool]:
            changed = copy.deepcopy(data)
            inside = changed
            for key in place[:-1]:
                inside = inside[key]
            if value == "gone":
                inside.pop(place[-1])
            elif inside[place[-1]] == value and type(inside[place[-1]]) is type(value):
                continue
            else:
                inside[place[-1]] = value
            path.write_text(json.dumps(changed), encoding="utf-8")
            try:
                ours = kind.load(path.parent)
            except ValueError as error:
                assert "tokenizer.json" in str(error) or "vocab" in str(error), (place, value)
                counts["refused"] += 1
                continue
            mine = [kind.encode(ours, text) for text in TEXTS]
            counts["equal" if mine == before else "changed"] += 1
            if mine == before and place[0] not in ("normalizer", "pre_tokenizer", "model"):
                if not (place[0] == "added_tokens" and place[-1] in ("id", "content")):
                    continue  # nothing that can change what `tokenizers` reads in these texts
            theirs = [*ids_of_the_peers(family, path)]
            assert not theirs or mine in theirs, (place, value)
    assert counts["refused"] > 60 and counts["equal"] > 30, counts


@families
def test_every_field_of_a_tokenizer_json_is_in_the_table(family: str, tmp_path: Path) -> None:
    data = json.loads(saved_by_the_peer(family, tmp_path).read_text(encoding="utf-8"))
    assert data.keys() == SHAPES[family].keys()
    for name in ("model", "normalizer", "pre_tokenizer"):
        assert (data[name] or {"type": None}).keys() == SHAPES[family][name].keys(), name


# What particular settings do.


def test_spaces_before_gpt2s_text(tmp_path: Path) -> None:
    """`add_prefix_space`, in the files of transformers and where they say two things."""
    kind, folder = KINDS["gpt2"], write("gpt2", tmp_path / "old")
    peer = kind.peer.from_pretrained(folder, add_prefix_space=True)
    peer.add_tokens(["<s>"])
    peer.save_pretrained(tmp_path / "new")
    ours = kind.load(tmp_path / "new")
    assert ours.add_prefix_space
    for text in (*TEXTS, "the<s>the <s> the<s>", "\tthe", "\u00a0the", "thé\ud83d\udc4d"):
        if text.isprintable() or "\ud83d" not in text:
            theirs = peer.encode(text.encode("utf-16", "surrogatepass").decode("utf-16"))
            assert kind.encode(ours, text) == theirs, text
        found, offsets = ours.encode_with_offsets(text, allowed_special="all")
        assert found == kind.encode(ours, text)
        assert all(0 <= start <= end <= len(text) for start, end in offsets)
    assert ours.encode_with_offsets("the cat")[1] == [(0, 3), (3, 7)]
    assert ours.decode(ours.encode("the")) == " the"
    for wrong in (b"the", ["the"], None):
        with pytest.raises(TypeError, match="is of type"):
            ours.encode(wrong)
    (tmp_path / "new" / "tokenizer_config.json").unlink()
    with pytest.raises(
        ValueError, match=r"has add_prefix_space=True, which.*tokenizer_config\.json"
    ):
        kind.load(tmp_path / "new")


def test_special_tokens_of_other_names(tmp_path: Path) -> None:
    names = {"cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>", "mask_token": "<m>"}
    tokens = ["<pad>", "<unk>", "<s>", "</s>", "<m>", "the", "cat", "##s"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names | {"pad_token": "<pad>"}))
    ours, peer = KINDS["bert"].load(tmp_path), KINDS["bert"].peer.from_pretrained(tmp_path)
    for text in ("the <m> cats", "dog<s>the", "[MASK] the"):
        assert ours.encode(text) == peer.encode(text, add_special_tokens=False)
        both = peer(text, "the cat")
        found = ours.join(ours.encode(text), ours.encode("the cat"))
        assert found == (both["input_ids"], both["token_type_ids"])
    ours.save(tmp_path / "again")
    assert KINDS["bert"].load(tmp_path / "again") == ours
    (tmp_path / "vocab.txt").write_text("[UNK]\nthe\n")
    assert KINDS["bert"].load(tmp_path).tokens_to_ids(["<unk>"]) == [2]  # after the vocabulary


def test_settings_beside_a_pickle_must_agree(tmp_path: Path) -> None:
    transfo_xl.Tokenizer(ids(["<unk>", "a", "b"]), lower_case=True).save(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    said = json.loads(config.read_text())
    for more, message in (
        ({"unk_token": "b"}, "contradict|unknown"),
        ({"additional_special_tokens": ["<e1>"]}, "add '<e1>', which the vocabulary lacks"),
        ({"add_eos_token": True}, "add_eos_token=True"),
    ):
        config.write_text(json.dumps(said | {"unknown": None} | more))
        if "unk_token" in more:
            assert transfo_xl.load(tmp_path).unknown == "b"
            continue
        with pytest.raises(ValueError, match=message):
            transfo_xl.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"a tokenizer\.json of Transformer-XL is not read"):
        transfo_xl.load(tmp_path)
    known = inspect.signature(ppb.TransfoXLTokenizer.__init__).parameters.keys()
    assert {"lower_case", "delimiter"} == known & _transfo_xl_files.FAMILY.heeded.keys()
