"""Small vocabularies of all families, and the peers' tokenizers of them."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import transformers

from fnlm.tokenize import _byte_level, bert, gpt, gpt2, transfo_xl

BERT_TOKENS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "cov", "un", "##cov", "##s"),
    *("a", "b", "c", "e", "x", "##a", "##b", "##c", "##e", "##x", "##id", "covid", "<", ">", "!"),
    *("_", "中", "é", "##é", "new", "york", "ab", "##ab"),
]
_LETTERS = "abcdehiklmnorstuvwxy<>_!."
_MERGES = [("t", "h"), ("th", "e</w>"), ("c", "a"), ("ca", "t</w>"), ("n", "e"), ("ne", "w</w>")]
GPT_MERGES = _MERGES
GPT_TOKENS = [
    "<unk>",
    *(f"{letter}{end}" for letter in _LETTERS for end in ("", "</w>")),
    *(left + right for left, right in _MERGES),
]
GPT2_MERGES = [
    ("t", "h"), ("th", "e"), ("Ġ", "the"), ("c", "a"), ("ca", "t"), ("Ġ", "cat"), ("Ġ", "a"),
    ("Ġ", "k"), ("Ġk", "in"[0]), ("n", "g"),
]  # fmt: skip
GPT2_TOKENS = [
    *sorted(_byte_level.ALPHABET),
    *(left + right for left, right in GPT2_MERGES),
    "<|endoftext|>",
]
XL_SYMBOLS = ["<eos>", "<unk>", "the", "cat", ",", "."]


def ids(tokens: list[str]) -> dict[str, int]:
    return {token: at for at, token in enumerate(tokens)}


class Kind(NamedTuple):
    """A family's tokenizers: ours, the peer's, and how both read the same text."""

    load: Callable[[Path], Any]
    peer: Any
    encode: Callable[[Any, str], list[int]]
    make: Callable[..., Any]  # the small tokenizer


def bert_small(**settings: Any) -> bert.Tokenizer:
    return bert.Tokenizer(ids(BERT_TOKENS), **{"profile": "transformers"} | settings)


def gpt_small(**settings: Any) -> gpt.Tokenizer:
    return gpt.Tokenizer(ids(GPT_TOKENS), GPT_MERGES, **{"mode": "fallback"} | settings)


def gpt2_small(**settings: Any) -> gpt2.Tokenizer:
    return gpt2.Tokenizer(ids(GPT2_TOKENS), GPT2_MERGES, **settings)


def xl_small(**settings: Any) -> transfo_xl.Tokenizer:
    return transfo_xl.Tokenizer(ids(XL_SYMBOLS), **settings)


# Every family's module of tokenizers, and its small one.
TOKENIZERS: dict[str, tuple[ModuleType, Callable[..., Any]]] = {
    "bert": (bert, bert_small),
    "gpt": (gpt, gpt_small),
    "gpt2": (gpt2, gpt2_small),
    "transfo_xl": (transfo_xl, xl_small),
}


def _all(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer.encode(text, allowed_special="all")
    return found


KINDS = {
    "bert": Kind(
        lambda path: bert.load(path, profile="transformers"),
        transformers.BertTokenizer,
        lambda tokenizer, text: tokenizer.encode(text),
        bert_small,
    ),
    "gpt": Kind(
        lambda path: gpt.load(path, mode="fallback"),
        transformers.OpenAIGPTTokenizer,
        _all,
        gpt_small,
    ),
    "gpt2": Kind(gpt2.load, transformers.GPT2Tokenizer, _all, gpt2_small),
}


def write(family: str, folder: Path) -> Path:
    """Write the small vocabulary in the oldest form, without settings."""
    folder.mkdir(parents=True, exist_ok=True)
    if family == "bert":
        (folder / "vocab.txt").write_text("\n".join(BERT_TOKENS) + "\n", encoding="utf-8")
        return folder
    tokens, merges = (GPT_TOKENS, GPT_MERGES) if family == "gpt" else (GPT2_TOKENS, GPT2_MERGES)
    (folder / "vocab.json").write_text(json.dumps(ids(tokens)), encoding="utf-8")
    lines = ["#version: 0.2", *map(" ".join, merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder
