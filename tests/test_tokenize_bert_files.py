"""BERT's vocabularies and settings: read from every form, written back, wrong ones named."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import transformers

from fnlm.tokenize import bert, wordpiece
from fnlm.tokenize._bert_words import SPECIAL

TOKENS = [*SPECIAL, "[unused1]", "the", "The", "caf", "##e", "##é", "中", "\u2028", "!"]
TEXTS = ["The café, [MASK] [unused1]!", "the[MASK]中 CAFE\u0301", "[CLS] [E1] the [SEP]", ""]


def write(folder: Path, content: str | bytes, **config: Any) -> Path:
    raw = content if isinstance(content, bytes) else content.encode()
    (folder / "vocab.txt").write_bytes(raw)
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def vocabulary(*more: str) -> dict[str, int]:
    return {token: at for at, token in enumerate([*TOKENS, *more])}


# Saving and loading.


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lower_case": False, "profile": "google-2018-11"},
        {"profile": "transformers", "never_split": (*SPECIAL, "[unused1]", "[E1]")},
        {"profile": "google-2019-03", "never_split": ("[MASK]",), "strip_accents": False},
        {"never_split": (), "tokenize_chinese_chars": False},
        {"never_split": ("none such", "the")},
    ],
    ids=str,
)
def test_vocabulary_and_settings_come_back(settings: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = bert.Tokenizer(vocabulary("[E1]"), **settings)
    tokenizer.save(tmp_path / "new" / "folder")
    again = bert.load(tmp_path / "new" / "folder")
    assert again == tokenizer
    assert hash(again) == hash(tokenizer)
    assert [*again.vocab] == [*tokenizer.vocab]
    assert again.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)
    assert pickle.loads(pickle.dumps(tokenizer)) == tokenizer
    assert bert.load(tmp_path / "new" / "folder" / "vocab.txt") == tokenizer
    other = bert.load(tmp_path / "new" / "folder", not tokenizer.lower_case, "transformers")
    assert (other.lower_case, other.profile) == (not tokenizer.lower_case, "transformers")


@pytest.mark.parametrize("lower", [True, False])
def test_transformers_reads_what_we_save_and_we_read_what_it_saves(
    lower: bool, tmp_path: Path
) -> None:
    never_split = (*SPECIAL, "[unused1]", "[E1]")
    tokenizer = bert.Tokenizer(vocabulary("[E1]"), lower, "transformers", never_split)
    tokenizer.save(tmp_path)
    peer = transformers.BertTokenizer.from_pretrained(tmp_path)
    assert len(peer) == tokenizer.vocab_size
    for text in TEXTS:
        assert peer(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
    ids, token_types = tokenizer.join(tokenizer.encode(TEXTS[0]), tokenizer.encode(TEXTS[1]))
    both = peer(TEXTS[0], TEXTS[1])
    assert (ids, token_types) == (both["input_ids"], both["token_type_ids"])

    peer.add_tokens(["[E2]"], special_tokens=True)
    peer.save_pretrained(tmp_path / "theirs")
    again = bert.load(tmp_path / "theirs", profile="transformers")
    assert again.lower_case == lower
    assert again.vocab_size == len(peer) == tokenizer.vocab_size + 1
    for text in (*TEXTS, "the[E2] The"):
        assert peer(text, add_special_tokens=False)["input_ids"] == again.encode(text)


@pytest.mark.parametrize("token", ["a\nb", "a\rb", " a", ""], ids=ascii)
def test_a_token_that_is_no_line_cannot_be_saved(token: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="which cannot be a line of vocab.txt"):
        bert.Tokenizer(vocabulary(token)).save(tmp_path)


# Which case.


@pytest.mark.parametrize(
    ("name", "tokens", "config", "lower"),
    [
        ("x", ["the"], {}, True),
        ("x", ["The", "the"], {}, False),
        ("x", ["中", "<S>", "[E1]"], {}, True),
        ("bert-base-uncased", ["The"], {}, False),  # a path says nothing
        ("multi_cased_L-12", ["the"], {}, True),
        ("bert-lowercased", ["the"], {}, True),
        ("bert-base-uncased", ["the"], {"do_lower_case": False}, False),
        ("bert-base-cased", ["The"], {"do_lower_case": True}, True),
        ("x", ["the"], {"do_lower_case": None, "never_split": None}, True),
        ("x", ["The"], {"never_split": ["none such"]}, False),
    ],
)
def test_the_case_is_the_saved_one_or_inferred_from_the_tokens(
    name: str, tokens: list[str], config: dict[str, Any], lower: bool, tmp_path: Path
) -> None:
    (tmp_path / name).mkdir()
    folder = write(tmp_path / name, "\n".join([*SPECIAL, *tokens]), **config)
    assert bert.load(folder).lower_case == lower
    assert bert.load(folder, not lower).lower_case == (not lower)
    assert bert.load(folder).profile == "ppb-0.6.2"
    assert bert.load(folder).vocab_size == len(SPECIAL) + len(tokens)
    file = folder / f"{name}-vocab.txt"
    (folder / "vocab.txt").rename(file)
    assert bert.load(file).lower_case == lower


# Vocabulary files.


@pytest.mark.parametrize(
    "raw",
    [
        "\n".join(TOKENS),
        "\n".join(TOKENS) + "\n",
        "\r\n".join(TOKENS) + "\r\n",
        "\ufeff" + "\n".join(TOKENS) + "\n\n\n",
        " \n".join(TOKENS) + "\t\n",
    ],
    ids=ascii,
)
def test_lines_end_in_any_way(raw: str, tmp_path: Path) -> None:
    assert wordpiece.read_vocab(write(tmp_path, raw) / "vocab.txt") == vocabulary()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"[UNK]\nthe\nfox\nthe\n", r"vocab\.txt, lines 2 and 4 are both 'the'"),
        (b"[UNK]\n\nfox\n", r"vocab\.txt, line 2 is empty"),
        (b"", r"vocab\.txt, line 1 is empty"),
        (b"[UNK]\n\xff\n", r"vocab\.txt is not text in UTF-8"),
        (b"the\nfox\n", r"vocab lacks '\[UNK\]', .* 2 tokens"),
    ],
)
def test_wrong_vocabularies_are_named(raw: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        bert.load(write(tmp_path, raw))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"do_lower_case": "yes"}, "do_lower_case='yes', not a bool or null"),
        ({"never_split": "[MASK]"}, r"never_split='\[MASK\]', not a list or null"),
        ({"profile": "new"}, "profile='new' must be one of"),
    ],
)
def test_wrong_settings_are_named(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        bert.load(write(tmp_path, "[UNK]\nthe\n", **config))


def test_a_tokenizer_of_another_kind_is_refused(tmp_path: Path) -> None:
    model = {"type": "BPE", "vocab": {}, "merges": []}
    data = {"model": model, "normalizer": None, "pre_tokenizer": {"type": "ByteLevel"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a BERT tokenizer: .*'BPE'"):
        bert.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is not a tokenizer\.json file"):
        bert.load(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no tokenizer\.json or vocab\.txt"):
        bert.load(tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bert.Tokenizer({"[UNK]": 0, "a": 2}), "its 2 tokens the ids 0 to 1"),
        (lambda: bert.Tokenizer({"a": 0}), r"vocab lacks '\[UNK\]'"),
        (lambda: bert.Tokenizer({"[UNK]": 0}, profile="ppb"), "profile='ppb' must be one of"),
        (lambda: bert.Tokenizer({"[UNK]": 0}, never_split="[E]"), "is one string"),  # type: ignore[arg-type]
        (lambda: bert.Tokenizer({"[UNK]": 0}).join([0]), r"tokens holds '\[CLS\]'"),
        (lambda: bert.Tokenizer({"[UNK]": 0}).encode_batch("a"), "texts='a' is one string"),
        (lambda: bert.Tokenizer({"[UNK]": 0}).tokens_to_ids("a"), "tokens='a' is one string"),
    ],
)
def test_wrong_arguments_are_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("bad", [-1, len(TOKENS), 10**20])
def test_ids_out_of_range_are_named(bad: int) -> None:
    tokenizer = bert.Tokenizer(vocabulary())
    for call in (tokenizer.decode, tokenizer.ids_to_tokens):
        with pytest.raises(ValueError, match=rf"ids holds {bad}, outside 0 to {len(TOKENS) - 1} "):
            call([0, bad])
        with pytest.raises(TypeError):
            call([0.5])  # type: ignore[list-item]


def test_inputs_other_than_strings_are_named() -> None:
    tokenizer = bert.Tokenizer(vocabulary())
    for call in (tokenizer.encode, tokenizer.encode_with_offsets, tokenizer.tokenize):
        for wrong in (b"the", None, ["the"]):
            with pytest.raises(TypeError, match=rf"text is of type {type(wrong).__name__}, not"):
                call(wrong)  # type: ignore[arg-type]


def test_decoding_keeps_ids_in_their_order_without_repair() -> None:
    tokenizer = bert.Tokenizer(
        {token: at for at, token in enumerate([*SPECIAL, *"l'do", "##eure"])}
    )
    ids = tokenizer.tokens_to_ids(["[CLS]", "l", "'", "##eure", "d", "o"])
    for array in (ids, numpy.array(ids), torch.tensor(ids), tuple(ids), iter(ids)):
        assert tokenizer.decode(array) == "[CLS] l 'eure d o"
    assert tokenizer.decode([]) == ""


def test_processes_share_the_work() -> None:
    tokenizer = bert.Tokenizer(vocabulary(), profile="transformers", never_split=("[MASK]",))
    assert tokenizer.encode_batch(TEXTS, workers=2) == [tokenizer.encode(text) for text in TEXTS]
