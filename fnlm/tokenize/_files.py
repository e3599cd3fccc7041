"""Reading the files of a vocabulary."""

import json
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    """Return what a JSON file holds; the error of a broken one names the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON in UTF-8 ({error}); copy the file again") from None


def read_vocab(path: Path) -> dict[str, int]:
    """Return token -> id from a vocab.json, encoder.json or added_tokens.json file."""
    vocab = read_json(path)
    if not isinstance(vocab, dict) or not all(type(at) is int for at in vocab.values()):
        raise ValueError(f"{path} is not a JSON object of token: id; is it a vocabulary?")
    return vocab


def in_order(added: dict[str, int], vocab: dict[str, int], source: Path) -> list[str]:
    """Return the added tokens that the vocabulary lacks, in the order of their ids.

    Raises:
        ValueError: their ids do not follow those of the vocabulary.
    """
    tokens = sorted(added.keys() - vocab.keys(), key=added.__getitem__)
    if [added[token] for token in tokens] != list(range(len(vocab), len(vocab) + len(tokens))):
        raise ValueError(
            f"added tokens {tokens} in {source} must have the {len(tokens)} ids that follow the "
            f"{len(vocab)} of the vocabulary"
        )
    return tokens


def read_merges(path: Path) -> list[tuple[str, str]]:
    """Return the pairs of a merges.txt or vocab.bpe file, in order."""
    pairs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        line = line.rstrip("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise ValueError(f"{path}, line {number}: {line!r} is not two tokens and a space")
        pairs.append((left, right))
    return pairs


def read_tokenizer_json(path: Path) -> tuple[dict[str, int], list[tuple[str, str]], dict[str, int]]:
    """Return vocabulary, merges and added tokens of a tokenizer.json that works as GPT-2's does."""
    data = read_json(path)
    try:
        model, cut = data["model"], data["pre_tokenizer"] or {}
        options = (model["type"], cut.get("type"), data["normalizer"], cut.get("add_prefix_space"))
        if options != ("BPE", "ByteLevel", None, False) or not cut.get("use_regex", True):
            raise ValueError(
                f"{path} is not a GPT-2 tokenizer: model, pre-tokenizer, normalizer and "
                f"add_prefix_space are {options}, not ('BPE', 'ByteLevel', None, False)"
            )
        pairs = [line.split(" ") if isinstance(line, str) else line for line in model["merges"]]
        added = {token["content"]: token["id"] for token in data["added_tokens"]}
        return model["vocab"], [(left, right) for left, right in pairs], added
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a tokenizer.json file ({error!r})") from None
