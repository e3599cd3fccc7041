"""The tokenizers that BERT's profiles stand for, to compare with, and how to judge offsets."""

import logging
import os
import unicodedata
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import tokenizers
from pytorch_pretrained_bert import tokenization as ppb

from fnlm.tokenize import bert, wordpiece
from fnlm.tokenize._bert_words import PROFILES, SPECIAL, make_rules, words
from fnlm.tokenize._bpe import well_formed
from fnlm.tokenize._byte_level import Offsets

NAMES = tuple(PROFILES)
# Other versions of Unicode make other ids, except with the peer that has its own.
PINNED = unicodedata.unidata_version == "14.0.0"
# Before 0.23 the library knew less of Unicode than the data of `fnlm.tokenize._unicode` hold.
OLD_PEER = tuple(map(int, tokenizers.__version__.split(".")[:2])) < (0, 23)

Tokenize = Callable[[str], list[str]]

logging.getLogger("pytorch_pretrained_bert.tokenization").setLevel(logging.ERROR)


class _Google(ppb.BasicTokenizer):
    """Google's of March 2019, which keeps characters that are private or not assigned."""

    def _clean_text(self, text: str) -> str:
        kept = (
            character
            for character in text
            if character in "\t\n\r"
            or (unicodedata.category(character) not in ("Cc", "Cf") and character != "\ufffd")
        )
        space = "\t\n\r"
        return "".join(" " if c in space or unicodedata.category(c) == "Zs" else c for c in kept)


def references(path: Path, lower: bool) -> dict[str, Tokenize]:
    """Return what each profile is to reproduce: pytorch-pretrained-bert, Google's two, the peer."""
    first = ppb.BertTokenizer(str(path), do_lower_case=lower)
    november = ppb.BertTokenizer(str(path), do_lower_case=lower, never_split=())
    march = ppb.BertTokenizer(str(path), do_lower_case=lower, never_split=())
    march.basic_tokenizer = _Google(do_lower_case=lower, never_split=())
    for google in (november, march):
        google.wordpiece_tokenizer.max_input_chars_per_word = 200
    peer = peer_of(path, lower)
    found: tuple[Tokenize, ...] = (
        first.tokenize,
        november.tokenize,
        march.tokenize,
        lambda text: list(peer.encode(text, add_special_tokens=False).tokens),
    )
    return dict(zip(NAMES, found, strict=True))


def reference_words(name: str, lower: bool) -> Tokenize:
    """Return what cuts a text into words for the one that a profile is to reproduce."""
    if name == "transformers":
        normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lower)
        cut = tokenizers.pre_tokenizers.BertPreTokenizer().pre_tokenize_str
        return lambda text: [word for word, _ in cut(normalizer.normalize_str(text))]
    kind = _Google if name == "google-2019-03" else ppb.BasicTokenizer
    found: Tokenize = kind(do_lower_case=lower, never_split=()).tokenize
    return found


def peer_of(path: Path, lower: bool) -> tokenizers.Tokenizer:
    """Return the `tokenizers` library's, set up as `transformers` does it."""
    model = tokenizers.models.WordPiece.from_file(str(path), unk_token="[UNK]")
    peer = tokenizers.Tokenizer(model)
    peer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lower)
    peer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    peer.add_special_tokens(list(SPECIAL))
    return peer


def plain(text: str, tokenizer: bert.Tokenizer) -> str:
    """Return the words of a text, cleaned and folded, without anything between them."""
    lower, never_split = tokenizer.lower_case, tokenizer.never_split or ()
    rules = make_rules(PROFILES[tokenizer.profile], lower, lower, True, never_split)
    return "".join(word.text for word in words(well_formed(text), rules)).replace("ς", "σ")


def check_offsets(tokenizer: bert.Tokenizer, text: str, ids: list[int], offsets: Offsets) -> None:
    """Each slice of the text holds its token, an unknown one its whole word; they are in order."""
    assert len(ids) == len(offsets)
    for token, (start, end) in zip(tokenizer.ids_to_tokens(ids), offsets, strict=True):
        assert 0 <= start < end <= len(text)
        found = plain(text[start:end], tokenizer)
        piece = token.removeprefix(wordpiece.CONTINUED).replace("ς", "σ")
        if token == "[UNK]" and text[start:end] != "[UNK]":
            assert found
        elif text[start:end] != token:
            assert piece in found
            bases = [c for c in text[start:end] if unicodedata.category(c) != "Mn"]
            cut = any(len(plain(base, tokenizer)) > 1 for base in bases[:1] + bases[-1:])
            assert found == piece or cut or not bases  # a syllable may be cut, or an accent left
    for (start, end), (next_start, next_end) in pairwise(offsets):
        assert next_start >= end or (next_start >= start and next_end >= end)
