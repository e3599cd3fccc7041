"""Added tokens: special ones and others that a text is split at before it is cut into words.

They match as in the `tokenizers` library: of two that begin at the same character the longer one
counts, and those of the raw text come before those of the normalized text.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

import regex

from fnlm.tokenize._bpe import well_formed
from fnlm.tokenize.added import Added

_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
_is_word = regex.compile(r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]").match
# Text -> its characters in normalized form, each with its offsets (start, end) in the text.
Normalize = Callable[[str], list[tuple[str, int, int]]]


def of(token: "str | Added") -> Added:
    """Return a token as a valid `Added`.

    Raises:
        ValueError: it is empty, or not text.
    """
    added = Added(token) if isinstance(token, str) else token
    content = added.content
    if not isinstance(content, str) or not content or well_formed(content) != content:
        raise ValueError(f"added holds {content!r}, which is empty or not text")
    return added


def simplest(token: Added) -> "str | Added":
    """Return the content alone if the token has no flags."""
    return token.content if token.plain else token


def overlap(one: str, other: str) -> bool:
    """Whether occurrences of both in a text can share characters.

    Example:
        >>> overlap("<a>", "><"), overlap("<a>", "<b>"), overlap("a", "<a>")
        (True, False, True)
    """
    if one in other or other in one:
        return True
    sizes = range(1, min(len(one), len(other)))
    return any(one[-n:] == other[:n] or other[-n:] == one[:n] for n in sizes)


class Finder:
    """Finds tokens in a text.

    Args:
        tokens: the string to find -> the token that it stands for.
    """

    __slots__ = ("flagged", "names", "pattern")

    def __init__(self, tokens: Mapping[str, Added]) -> None:
        longest_first = sorted(tokens, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first))) if tokens else None
        self.names = {form: token.content for form, token in tokens.items()}
        self.flagged = {
            form: token
            for form, token in tokens.items()
            if token.single_word or token.lstrip or token.rstrip
        }

    def split(self, text: str) -> Iterator[tuple[int, int, str | None]]:
        """Yield (begin, end, token) for each part of a text; the token is None between tokens.

        Example:
            >>> list(Finder({"<x>": Added("<x>")}).split("a<x>"))
            [(0, 1, None), (1, 4, '<x>')]
        """
        done = 0
        for match in self.pattern.finditer(text) if self.pattern else ():
            begin, end = match.span()
            if token := self.flagged.get(match[0]):
                if token.single_word and _touches_a_word(text, begin, end):
                    continue
                while token.lstrip and begin > done and text[begin - 1] in _SPACE:
                    begin -= 1
                while token.rstrip and end < len(text) and text[end] in _SPACE:
                    end += 1
            begin, end = max(begin, done), max(end, done)  # the one before may have taken spaces
            if done < begin:
                yield done, begin, None
            yield begin, end, self.names[match[0]]
            done = end
        if done < len(text):
            yield done, len(text), None


def forms(tokens: Iterable[Added], normalize: Normalize | None) -> dict[str, Added]:
    """Return normalized form -> token, for the tokens that are found in the normalized text.

    Raises:
        ValueError: a form is empty, or two tokens have the same form.
    """
    by_form: dict[str, Added] = {}
    for token in tokens:
        if not token.normalized:
            continue
        form = token.content
        if normalize is not None:
            form = "".join(character for character, _, _ in normalize(form))
        if not form.strip():
            raise ValueError(f"added holds {token}, of which nothing is left when normalized")
        other = by_form.setdefault(form, token)
        if other is not token:
            raise ValueError(
                f"added holds {other.content!r} and {token.content!r}, which are the same when "
                "normalized; leave one of them out, or have it looked for as it is"
            )
    return by_form


def _touches_a_word(text: str, begin: int, end: int) -> bool:
    before, after = text[begin - 1 : begin], text[end : end + 1]
    return bool(_is_word(before) or _is_word(after))


def finder(tokens: Iterable[Added]) -> Finder:
    """Return a finder of tokens in the raw text."""
    return Finder({token.content: token for token in tokens})
