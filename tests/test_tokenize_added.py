"""Added tokens: found in a text where the peer finds them, whatever their flags."""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from vocabularies import KINDS, write

from fnlm.tokenize import _added
from fnlm.tokenize.added import Added

FULL = os.environ.get("FNLM_TEST_FULL", "0") != "0"
families = pytest.mark.parametrize("family", sorted(KINDS))
CONTENTS = [
    "<s>", "<S>", "</s>", "covid", "COVID", "New York", "cat s", "中文", "Éa", "é", "a", "ab", "b<",
    "<s><s>", "_x_", "x!", "-", "the cat", "[E1]", "ﬁ", "Σ", "İ", "x\u0301", "ö",
]  # fmt: skip
PIECES = [
    *CONTENTS, " ", "  ", "\t", "\n", "\u00a0", "\u2003", "s", "The", "THE", "x", "!", "\u0301",
    "9", "_", ".", "\u200d", "中", "e\u0301", "A", "\x00", "\u00ad", "ά",
]  # fmt: skip


def random_added(draw: random.Random, family: str) -> list[tokenizers.AddedToken]:
    """Tokens to add; of GPT and GPT-2 none that is an ordinary one already, which is refused.

    No two are the same in lower case, which is refused as well.
    """
    vocab = KINDS[family].make().vocab if family != "bert" else {}
    contents = [content for content in CONTENTS if content not in vocab]
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    chosen = {content.lower(): content for content in draw.sample(contents, draw.randint(1, 5))}
    return [
        tokenizers.AddedToken(
            content, special=draw.random() < 0.4, **{flag: draw.random() < 0.4 for flag in flags}
        )
        for content in chosen.values()
    ]


def random_text(draw: random.Random) -> str:
    return "".join(draw.choices(PIECES, k=draw.randint(0, 12)))


@families
def test_the_peers_folders_give_the_peers_ids(family: str, tmp_path: Path) -> None:
    """Tokens added with random flags, saved by the peer, read here: ids of random texts."""
    kind, draw = KINDS[family], random.Random(1)
    folder = write(family, tmp_path / "first")
    found = 0
    for case in range(400 if FULL else 40):
        peer = kind.peer.from_pretrained(folder)
        peer.add_tokens(random_added(draw, family))
        place = tmp_path / str(case)
        peer.save_pretrained(place)
        peer = kind.peer.from_pretrained(place)
        ours = kind.load(place)
        assert ours.vocab_size == len(peer)
        new = set(range(len(ours.vocab) if family != "bert" else len(peer) - len(ours.added), 999))
        for _ in range(60):
            text = random_text(draw)
            wanted = peer.encode(text, add_special_tokens=False)
            assert kind.encode(ours, text) == wanted, (text, ours.added)
            found += len(new.intersection(wanted))
    assert found > 500  # the texts do hold added tokens


@families
def test_our_folders_give_our_ids_to_the_peer(family: str, tmp_path: Path) -> None:
    kind, draw = KINDS[family], random.Random(2)
    folder = write(family, tmp_path / "first")
    for case in range(100 if FULL else 12):
        peer = kind.peer.from_pretrained(folder)
        peer.add_tokens(random_added(draw, family))
        peer.save_pretrained(tmp_path / f"{case} theirs")
        ours = kind.load(tmp_path / f"{case} theirs")
        ours.save(tmp_path / f"{case} ours")
        assert kind.load(tmp_path / f"{case} ours") == ours
        again = kind.peer.from_pretrained(tmp_path / f"{case} ours")
        for _ in range(40):
            text = random_text(draw)
            assert again.encode(text, add_special_tokens=False) == kind.encode(ours, text), text


@families
def test_offsets_of_added_tokens_are_where_they_stand(family: str, tmp_path: Path) -> None:
    kind, draw = KINDS[family], random.Random(3)
    folder = write(family, tmp_path / "first")
    allowed: dict[str, Any] = {} if family == "bert" else {"allowed_special": "all"}
    for case in range(20):
        peer = kind.peer.from_pretrained(folder)
        peer.add_tokens(random_added(draw, family))
        peer.save_pretrained(tmp_path / str(case))
        ours = kind.load(tmp_path / str(case))
        for _ in range(40):
            text = random_text(draw)
            ids, offsets = ours.encode_with_offsets(text, **allowed)
            assert ids == ours.encode(text, **allowed), text
            assert all(0 <= start <= end <= len(text) for start, end in offsets)
            for at, (start, end) in zip(ids, offsets, strict=True):
                (token,) = ours.ids_to_tokens([at])
                if token in ("<s>", "</s>", "_x_", "x!") and len(token) > 1:
                    folded = text[start:end].strip().replace("\x00", "").replace("\u00ad", "")
                    assert folded.replace("\u200d", "").lower().startswith(token[0]), (text, token)


def test_old_lists_of_added_tokens(tmp_path: Path) -> None:
    """added_tokens.json, special_tokens_map.json and pytorch-pretrained-bert's special_tokens.txt."""
    for family, kind in KINDS.items():
        folder = write(family, tmp_path / family)
        size = kind.load(folder).vocab_size
        (folder / "added_tokens.json").write_text(json.dumps({"<S>": size, "covid19": size + 1}))
        mask = {"content": "<S>", "lstrip": True, "rstrip": False, "single_word": False}
        (folder / "special_tokens_map.json").write_text(
            json.dumps({"sep_token": mask | {"normalized": False}, "additional_special_tokens": []})
        )
        ours, peer = kind.load(folder), kind.peer.from_pretrained(folder)
        assert ours.vocab_size == len(peer) == size + 2
        for text in ("a <S> the", "a <s> COVID19", "covid19covid19", "<S>  x<S>"):
            assert kind.encode(ours, text) == peer.encode(text, add_special_tokens=False), text
        if family != "bert":
            (folder / "added_tokens.json").unlink()
            (folder / "special_tokens_map.json").unlink()
            (folder / "special_tokens.txt").write_bytes(b"\xef\xbb\xbf<S>\r\n_x_\r\n")
            assert kind.load(folder).added == ("<S>", "_x_")
            (folder / "added_tokens.json").write_text(json.dumps({"<S>": size}))
            with pytest.raises(ValueError, match=r"added_tokens\.json and .*special_tokens\.txt"):
                kind.load(folder)


@families
def test_lists_of_two_ages_must_agree(family: str, tmp_path: Path) -> None:
    ours = KINDS[family].make(added=("<s>", Added("<e1>", single_word=True)))
    ours.save(tmp_path)
    ids = dict(zip(("<s>", "<e1>"), ours.tokens_to_ids(["<s>", "<e1>"]), strict=True))
    for found in (ids, {"<s>": ids["<e1>"], "<e1>": ids["<s>"]}):
        (tmp_path / "added_tokens.json").write_text(json.dumps(found))
        if found == ids:
            assert KINDS[family].load(tmp_path) == ours
            continue
        with pytest.raises(
            ValueError, match=r"added_tokens\.json (gives the added token '<s>'|and )"
        ):
            KINDS[family].load(tmp_path)


def test_unknown_tokens_may_stand_among_the_added_ones(tmp_path: Path) -> None:
    for family, unknown in (("bert", "[UNK]"), ("gpt", "<unk>"), ("gpt2", "<|endoftext|>")):
        kind, folder = KINDS[family], write(family, tmp_path / family)
        name = "vocab.txt" if family == "bert" else "vocab.json"
        text = (folder / name).read_text(encoding="utf-8")
        tokens = text.split() if family == "bert" else list(json.loads(text))
        tokens.remove(unknown)
        kept = {token: at for at, token in enumerate(tokens)}
        text = "\n".join(tokens) if family == "bert" else json.dumps(kept)
        (folder / name).write_text(text, encoding="utf-8")
        (folder / "added_tokens.json").write_text(json.dumps({unknown: len(tokens)}))
        ours = kind.load(folder)
        assert ours.tokens_to_ids([unknown]) == [len(tokens)]
        if family != "gpt2":
            assert ours.encode("щ") == [len(tokens)]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"added_tokens.json": {"<e1>": 99}}, r"added tokens \['<e1>'\].*follow.*have \[99\]"),
        ({"added_tokens.json": {"a": 0}}, "gives the added token 'a' the id 0, but its id"),
        (
            {"tokenizer_config.json": {"added_tokens_decoder": {"99": {"content": "<e1>"}}}},
            "tokenizer_config.json, added_tokens_decoder must have",
        ),
        (
            {"tokenizer_config.json": {"added_tokens_decoder": {"9": {"content": "x", "wide": 1}}}},
            "which is no added token",
        ),
    ],
    ids=str,
)
@families
def test_lists_that_contradict_are_named(
    family: str, files: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = write(family, tmp_path)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    if family == "bert" and "'a'" in message:
        (folder / "added_tokens.json").write_text(json.dumps({"a": 1}))
        message = message.replace("id 0", "id 1")
    with pytest.raises(ValueError, match=message):
        KINDS[family].load(folder)


def test_two_tokens_of_one_normalized_form_are_refused() -> None:
    for family in ("bert", "gpt"):
        with pytest.raises(ValueError, match="'<S>' and '<s>', which are the same when normalized"):
            KINDS[family].make(added=(Added("<S>", normalized=True), Added("<s>", normalized=True)))
        with pytest.raises(ValueError, match="of which nothing is left when normalized"):
            KINDS[family].make(added=(Added("\x00\u0301", normalized=True),))


def test_plain_tokens_are_texts() -> None:
    assert _added.simplest(Added("x")) == "x"
    assert _added.simplest(Added("x", lstrip=True)) == Added("x", lstrip=True)
    for wrong in ("", "\ud800", 5):
        with pytest.raises(ValueError, match="empty or not text"):
            _added.of(Added(wrong))  # type: ignore[arg-type]
