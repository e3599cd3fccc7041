"""Tables of BERT's tokenizer, and its path from a text to token ids with offsets."""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

from fnlm.tokenize import wordpiece
from fnlm.tokenize._added import Finder, finder, forms
from fnlm.tokenize._bert_words import (
    PROFILES,
    Profile,
    Rules,
    Spacing,
    Special,
    chunk_pattern,
    make_rules,
    normalized,
    only_cut,
    words,
)
from fnlm.tokenize._bpe import WordCache
from fnlm.tokenize._byte_level import Offsets
from fnlm.tokenize._tokens import with_ids
from fnlm.tokenize.added import Added

IdSpan = tuple[int, int, int]  # token id, and the offsets (start, end) of its token


class Tables(NamedTuple):
    """Look-up tables, made once from a vocabulary and settings."""

    ids: dict[str, int]  # token -> id
    tokens: tuple[str, ...]  # id -> token
    added: tuple[Added, ...]  # in the order of their ids
    raw: Finder  # of tokens that are cut out of the text before all else
    folded: Finder | None  # of those that are then cut out of the normalized text
    rules: Rules
    spacing: Spacing
    guards: tuple[str, ...]  # what is in a spaced text if it held a token that is looked for
    words: WordCache  # word -> ids
    chunks: WordCache  # match of `chunk` -> id, start and end of each token in it
    chunk: re.Pattern[str]
    cut: Callable[[str], Iterator[IdSpan]]  # normalized text -> its tokens


@lru_cache(16)
def _characters(
    profile: Profile, case: tuple[bool, bool, bool], never_split: tuple[str, ...]
) -> tuple[Rules, Spacing]:
    """Return rules, and their table of characters, which is filled once for all vocabularies."""
    rules = make_rules(profile, *case, never_split)
    return rules, Spacing(rules)


def make_tables(
    vocab: dict[str, int],
    profile_name: str,
    case: tuple[bool, bool, bool],
    never_split: tuple[str, ...],
    added: Iterable[str | Added],
    special: Special,
) -> Tables:
    """Validate a vocabulary and return the tables.

    Args:
        vocab: token -> id.
        profile_name: a key of `PROFILES`.
        case: whether letters are lower-cased, accents taken away, ideographs words by themselves.
        never_split, added, special: as for `bert.Tokenizer`.

    Raises:
        ValueError: ids have gaps, or a token is missing.
    """
    profile, (ids, tokens) = PROFILES[profile_name], with_ids(vocab, added, plain=True)
    rules, spacing = _characters(profile, case, never_split)
    words_too = {token: ids[token] for token in (*special, *never_split) if token in ids}
    pieces = wordpiece.pieces(
        vocab | words_too, unknown=special.unk, max_characters=profile.max_characters
    )
    whole = pieces.first.get  # no piece is longer, and no piece of one character shorter

    def encode_word(word: str) -> tuple[int, ...]:
        token_id = whole(word, pieces.unknown if len(word) == 1 else None)
        if token_id is not None and len(word) <= profile.max_characters:
            return (token_id,)
        return tuple(wordpiece.ids_and_ends(word, pieces)[0])

    def tokens_of(text: str, rules: Rules) -> Iterator[IdSpan]:
        for word, starts, ends in words(text, rules):
            for token_id, begin, end in wordpiece.split(word, pieces):
                yield token_id, min(starts[begin:end]), max(ends[begin:end])

    def encode_chunk(chunk: str) -> tuple[int, ...]:
        return tuple([number for id_span in tokens_of(chunk, rules) for number in id_span])

    anywhere = [Added(token) for token in never_split if profile.anywhere and token in ids]
    flags = {token.content: token for token in (*anywhere, *tokens)}
    folded = forms(flags.values(), lambda text: normalized(text, rules))
    plain = only_cut(rules)
    return Tables(
        ids,
        tuple(sorted(ids, key=ids.__getitem__)),
        tuple(tokens),
        finder(token for token in flags.values() if not token.normalized),
        Finder(folded) if folded else None,
        rules,
        spacing,
        tuple(token.translate(spacing) for token in (*never_split, *flags)),
        WordCache(encode_word, longest=profile.max_characters),  # longer ones are unknown at once
        WordCache(encode_chunk),
        chunk_pattern(rules),
        lambda text: tokens_of(text, plain),
    )


def encode_with_offsets(text: str, tables: Tables) -> tuple[list[int], Offsets]:
    """Return the token ids of a text without surrogates, and their offsets."""
    ids: list[int] = []
    offsets: Offsets = []
    for begin, end, token in tables.raw.split(text):
        if token is not None:
            ids.append(tables.ids[token])
            offsets.append((begin, end))
        elif tables.folded is not None:
            for token_id, start, stop in _normalized_spans(text[begin:end], tables, tables.folded):
                ids.append(token_id)
                offsets.append((begin + start, begin + stop))
        else:
            for match in tables.chunk.finditer(text, begin, end):
                flat, start = tables.chunks[match[0]], match.start()
                for i in range(0, len(flat), 3):
                    ids.append(flat[i])
                    offsets.append((start + flat[i + 1], start + flat[i + 2]))
    return ids, offsets


def _normalized_spans(text: str, tables: Tables, folded: Finder) -> Iterator[IdSpan]:
    characters = normalized(text, tables.rules)
    form = "".join(character for character, _, _ in characters)
    for begin, end, token in folded.split(form):
        if token is not None:
            id_spans: list[IdSpan] = [(tables.ids[token], 0, end - begin)]
        else:
            id_spans = [*tables.cut(form[begin:end])]
        for token_id, first, last in id_spans:
            spans = characters[begin + first : begin + last]
            yield token_id, min(start for _, start, _ in spans), max(stop for _, _, stop in spans)
