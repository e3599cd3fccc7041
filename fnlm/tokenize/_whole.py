"""Reading tokenizer.json, the file of the `tokenizers` library that holds a whole tokenizer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fnlm.tokenize import _files, _settings
from fnlm.tokenize._files import shown
from fnlm.tokenize._settings import Row

# Section -> key -> the supported values; None for any: the value is applied, or
# changes no ids. A section that is null has the type None.
Shape = Mapping[str, Mapping[str, tuple[Any, ...] | None]]

_ANY: dict[str, tuple[Any, ...] | None] = {"*": None}
_SECTIONS: Shape = {
    "version": _ANY,
    "truncation": _ANY,  # `encode` cuts nothing off
    "padding": _ANY,  # `encode` pads nothing
    "decoder": _ANY,  # it makes text of ids
    "post_processor": _ANY,  # looked at by `_surrounds`
    "added_tokens": _ANY,  # heeded
}
_BPE: dict[str, tuple[Any, ...] | None] = {
    "type": ("BPE", None),
    "dropout": (None, 0.0),  # else ids are drawn at random
    "continuing_subword_prefix": (None, ""),
    "ignore_merges": (None, False),
    "vocab": None,
    "merges": None,
}
_BERT_NORMALIZER: dict[str, tuple[Any, ...] | None] = {
    "type": ("BertNormalizer",),
    "clean_text": (True,),
}
BERT: Shape = {
    "model": {
        "type": ("WordPiece", None),
        "continuing_subword_prefix": ("##",),
        "max_input_chars_per_word": (100,),
        "unk_token": None,
        "vocab": None,
    },
    "normalizer": _BERT_NORMALIZER
    | {"handle_chinese_chars": None, "strip_accents": None, "lowercase": None},
    "pre_tokenizer": {"type": ("BertPreTokenizer",)},
    **_SECTIONS,
}
GPT: Shape = {
    "model": _BPE
    | {
        "end_of_word_suffix": ("</w>",),
        "unk_token": None,
        "fuse_unk": (None, False),
        "byte_fallback": (None, False),
    },
    "normalizer": _BERT_NORMALIZER
    | {"handle_chinese_chars": (True,), "strip_accents": (None, True), "lowercase": (True,)},
    "pre_tokenizer": {"type": ("BertPreTokenizer",)},
    **_SECTIONS,
}
GPT2: Shape = {
    "model": _BPE
    | {
        "end_of_word_suffix": (None, ""),
        "unk_token": None,  # no byte is unknown
        "fuse_unk": None,
        "byte_fallback": None,
    },
    "normalizer": {"type": (None,)},
    "pre_tokenizer": {
        "type": ("ByteLevel",),
        "add_prefix_space": None,
        "trim_offsets": None,  # offsets here are our own
        "use_regex": (None, True),
    },
    **_SECTIONS,
}


class Whole(NamedTuple):
    """The contents of a tokenizer.json."""

    vocab: dict[str, int]
    merges: list[tuple[str, str]]
    rows: list[Row]
    sections: dict[str, dict[str, Any]]  # those that are objects
    around: list[str]  # the tokens of one text as "A" and what is put around it


def read(path: Path, family: str, shape: Shape) -> Whole:
    """Read a tokenizer.json.

    Args:
        path: the file.
        family: whose tokenizer it should be, for errors.
        shape: the sections, keys and values that are supported.

    Raises:
        ValueError: it is no such file, or has something unsupported; the error names it.
    """
    data = _files.read_json(path)
    if not isinstance(data, dict) or not isinstance(data.get("model"), dict):
        raise ValueError(f"{path} is not a tokenizer.json file: it has no model")
    sections: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys((*shape, *data)):  # the model first
        value = data.get(name)
        supported = shape.get(name)
        if supported is None:
            raise ValueError(f"{path} has {shown(name)}, which no tokenizer.json has; remove it")
        if supported is _ANY:
            continue
        if not isinstance(value, dict | None):
            raise ValueError(f"{path}, {name} is {shown(value)}, not an object")
        section = sections[name] = value or {}
        for key in dict.fromkeys((*supported, *section)):
            allowed = supported.get(key, ())
            value = section.get(key)
            missing = key not in section and key != "type"
            if not missing and allowed is not None and not _among(value, allowed):
                raise ValueError(
                    f"{path} is not a {family} tokenizer: {name}.{key} is {shown(value)}, "
                    f"not {' or '.join(map(repr, allowed)) or 'absent'}"
                )
    model = sections["model"]
    vocab = _files.checked_vocab(model.get("vocab"), f"{path}, model.vocab")
    rows = _rows(path, data.get("added_tokens"))
    around = _surrounds(path, data.get("post_processor"))
    return Whole(vocab, _merges(path, model.get("merges", [])), rows, sections, around)


def _among(value: Any, allowed: tuple[Any, ...]) -> bool:
    return any(value == item and isinstance(value, type(item)) for item in allowed)


def _merges(path: Path, value: Any) -> list[tuple[str, str]]:
    lines = value if isinstance(value, list) else [value]
    pairs = [line.split(" ") if isinstance(line, str) else line for line in lines]
    for number, pair in enumerate(pairs, start=1):
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(token, str) and token for token in pair)
        ):
            raise ValueError(f"{path}, merge {number}: {shown(pair)} is not two tokens")
    return [(left, right) for left, right in pairs]


def _rows(path: Path, value: Any) -> list[Row]:
    if not isinstance(value, list):
        raise ValueError(f"{path}, added_tokens is {shown(value)}, not a list")
    where = f"{path}, added_tokens"
    for item in value:
        if not isinstance(item, dict) or type(item.get("id")) is not int or item["id"] < 0:
            raise ValueError(f"{where} has {shown(item)}, which is no token with an id")
    return [_settings.row(item, where, item["id"]) for item in value]


def _surrounds(path: Path, value: Any) -> list[str]:
    """Return what a post-processor makes of one text: "A", and the tokens around it."""
    kind = value.get("type") if isinstance(value, dict) else value
    try:
        if kind is None or kind == "ByteLevel":
            return ["A"]
        if kind == "BertProcessing":
            return [str(value["cls"][0]), "A", str(value["sep"][0])]
        if kind == "TemplateProcessing":
            items = [next(iter(item.items())) for item in value["single"]]
            return [str(inner["id"]) for _, inner in items]
    except (KeyError, TypeError, IndexError, AttributeError, StopIteration) as error:
        raise ValueError(f"{path}, post_processor is damaged ({error!r})") from None
    raise ValueError(f"{path} has a post_processor of type {shown(kind)}, which is not known here")


def check_surrounds(path: Path, around: list[str], *allowed: list[str]) -> None:
    """Raise an error if a text gets other tokens around it than these."""
    if around not in allowed:
        raise ValueError(
            f"{path}, post_processor makes {shown(around)} of a text, and is understood here as "
            f"{' or '.join(map(str, allowed))}; if the model was not trained so, set it to null"
        )
