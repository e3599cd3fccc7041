"""Tokens and ids: look-up, validation, and splitting a text at its special tokens."""

from collections.abc import Iterable, Iterator, Mapping
from operator import index
from typing import Literal

from fnlm.tokenize._added import (
    Finder,
    Normalize,
    finder,
    forms,
    of,
    overlap,
    simplest,
)
from fnlm.tokenize.added import Added

Special = Iterable[str] | Literal["all"]


def ids_of(tokens: Iterable[str], vocab: Mapping[str, int]) -> list[int]:
    """Return the id of each token.

    Raises:
        ValueError: a token is unknown, or `tokens` is one string.
    """
    if isinstance(tokens, str):
        raise ValueError(f"tokens={tokens!r} is one string; give a list of tokens, or encode")
    try:
        return [vocab[token] for token in tokens]
    except KeyError as error:
        raise ValueError(
            f"tokens holds {error.args[0]!r}, which is not among the {len(vocab)} tokens of the "
            "vocabulary; encode turns any text into ids"
        ) from None


def validate_id(token_id: int, vocab_size: int) -> int:
    """Return a token id as a Python int.

    Raises:
        TypeError: it is no integer.
        ValueError: it is out of range.
    """
    try:
        token_id = index(token_id)
    except TypeError:
        raise TypeError(f"ids must be a list of integers, got one {_not_an_id(token_id)}") from None
    if 0 <= token_id < vocab_size:
        return token_id
    raise ValueError(
        f"ids holds {token_id}, outside 0 to {vocab_size - 1} (vocab_size - 1): decode by the "
        "tokenizer that made them"
    )


def each_id(ids: Iterable[int], vocab_size: int) -> Iterator[int]:
    """Return an iterator over ids, each as a Python int.

    Raises:
        TypeError: they are not several, or one is no integer.
        ValueError: one is out of range.

    Example:
        >>> list(each_id([1, 0], 2))
        [1, 0]
    """
    try:
        each = iter(ids)
    except TypeError:
        raise TypeError(
            f"ids must be a list of integers, got {type(ids).__name__}: give one id as [id]"
        ) from None
    return (validate_id(token_id, vocab_size) for token_id in each)


def _not_an_id(value: object) -> str:
    """Return what was found among ids, and the remedy."""
    if isinstance(value, str):
        return f"{value[:40]!r}: encode gives those of a text, tokens_to_ids those of tokens"
    if getattr(value, "ndim", 0) or isinstance(value, list | tuple):
        return (
            f"of type {type(value).__name__}, a row of several: decode a batch row by row, "
            "[tokenizer.decode(row) for row in ids]"
        )
    return f"{str(value)[:40]} of type {type(value).__name__}: round or cast it first"


class SpecialTokens:
    """The special tokens of a vocabulary, and splitting a text at them.

    Args:
        ids: token -> id.
        added: those that count in some places only.
        normalize: text -> its characters in normalized form, with their offsets; None if that is
            the text itself.
    """

    __slots__ = ("finders", "flags", "forms", "ids", "normalize")

    def __init__(
        self,
        ids: Mapping[str, int],
        added: Iterable[Added] = (),
        normalize: Normalize | None = None,
    ) -> None:
        self.ids, self.normalize = dict(ids), normalize
        self.flags = {token.content: token for token in added}
        self.forms = forms(self.flags.values(), normalize)
        self.finders: dict[frozenset[str], tuple[Finder, Finder | None]] = {}

    def split(self, text: str, allowed: Special) -> Iterator[tuple[str, int | None]]:
        """Split a text at the allowed special tokens; yield each part, and its id if it is one.

        Args:
            text: any string.
            allowed: those that the text may hold as such, or "all".

        Raises:
            ValueError: `allowed` names what is no special token.

        Example:
            >>> list(SpecialTokens({"<x>": 7}).split("a<x>b", "all"))
            [('a', None), ('<x>', 7), ('b', None)]
        """
        if not allowed:
            return iter([(text, None)] if text else [])
        names = frozenset(self.ids) if allowed == "all" else frozenset(allowed)
        if not names <= self.ids.keys() or (isinstance(allowed, str) and allowed != "all"):
            raise ValueError(
                f"allowed_special={allowed!r} must be 'all' or a set of special tokens, which here "
                f"are {tuple(self.ids)}"
            )
        if names not in self.finders:
            if len(self.finders) > 32:
                self.finders.clear()
            self.finders[names] = self._finders(names)
        return self._cut(text, *self.finders[names])

    def _finders(self, names: frozenset[str]) -> tuple[Finder, Finder | None]:
        tokens = [self.flags.get(name, Added(name)) for name in names]
        folded = {form: token for form, token in self.forms.items() if token.content in names}
        raw = finder(token for token in tokens if not token.normalized)
        return raw, Finder(folded) if folded else None

    def _cut(
        self, text: str, raw: Finder, folded: Finder | None
    ) -> Iterator[tuple[str, int | None]]:
        for begin, end, token in raw.split(text):
            part = text[begin:end]
            if token is not None:
                yield part, self.ids[token]
            elif folded is None:
                yield part, None
            else:
                yield from self._cut_normalized(part, folded)

    def _cut_normalized(self, text: str, folded: Finder) -> Iterator[tuple[str, int | None]]:
        """Split a text where its normalized form has tokens that cover whole characters of it."""
        spans = [(i, i + 1) for i in range(len(text))]
        form = text
        if self.normalize is not None:
            characters = self.normalize(text)
            spans = [(start, end) for _, start, end in characters]
            form = "".join(character for character, _, _ in characters)
        done = 0  # characters of the text that have been yielded
        for begin, end, token in folded.split(form):
            if token is None:
                continue
            # The spaces beside an ideograph are of the same character: what ends between them and
            # it takes in the ideograph or leaves them out.
            while begin < end - 1 and form[begin] == " " and _divides(spans, begin):
                begin += 1
            while form[begin - 1] == " " and _divides(spans, begin):
                begin -= 1
            while begin < end - 1 and form[end - 1] == " " and _divides(spans, end):
                end -= 1
            while _divides(spans, end) and form[end] == " ":
                end += 1
            if _divides(spans, begin) or _divides(spans, end):
                continue
            start, stop = spans[begin][0], max(stop for _, stop in spans[begin:end])
            if done < start:
                yield text[done:start], None
            yield text[start:stop], self.ids[token]
            done = stop
        if done < len(text):
            yield text[done:], None


def _divides(spans: list[tuple[int, int]], i: int) -> bool:
    """Whether a cut before normalized character `i` would divide a character of the text."""
    return 0 < i < len(spans) and spans[i][0] < spans[i - 1][1]


def with_ids(
    vocab: Mapping[str, int], added: Iterable[str | Added], *, plain: bool = False
) -> tuple[dict[str, int], list[Added]]:
    """Return token -> id with the ids of added tokens, and these in the order of their ids.

    Args:
        vocab: token -> id, ids 0 to n - 1.
        added: tokens whose ids follow; and `Added` of `vocab` which count in some places only.
        plain: whether those of `vocab` may also count everywhere.

    Raises:
        ValueError: ids have gaps, or a token is there twice.
    """
    ids = dict(vocab)
    tokens = {}
    for token in map(of, added):
        content = token.content
        if content in tokens or (content in ids and token.plain and not plain):
            raise ValueError(
                f"added holds {content!r}, which is in the vocabulary already, or twice"
            )
        tokens[content] = token
        ids.setdefault(content, len(ids))
    if sorted(ids.values()) != list(range(len(ids))):
        raise ValueError(f"vocab must give its {len(vocab)} tokens the ids 0 to {len(vocab) - 1}")
    return ids, [tokens[content] for content in sorted(tokens, key=ids.__getitem__)]


def in_one_pass(added: Iterable[Added], special: Iterable[str]) -> list[Added]:
    """Return added tokens, not `normalized` where that makes no difference to what is found.

    Args:
        added: those of a tokenizer that normalizes no text.
        special: all special tokens.
    """
    tokens = {name: Added(name) for name in special} | {token.content: token for token in added}
    if any(token.single_word or token.lstrip or token.rstrip for token in tokens.values()):
        return [*added]
    for one in tokens.values():
        for other in tokens.values():
            if one.normalized > other.normalized and overlap(one.content, other.content):
                return [*added]
    return [token._replace(normalized=False) for token in added]


def arguments(added: Iterable[Added], vocab: Mapping[str, int]) -> list[str | Added]:
    """Return the argument `added` for the added tokens of the files.

    Those of the vocabulary that count everywhere are special tokens without being named.
    """
    return [simplest(token) for token in added if token.content not in vocab or not token.plain]
