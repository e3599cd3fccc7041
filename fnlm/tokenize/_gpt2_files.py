"""Reading GPT-2's vocabulary and settings, as OpenAI, its successors and fnlm wrote them."""

from pathlib import Path
from typing import NamedTuple

from fnlm.files.hub import NameOrPath
from fnlm.tokenize import _files, _settings, _whole
from fnlm.tokenize._settings import Row
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
    files = _files.find(name_or_path, _FORMS)
    paths = files.paths
    vocab, merges, rows, spaced = _read(paths)
    for other in files.others:
        _files.check_agreement(paths[0], other[0], _read(other)[:2] == (vocab, merges))
    metadata = _settings.read(FAMILY, vocab, files.beside, rows)
    if spaced and "add_prefix_space" not in metadata.settings:
        raise ValueError(
            f"{paths[0]} has add_prefix_space=True, which `tokenizers` heeds and the class of "
            f"`transformers` does not: say in a {_files.CONFIG} beside it whether it is meant"
        )
    _files.check_merges(paths[-1], vocab, merges, metadata.added)
    _settings.check_special(metadata, vocab, merges)
    added = arguments(metadata.added.values(), vocab)
    return Files(vocab, merges, added, metadata.settings.get("add_prefix_space", False))


def _read(
    paths: tuple[Path, ...],
) -> tuple[dict[str, int], list[tuple[str, str]], list[Row] | None, bool]:
    if len(paths) == 2:
        return _files.read_vocab(paths[0]), _files.read_merges(paths[1]), None, False
    whole = _whole.read(paths[0], "GPT-2", _whole.GPT2)
    _whole.check_surrounds(paths[0], whole.around, ["A"])
    spaced = whole.sections["pre_tokenizer"].get("add_prefix_space", True)
    if not isinstance(spaced, bool):
        raise ValueError(
            f"{paths[0]}, pre_tokenizer.add_prefix_space is {_files.shown(spaced)}, not a bool"
        )
    return whole.vocab, whole.merges, whole.rows, spaced
