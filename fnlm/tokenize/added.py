"""Added tokens, and where in a text they match."""

from typing import NamedTuple

__all__ = ["Added"]


class Added(NamedTuple):
    """An added token, and where in a text it matches.

    Args:
        content: the token.
        single_word: only where neither a letter nor a digit touches it.
        lstrip: the white space before it is part of it.
        rstrip: the white space after it is part of it.
        normalized: it is looked for in the normalized text, in its normalized form.
    """

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False

    @property
    def plain(self) -> bool:
        """Whether it matches anywhere in the text."""
        return not any(self[1:])
