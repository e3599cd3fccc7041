"""Reading and writing vocabulary files."""

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fnlm.files import _folder, hub
from fnlm.files.hub import NameOrPath, Source
from fnlm.tokenize._bpe import well_formed

CONFIG, MAP = "tokenizer_config.json", "special_tokens_map.json"
ADDED, ADDED_LINES = "added_tokens.json", "special_tokens.txt"
WHOLE = "tokenizer.json"
BESIDE = (CONFIG, MAP, ADDED, ADDED_LINES)  # files that may accompany a vocabulary
# Every name under which a tokenizer, of whichever family and program, leaves what a reader takes.
OWNED = frozenset(
    {
        *BESIDE, WHOLE, "vocab.txt", "vocab.bin", "vocab.pkl", "vocab.json", "merges.txt",
        "encoder.json", "vocab.bpe", "encoder_bpe_40000.json", "vocab_40000.bpe",
    }
)  # fmt: skip

_LARGEST_ID = 1 << 31


class Found(NamedTuple):
    """The files of a vocabulary."""

    paths: tuple[Path, ...]  # of the form that is read
    beside: dict[str, Path]  # settings and added tokens, by name
    others: list[tuple[Path, ...]]  # further forms in the same folder: they must agree


def find(
    name_or_path: NameOrPath, choices: Sequence[tuple[str, ...]], optional: Sequence[str] = BESIDE
) -> Found:
    """Find a vocabulary: of several forms in a folder the newest, which comes first in `choices`.

    A file that is named is read, whatever is beside it.

    Raises:
        FileNotFoundError: there is none; the message says where it was looked for.
    """
    paths = hub.find(name_or_path, choices, optional)
    beside = {path.name: path for path in paths if path.name in optional}
    chosen = tuple(path for path in paths if path.name not in optional)
    others = []
    if isinstance(name_or_path, Source):
        directory = name_or_path.directory
    else:
        directory = Path(name_or_path).expanduser()
    if directory is not None and directory.is_dir():
        forms = [tuple(chosen[0].with_name(name) for name in names) for names in choices]
        others = [form for form in forms if form != chosen and all(map(Path.is_file, form))]
    return Found(chosen, beside, others)


def check_agreement(one: Path, other: Path, agree: bool) -> None:
    """Raise an error if two forms of a vocabulary in one folder are not the same."""
    if not agree:
        raise ValueError(
            f"{one} and {other} hold different vocabularies: remove the one that is out of date, "
            "or give the path of the file that is meant"
        )


def save(directory: str | Path, contents: Mapping[str, str]) -> None:
    """Write the files of a tokenizer as one; those of an earlier tokenizer are removed."""

    def writer(content: str) -> Callable[[Path], object]:
        return lambda path: path.write_bytes(content.encode())

    files = {name: writer(content) for name, content in contents.items()}
    _folder.replace_files(directory, "tokenizer", files, OWNED)


def shown(value: Any) -> str:
    """Return the repr of a value for an error message, at most some 100 characters."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8, without a byte order mark, with one kind of line ends."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not text in UTF-8 (byte {error.start}); copy the file again, or convert it"
        ) from None


def read_json(path: Path) -> Any:
    """Return what a JSON file holds; the error of a broken one names the file."""

    def unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
        unique_items = dict(items)
        if len(unique_items) < len(items):
            names = [name for name, _ in items]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"the key {shown(twice)} is there twice")
        return unique_items

    text = read_text(path)
    try:
        return json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON in UTF-8 ({error}); copy the file again") from None


def read_object(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} is not a JSON object; copy the file again")
    return value


def read_vocab(path: Path) -> dict[str, int]:
    """Return token -> id from a vocab.json, encoder.json or added_tokens.json file."""
    return checked_vocab(read_json(path), str(path))


def checked_vocab(value: Any, where: str) -> dict[str, int]:
    """Return a vocabulary read from JSON, after validation."""
    if not isinstance(value, dict) or not all(type(token_id) is int for token_id in value.values()):
        raise ValueError(f"{where} is not a JSON object of token: id; is it a vocabulary?")
    ids = value.values()
    if not ids or (0 <= min(ids) and max(ids) < _LARGEST_ID and _is_text("".join(value))):
        return value
    for token, token_id in value.items():
        if not 0 <= token_id < _LARGEST_ID or not _is_text(token):
            raise ValueError(
                f"{where} has {shown(token)}: {shown(token_id)}, which is no token with an id"
            )
    return value


def _is_text(token: str) -> bool:
    return well_formed(token) == token


def read_merges(path: Path) -> list[tuple[str, str]]:
    """Return the pairs of a merges.txt or vocab.bpe file, in order."""
    pairs = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise ValueError(f"{path}, line {number}: {shown(line)} is not two tokens and a space")
        pairs.append((left, right))
    return pairs


def _is_line(text: str) -> bool:
    return "\n" not in text and "\r" not in text and _is_text(text)


def write_vocab(vocab: Mapping[str, int]) -> str:
    """Return the text of a vocab.json or added_tokens.json.

    Raises:
        ValueError: a token is not text, so that it could not be read again.
    """
    for token in vocab:
        if not _is_text(token):
            raise ValueError(f"vocab holds {token!r}, which is not text")
    return json.dumps(dict(vocab))


def write_lines(tokens: Sequence[str]) -> str | None:
    """Return the text of a special_tokens.txt; None if a token cannot be a line of it."""
    if not tokens or tokens[0].startswith("\ufeff") or not all(map(_is_line, tokens)):
        return None
    return "".join(f"{token}\n" for token in tokens)


def write_merges(pairs: Iterable[tuple[str, str]]) -> str:
    """Return the text of a merges.txt.

    Raises:
        ValueError: a token holds white space, so that the line could not be read again.
    """
    lines = [f"{left} {right}" for left, right in pairs]
    for line in lines:
        if len(line.split(" ")) != 2 or "" in line.split(" ") or not _is_line(line):
            raise ValueError(f"merges hold {line!r}, which cannot be a line of merges.txt")
    return "\n".join(["#version: 0.2", *lines, ""])


def unmade(
    vocab: Mapping[str, int], pairs: Collection[tuple[str, str]], end: str = ""
) -> list[str]:
    """Return the tokens that look as if a merge had made them, and that none makes.

    These are made of two other tokens. What is one symbol, or stands in brackets as special tokens
    do, is none of them.

    Args:
        vocab: token -> id.
        pairs: the merges.
        end: what follows the last symbol of a word.

    Example:
        >>> unmade({"a": 0, "b": 1, "ab": 2, "ba": 3, "<ab>": 4, "pad": 5}, [("a", "b")])
        ['ba']
    """
    merged = {left + right for left, right in pairs}

    def joined(token: str) -> bool:
        cuts = range(1, len(token.removesuffix(end)))
        return any(token[:i] in vocab and token[i:] in vocab for i in cuts)

    missing = (token for token in vocab if token not in merged and len(token) > 1)
    return [
        token for token in missing if token[0] + token[-1] not in ("<>", "[]") and joined(token)
    ]


def check_merges(
    where: Path,
    vocab: Mapping[str, int],
    pairs: Collection[tuple[str, str]],
    special: Collection[str],
    end: str = "",
) -> None:
    """Raise an error if merges are missing: the file may have been cut short.

    Args:
        where: the file of the merges.
        vocab: token -> id.
        pairs: the merges.
        special: tokens that need no merge.
        end: what follows the last symbol of a word.
    """
    missing = [token for token in unmade(vocab, pairs, end) if token not in special]
    if missing:
        raise ValueError(
            f"{where} has {len(pairs)} merges, and none of them makes {shown(missing[-1])}, as for "
            f"{len(missing)} tokens of the vocabulary in all: was the file cut short? Copy merges "
            f"and vocabulary again; a token that needs no merge must be listed in {ADDED}"
        )
