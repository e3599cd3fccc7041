"""Reading a vocabulary with merges: the forms and checks that GPT and GPT-2 have in common."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fnlm.files.hub import NameOrPath
from fnlm.tokenize import _files, _settings, _whole
from fnlm.tokenize._settings import Row

Setting = Callable[[Path, Mapping[str, Any]], Any]  # of a tokenizer.json and its sections


class BPE(NamedTuple):
    """The contents of the files."""

    paths: tuple[Path, ...]  # tokenizer.json, or a vocabulary and its merges
    beside: dict[str, Path]  # settings and added tokens, by name
    vocab: dict[str, int]
    merges: list[tuple[str, str]]
    metadata: _settings.Metadata
    setting: Any  # a tokenizer.json's, None for the other forms


def read(
    name_or_path: NameOrPath,
    forms: Sequence[tuple[str, ...]],
    family: _settings.Family,
    shape: _whole.Shape,
    setting: Setting,
) -> BPE:
    """Read the files of a tokenizer.

    Args:
        name_or_path: of the user.
        forms: names of files, the newest form first: one tokenizer.json, or two files.
        family: whose settings are read.
        shape: of the tokenizer.json.
        setting: reads what only a tokenizer.json has.

    Raises:
        FileNotFoundError: there are none; the message says where they were looked for.
        ValueError: a file is not what its name says, two forms hold different vocabularies, or a
            setting is not supported.
    """

    def contents(paths: tuple[Path, ...]) -> tuple[Any, Any, list[Row] | None, Any]:
        if len(paths) == 2:
            return _files.read_vocab(paths[0]), _files.read_merges(paths[1]), None, None
        whole = _whole.read(paths[0], family.name, shape)
        _whole.check_surrounds(paths[0], whole.around, ["A"])
        return whole.vocab, whole.merges, whole.rows, setting(paths[0], whole.sections)

    files = _files.find(name_or_path, forms)
    vocab, merges, rows, found = contents(files.paths)
    for other in files.others:
        _files.check_agreement(files.paths[0], other[0], contents(other)[:2] == (vocab, merges))
    metadata = _settings.read(family, vocab, files.beside, rows)
    return BPE(files.paths, files.beside, vocab, merges, metadata, found)
