"""What BERT's tokenizer looks up, and its way from a text to tokens with their places."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from fnlm.tokenize import wordpiece
from fnlm.tokenize._added import Finder, finder, forms
from fnlm.tokenize._bert_words import (
    PROFILES,
    Rules,
    Spacing,
    Special,
    chunk_pattern,
    make_rules,
    normalized,
    only_cut,
    words,
)
from fnlm.tokenize._byte_level import Offsets
from fnlm.tokenize._tokens import with_ids
from fnlm.tokenize.added import Added
from fnlm.tokenize.bpe import WordCache

Place = tuple[int, int, int]  # id, and where its token begins and ends


class Tables(NamedTuple):
    """Made once from a vocabulary and settings."""

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
    cut: Callable[[str], Iterator[Place]]  # normalized text -> its tokens


def make_tables(
    vocab: dict[str, int],
    profile_name: str,
    case: tuple[bool, bool, bool],
    never_split: tuple[str, ...],
    added: Iterable[str | Added],
    special: Special,
) -> Tables:
    """Check a vocabulary, and make the tables.

    Args:
        vocab: token -> id.
        profile_name: a key of `PROFILES`.
        case: whether letters are lower-cased, accents taken away, ideographs words by themselves.
        never_split, added, special: as for `bert.Tokenizer`.

    Raises:
        ValueError: ids have gaps, or a token is missing.
    """
    profile, (ids, tokens) = PROFILES[profile_name], with_ids(vocab, added, plain=True)
    rules = make_rules(profile, *case, never_split)
    words_too = {token: ids[token] for token in (*special, *never_split) if token in ids}
    known = wordpiece.pieces(
        vocab | words_too, unknown=special.unk, max_characters=profile.max_characters
    )
    spacing = Spacing(rules)

    def encode_word(word: str) -> tuple[int, ...]:
        return tuple([at for at, _, _ in wordpiece.split(word, known)])

    def tokens_of(text: str, rules: Rules) -> Iterator[Place]:
        for word, starts, ends in words(text, rules):
            for at, begin, end in wordpiece.split(word, known):
                yield at, min(starts[begin:end]), max(ends[begin:end])

    def encode_chunk(chunk: str) -> tuple[int, ...]:
        return tuple([number for place in tokens_of(chunk, rules) for number in place])

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
        WordCache(encode_word),
        WordCache(encode_chunk),
        chunk_pattern(rules),
        lambda text: tokens_of(text, plain),
    )


def places(text: str, tables: Tables) -> tuple[list[int], Offsets]:
    """Return the ids of a text without surrogates, and where each token stands."""
    ids: list[int] = []
    offsets: Offsets = []
    for begin, end, token in tables.raw.parts(text):
        if token is not None:
            ids.append(tables.ids[token])
            offsets.append((begin, end))
        elif tables.folded is not None:
            for at, start, stop in _normalized_places(text[begin:end], tables, tables.folded):
                ids.append(at)
                offsets.append((begin + start, begin + stop))
        else:
            for found in tables.chunk.finditer(text, begin, end):
                flat, start = tables.chunks[found[0]], found.start()
                for i in range(0, len(flat), 3):
                    ids.append(flat[i])
                    offsets.append((start + flat[i + 1], start + flat[i + 2]))
    return ids, offsets


def _normalized_places(text: str, tables: Tables, folded: Finder) -> Iterator[Place]:
    characters = normalized(text, tables.rules)
    form = "".join(character for character, _, _ in characters)
    for begin, end, token in folded.parts(form):
        if token is not None:
            found: list[Place] = [(tables.ids[token], 0, end - begin)]
        else:
            found = [*tables.cut(form[begin:end])]
        for at, first, last in found:
            spans = characters[begin + first : begin + last]
            yield at, min(start for _, start, _ in spans), max(stop for _, _, stop in spans)
