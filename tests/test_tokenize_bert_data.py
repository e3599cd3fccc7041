"""BERT's tokenizers on published vocabularies and real text: ids, places, recorded ids of GLUE.

The gate takes a part of the texts; FNLM_TEST_FULL=1 takes all, some minutes.
"""

import gzip
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from bert_references import PINNED, Tokenize, check_offsets, plain, references
from conftest import data_path

from fnlm.tokenize import bert

FULL = os.environ.get("FNLM_TEST_FULL", "0") != "0"
VOCABULARIES = {"uncased": True, "cased": False, "multilingual-cased": False, "chinese": True}
COLLECTIONS = ["udhr", "emoji", "normalization", "blns", "demo", "wiki", "en", "zh", "de", "ar"]


def read(name: str) -> str:
    raw = data_path(name).read_bytes()
    return (gzip.decompress(raw) if name.endswith(".gz") else raw).decode()


@cache
def texts_of(collection: str) -> list[str]:
    """Return the texts of a collection, all of them."""
    if collection == "udhr":
        rows = map(json.loads, read("tokenizer/udhr.jsonl.gz").splitlines())
        return [value for row in rows for value in row.values() if isinstance(value, str)]
    if collection == "emoji":
        return read("tokenizer/emoji-test.txt.gz").split("\n")
    if collection == "normalization":
        lines = [
            line.partition("#")[0]
            for line in read("tokenizer/NormalizationTest.txt.gz").split("\n")
        ]
        fields = [field.split() for line in lines for field in line.split(";")[:5]]
        codes = [field for field in fields if field and not field[0].startswith("@")]
        return ["".join(chr(int(code, 16)) for code in field) for field in codes]
    if collection == "blns":
        return list(json.loads(read("tokenizer/blns-3of4.json")))
    if collection == "demo":
        return [read("tokenizer/UTF-8-demo.txt")]
    if collection == "wiki":
        return read("wikitext/wiki.test.raw.gz").splitlines(keepends=True)
    return [
        text
        for article in squad(f"squad/xquad/xquad.{collection}.json")
        for paragraph in article["paragraphs"]
        for text in (paragraph["context"], *(row["question"] for row in paragraph["qas"]))
    ]


def squad(name: str) -> list[Any]:
    packed = data_path(f"{Path(name).parent}").joinpath(f"{Path(name).name}.gz").exists()
    return list(json.loads(read(f"{name}.gz" if packed else name))["data"])


@cache
def pair(vocabulary: str, profile: str) -> tuple[bert.Tokenizer, Tokenize]:
    """Return the tokenizer and what it is to reproduce."""
    path = data_path(f"vocab/bert/bert-base-{vocabulary}-vocab.txt")
    lower = VOCABULARIES[vocabulary]
    return bert.load(path, lower, profile), references(path, lower)[profile]


@pytest.mark.parametrize("collection", COLLECTIONS)
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("profile", ["ppb-0.6.2", "transformers"])
def test_ids_are_those_of_the_reference(profile: str, vocabulary: str, collection: str) -> None:
    """Equal, without exceptions."""
    if not PINNED and profile != "transformers":
        pytest.skip("pytorch-pretrained-bert's ids are those of Unicode 14 on Python 3.11 only")
    tokenizer, reference = pair(vocabulary, profile)
    texts = texts_of(collection)
    for text in texts if FULL else texts[:: max(1, len(texts) // 150)]:
        tokens = reference(text)
        ids = tokenizer.encode(text)
        assert tokenizer.ids_to_tokens(ids) == tokens
        assert ids == tokenizer.tokens_to_ids(tokens)
        found, offsets = tokenizer.encode_with_offsets(text)
        assert found == ids
        if len(text) < 1000:
            check_offsets(tokenizer, text, ids, offsets)


def test_vocabularies_load_as_published() -> None:
    sizes = {"uncased": 30522, "cased": 28996, "multilingual-cased": 119547, "chinese": 21128}
    for vocabulary, size in sizes.items():
        path = data_path(f"vocab/bert/bert-base-{vocabulary}-vocab.txt")
        tokenizer = bert.load(path)
        assert tokenizer.vocab_size == size
        assert tokenizer.lower_case == VOCABULARIES[vocabulary]
        assert tokenizer.vocab["[UNK]"] == 100


@pytest.mark.parametrize("profile", ["ppb-0.6.2", "transformers"])
def test_places_slice_back_to_the_contexts_of_squad(profile: str) -> None:
    """The slice is the token: its text lower-cased and without accents, or the unknown word."""
    tokenizer, _ = pair("uncased", profile)
    contexts = [p["context"] for a in squad("squad/dev-v1.1.json") for p in a["paragraphs"]]
    tokens = 0
    for context in contexts if FULL else contexts[::20]:
        ids, offsets = tokenizer.encode_with_offsets(context)
        assert ids == tokenizer.encode(context)
        check_offsets(tokenizer, context, ids, offsets)
        tokens += len(ids)
        between = zip([(0, 0), *offsets], [*offsets, (len(context),) * 2], strict=True)
        left_out = " ".join(context[end:start] for (_, end), (start, _) in between)
        assert plain(left_out, tokenizer) == ""
    assert tokens > (300_000 if FULL else 10_000)


@pytest.mark.parametrize("task", ["cola", "mnli", "stsb"])
def test_ids_of_glue_recorded_elsewhere(task: str) -> None:
    """Ids that another project stored, made by the original tokenizer."""
    folder = data_path("tokenizer/golden/bert-uncased-glue/input").parent
    lines = (folder / "input" / f"{task}_train.tsv").read_text(encoding="utf-8").splitlines()
    recorded = (folder / "expected" / f"{task}_train.json").read_text(encoding="utf-8")
    tokenizer, _ = pair("uncased", "ppb-0.6.2")
    rows = [json.loads(line) for line in recorded.splitlines()]
    assert len(rows) == len(lines) > 1
    for row, line in zip(rows, lines, strict=True):
        parts = [tokenizer.encode(text) for text in line.split("\t")[2:]]
        assert tokenizer.join(*parts) == (row["token_id"], row["type_id"])
