"""Vocabulary files: finding them, on disk first and then on the Hugging Face hub, reading them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BUNDLED = Path(__file__).parent.parent / "models"


def find(name_or_path: str | Path, choices: Sequence[tuple[str, ...]]) -> tuple[Path, ...]:
    """Return the paths of the first complete set of files.

    Args:
        name_or_path: a directory, a file in it, the name of a model inside the package, or the
            name of a model on the hub. What is on disk wins; the network is asked last.
        choices: sets of file names, the preferred one first.

    Returns:
        One path for each name of the set that was found.

    Raises:
        FileNotFoundError: no set is complete; the message says what was looked for and where.

    Example:
        >>> find("./no/such/directory", [("vocab.json", "merges.txt")])
        Traceback (most recent call last):
        ...
        FileNotFoundError: './no/such/directory' is no directory and no name of a model ...
    """
    wanted = " or ".join("+".join(names) for names in choices)
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    if not path.exists() and path.name == name and (BUNDLED / name).is_dir():
        path = BUNDLED / name
    if path.exists():
        directory = path if path.is_dir() else path.parent
        for names in choices:
            paths = tuple(directory / file for file in names)
            if all(file.is_file() for file in paths):
                return paths
        raise FileNotFoundError(f"directory {str(directory)!r} holds no {wanted}; put them there")
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or not name:
        raise FileNotFoundError(
            f"{name!r} is no directory and no name of a model ('model' or 'owner/model'); give a "
            f"directory that holds {wanted}"
        )
    return _from_hub(name, choices, wanted)


def _from_hub(name: str, choices: Sequence[tuple[str, ...]], wanted: str) -> tuple[Path, ...]:
    """Return the files of a model on the hub: out of its cache, or else from the network."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    reason: Exception | None = None
    try:
        for names in choices:
            cached = [try_to_load_from_cache(name, file) for file in names]
            if all(isinstance(file, str) for file in cached):
                return tuple(Path(str(file)) for file in cached)
        for names in choices:
            try:
                return tuple(Path(hf_hub_download(name, file)) for file in names)
            except LocalEntryNotFoundError:  # no network: no use asking for the other files
                raise
            except EntryNotFoundError as error:
                reason = error
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = error
    bundled = ", ".join(sorted(folder.name for folder in BUNDLED.glob("*/"))) or "none"
    raise FileNotFoundError(
        f"{name!r} is no directory, no model inside the package (there: {bundled}), and the hub "
        f"({constants.ENDPOINT}, cache {constants.HF_HUB_CACHE}) gave no {wanted} "
        f"({type(reason).__name__}); by hand: put these files into a directory and load that"
    ) from reason


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
