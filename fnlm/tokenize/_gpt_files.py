"""Reading GPT's vocabulary and settings, as OpenAI, its successors and fnlm wrote them."""

from pathlib import Path
from typing import NamedTuple

from fnlm.files.hub import NameOrPath
from fnlm.tokenize import _files, _settings, _whole
from fnlm.tokenize._gpt_words import WAYS, Mode
from fnlm.tokenize._settings import Row
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
    files = _files.find(name_or_path, _FORMS)
    paths = files.paths
    vocab, merges, rows, unknown = _read(paths)
    for other in files.others:
        _files.check_agreement(paths[0], other[0], _read(other)[:2] == (vocab, merges))
    metadata = _settings.read(FAMILY, vocab, files.beside, rows)
    mode = metadata.settings.get("mode", "original")
    if mode not in WAYS:
        where = files.beside[_files.CONFIG]
        raise ValueError(
            f"{where} asks for mode={_files.shown(mode)}, which must be one of {[*WAYS]}"
        )
    named = metadata.named.get("unk_token", "<unk>")
    _settings.check_unknown(metadata, paths[0], unknown, named)
    special = {*metadata.added, named}
    _files.check_merges(paths[-1], vocab, merges, special, END_OF_WORD)
    _settings.check_special(metadata, vocab, merges, END_OF_WORD)
    return Files(vocab, merges, mode, arguments(metadata.added.values(), vocab), named)


def _read(
    paths: tuple[Path, ...],
) -> tuple[dict[str, int], list[tuple[str, str]], list[Row] | None, str | None]:
    if len(paths) == 2:
        return _files.read_vocab(paths[0]), _files.read_merges(paths[1]), None, None
    whole = _whole.read(paths[0], "GPT", _whole.GPT)
    _whole.check_surrounds(paths[0], whole.around, ["A"])
    unknown = whole.sections["model"].get("unk_token")
    if not isinstance(unknown, str):
        raise ValueError(f"{paths[0]}, model.unk_token is {_files.shown(unknown)}, not a token")
    return whole.vocab, whole.merges, whole.rows, unknown
