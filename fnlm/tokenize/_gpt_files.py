"""Reading GPT's vocabulary and settings, as OpenAI, its successors and fnlm wrote them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fnlm.files.hub import NameOrPath
from fnlm.tokenize import _bpe_files, _files, _settings, _whole
from fnlm.tokenize._gpt_words import WAYS, Mode
from fnlm.tokenize._tokens import arguments
from fnlm.tokenize.added import Added

END_OF_WORD = "</w>"
FAMILY = _settings.Family(
    "GPT",
    ("OpenAIGPTTokenizer", "OpenAIGPTTokenizerFast"),
    {"mode": ("mode", str)},
    ("<unk>",),
)
_FORMS = (
    ("tokenizer.json",),
    ("vocab.json", "merges.txt"),
    ("encoder_bpe_40000.json", "vocab_40000.bpe"),
)


class Files(NamedTuple):
    """The contents of the files: the arguments of `gpt.Tokenizer`."""

    vocab: dict[str, int]
    merges: list[tuple[str, str]]
    mode: Mode  # "original" where they say nothing
    added: list[str | Added]
    unknown: str


def read(name_or_path: NameOrPath) -> Files:
    """Read the files of a tokenizer.

    Raises:
        FileNotFoundError: there are none; the message says where they were looked for.
        ValueError: a file is not what its name says, or has a setting that is not supported.
    """
    paths, beside, vocab, merges, metadata, unknown = _bpe_files.read(
        name_or_path, _FORMS, FAMILY, _whole.GPT, _unknown
    )
    mode = metadata.settings.get("mode", "original")
    if mode not in WAYS:
        where = beside[_files.CONFIG]
        raise ValueError(
            f"{where} asks for mode={_files.shown(mode)}, which must be one of {[*WAYS]}"
        )
    named = metadata.named.get("unk_token", "<unk>")
    _settings.check_unknown(metadata, paths[0], unknown, named)
    special = {*metadata.added, named}
    _files.check_merges(paths[-1], vocab, merges, special, END_OF_WORD)
    _settings.check_special(metadata, vocab, merges, END_OF_WORD)
    return Files(vocab, merges, mode, arguments(metadata.added.values(), vocab), named)


def _unknown(path: Path, sections: Mapping[str, Any]) -> str:
    unknown = sections["model"].get("unk_token")
    if not isinstance(unknown, str):
        raise ValueError(f"{path}, model.unk_token is {_files.shown(unknown)}, not a token")
    return unknown
