"""Escaping of text from files and servers, for terminals and error messages."""

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

_KINDS = ("Cc", "Cs", "Zl", "Zp")  # controls, halves of characters, separators of lines
_LONGEST = 2000  # characters of a message
_TURNS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # of direction


def printable(text: str, keep: str = "") -> str:
    r"""Return text with control and bidirectional characters escaped.

    Args:
        text: any.
        keep: control characters that stay, such as the line feed.

    >>> printable("\x1b[31mred"), printable("two\nlines", keep="\n")
    ('\\x1b[31mred', 'two\nlines')
    """

    def shown(character: str) -> str:
        odd = unicodedata.category(character) in _KINDS or character in _TURNS
        return repr(character)[1:-1] if odd and character not in keep else character

    return "".join(map(shown, text))


@contextmanager
def printable_errors() -> Iterator[None]:
    """Escape and shorten the messages of errors raised inside: names in them may be a file's."""
    try:
        yield
    except (ValueError, OSError) as error:
        if len(error.args) == 1 and isinstance(error.args[0], str):
            text = printable(error.args[0])
            error.args = (text if len(text) < _LONGEST else f"{text[:1500]} ... {text[-300:]}",)
        raise
