"""Vocabulary files: finding them, on disk first and then on the Hugging Face hub, reading them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def find(name_or_path: str | Path, choices: Sequence[tuple[str, ...]]) -> tuple[Path, ...]:
    """Return the paths of the first complete set of files.

    Args:
        name_or_path: a directory, or the name of a model on the hub.
        choices: sets of file names, the preferred one first; the hub is asked for that one.

    Returns:
        One path for each name of the set that was found.

    Raises:
        FileNotFoundError: no set is complete; the message says what was looked for and where.

    Example:
        >>> find("./no/such/directory", [("vocab.json", "merges.txt")])
        Traceback (most recent call last):
        ...
        FileNotFoundError: './no/such/directory' is no directory and no name on the hub ...
    """
    wanted = " or ".join("+".join(names) for names in choices)
    directory = Path(name_or_path)
    if directory.is_dir():
        for names in choices:
            paths = tuple(directory / name for name in names)
            if all(path.is_file() for path in paths):
                return paths
        raise FileNotFoundError(f"directory {str(directory)!r} holds no {wanted}; put them there")
    name = str(name_or_path)
    if directory.exists() or name.count("/") > 1 or name.startswith((".", "/", "~")) or not name:
        raise FileNotFoundError(
            f"{name!r} is no directory and no name on the hub ('model' or 'owner/model'); "
            f"give a directory that holds {wanted}"
        )
    return _from_hub(name, choices[0], wanted)


def _from_hub(name: str, names: tuple[str, ...], wanted: str) -> tuple[Path, ...]:
    """Return the files of a model on the hub, out of its cache when they are there."""
    from huggingface_hub import constants, hf_hub_download

    try:
        return tuple(Path(hf_hub_download(name, file)) for file in names)
    except (OSError, ValueError) as error:  # no network, no such model or file, not a name
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise FileNotFoundError(
            f"{name!r} is no directory here, and the hub ({constants.ENDPOINT}, cache "
            f"{constants.HF_HUB_CACHE}) gave no {'+'.join(names)} ({reason}); by hand: put "
            f"{wanted} into a directory and load that directory"
        ) from error


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
