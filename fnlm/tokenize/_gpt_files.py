"""Reading GPT's vocabulary and settings, as OpenAI, its successors and fnlm wrote them."""

from pathlib import Path
from typing import NamedTuple

from fnlm.params import hub
from fnlm.tokenize import _files
from fnlm.tokenize._gpt_words import WAYS, Mode

CONFIG = "tokenizer_config.json"
ADDED, ADDED_LINES = "added_tokens.json", "special_tokens.txt"
_FILES = (
    ("vocab.json", "merges.txt", CONFIG),
    ("vocab.json", "merges.txt"),
    ("encoder_bpe_40000.json", "vocab_40000.bpe"),
)


class Files(NamedTuple):
    """What the files say."""

    vocab: dict[str, int]
    merges: list[tuple[str, str]]
    mode: Mode  # "original" where they say nothing
    added: list[str]


def read(name_or_path: str | Path) -> Files:
    """Return what the files of a tokenizer say.

    Raises:
        FileNotFoundError: there are none; the message says where they were looked for.
        ValueError: a file is not what its name says, or asks for an unknown mode.
    """
    paths = hub.find(name_or_path, _FILES)
    vocab = _files.read_vocab(paths[0])
    mode: Mode = "original"
    if len(paths) == 3:
        config = _files.read_json(paths[2])
        mode = config.get("mode", mode) if isinstance(config, dict) else mode
    if mode not in WAYS:
        raise ValueError(f"{paths[2]} asks for mode={mode!r}, which must be one of {[*WAYS]}")
    return Files(vocab, _files.read_merges(paths[1]), mode, _added(paths[0].parent, vocab))


def _added(directory: Path, vocab: dict[str, int]) -> list[str]:
    if (file := directory / ADDED).is_file():
        return _files.in_order(_files.read_vocab(file), vocab, file)
    file = directory / ADDED_LINES
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    return [line for line in text.split("\n") if line]
