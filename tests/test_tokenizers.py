"""What every tokenizer keeps to: a new row of `vocabularies.TOKENIZERS` gets all of these tests."""

import gc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vocabularies import TOKENIZERS

TEXTS = ("the cat", " the  cat, the new cat.", "", "THE cat é <unk>")
each_tokenizer = pytest.mark.parametrize("name", TOKENIZERS)


def small(name: str) -> Any:
    return TOKENIZERS[name][1]()


@each_tokenizer
def test_ways_to_the_same_ids_agree(name: str) -> None:
    tokenizer = small(name)
    assert tokenizer.encode_batch(TEXTS) == [tokenizer.encode(text) for text in TEXTS]
    for text in TEXTS:
        ids = tokenizer.encode(text)
        found, offsets = tokenizer.encode_with_offsets(text)
        assert found == ids and len(offsets) == len(ids)
        assert all(0 <= start <= end <= len(text) for start, end in offsets)
        assert len(tokenizer.tokenize(text)) == len(ids)
    assert tokenizer.encode("the cat") == tokenizer.tokens_to_ids(tokenizer.tokenize("the cat"))


@pytest.mark.parametrize("enabled", [True, False])
@each_tokenizer
def test_the_collector_is_afterwards_as_it_was(name: str, enabled: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        small(name).encode_batch(TEXTS)
        assert gc.isenabled() == enabled
        with pytest.raises(TypeError):
            small(name).encode_batch(["the", 3])
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()


@each_tokenizer
def test_ids_are_those_of_the_vocabulary(name: str) -> None:
    tokenizer = small(name)
    every = range(tokenizer.vocab_size)
    tokens = tokenizer.ids_to_tokens(every)
    assert tokenizer.tokens_to_ids(tokens) == [*every]
    assert dict(zip(tokens, every, strict=True)) == tokenizer.vocab
    for bad in (-1, tokenizer.vocab_size):
        for call in (tokenizer.ids_to_tokens, tokenizer.decode):
            with pytest.raises(ValueError, match=rf"holds {bad}, outside 0 to {every[-1]}"):
                call([bad])


@each_tokenizer
@given(data=st.data())
def test_a_stream_is_the_text_in_pieces(name: str, data: Any) -> None:
    """Of any ids; GPT moves marks to the words before them afterwards, if asked to."""
    tokenizer = small(name)
    if name != "gpt":
        tokenizer = tokenizer.extend(["two words", "x ##y"])
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=20))
    settings = {"clean_up": False} if name == "gpt" else {}
    assert "".join(tokenizer.decode_stream(iter(ids))) == tokenizer.decode(ids, **settings)


@each_tokenizer
def test_extending_adds_ids_at_the_end(name: str, tmp_path: Path) -> None:
    tokenizer = small(name)
    size = tokenizer.vocab_size
    more = tokenizer.extend(["qqq", "zzz"])
    assert more.tokens_to_ids(["zzz", "qqq"]) == [size + 1, size]
    assert more.vocab_size == size + 2 and tokenizer.vocab_size == size
    assert more.ids_to_tokens(range(size)) == tokenizer.ids_to_tokens(range(size))
    assert more.encode("the cat") == tokenizer.encode("the cat")
    more.save(tmp_path)
    assert TOKENIZERS[name][0].load(tmp_path) == more
    for wrong in ("qqq", ["qqq", "qqq"], [more.ids_to_tokens([0])[0]]):
        with pytest.raises(ValueError):
            tokenizer.extend(wrong)


@each_tokenizer
def test_what_is_saved_is_loaded(name: str, tmp_path: Path) -> None:
    tokenizer = small(name)
    tokenizer.save(tmp_path)
    assert TOKENIZERS[name][0].load(tmp_path) == tokenizer
