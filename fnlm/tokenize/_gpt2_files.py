"""Reading GPT-2's vocabulary and settings, as OpenAI, its successors and fnlm wrote them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fnlm.files.hub import NameOrPath
from fnlm.tokenize import _bpe_files, _files, _settings, _whole
from fnlm.tokenize._tokens import arguments
from fnlm.tokenize.added import Added

FAMILY = _settings.Family(
    "GPT-2",
    ("GPT2Tokenizer", "GPT2TokenizerFast"),
    {"add_prefix_space": ("add_prefix_space", bool)},
    ("<|endoftext|>",),
)
_FORMS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))


class Files(NamedTuple):
    """The contents of the files: the arguments of `gpt2.Tokenizer`."""

    vocab: dict[str, int]
    merges: list[tuple[str, str]]
    added: list[str | Added]
    add_prefix_space: bool


def read(name_or_path: NameOrPath) -> Files:
    """Read the files of a tokenizer.

    Raises:
        FileNotFoundError: there are none; the message says where they were looked for.
        ValueError: a file is not what its name says, or has a setting that is not supported.
    """
    paths, _, vocab, merges, metadata, spaced = _bpe_files.read(
        name_or_path, _FORMS, FAMILY, _whole.GPT2, _spaced
    )
    if spaced and "add_prefix_space" not in metadata.settings:
        raise ValueError(
            f"{paths[0]} has add_prefix_space=True, which `tokenizers` heeds and the class of "
            f"`transformers` does not: say in a {_files.CONFIG} beside it whether it is meant"
        )
    _files.check_merges(paths[-1], vocab, merges, metadata.added)
    _settings.check_special(metadata, vocab, merges)
    added = arguments(metadata.added.values(), vocab)
    return Files(vocab, merges, added, metadata.settings.get("add_prefix_space", False))


def _spaced(path: Path, sections: Mapping[str, Any]) -> bool:
    spaced = sections["pre_tokenizer"].get("add_prefix_space", True)
    if not isinstance(spaced, bool):
        raise ValueError(
            f"{path}, pre_tokenizer.add_prefix_space is {_files.shown(spaced)}, not a bool"
        )
    return spaced
