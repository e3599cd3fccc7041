"""What tokenizers do with tokens and ids: look up, check, find the special ones in a text."""

from collections.abc import Iterable, Iterator, Mapping
from operator import index
from typing import Literal

from fnlm.tokenize._byte_level import cut

Special = Iterable[str] | Literal["all"]


def ids_of(tokens: Iterable[str], known: Mapping[str, int]) -> list[int]:
    """Return the id of each token.

    Raises:
        ValueError: a token is unknown, or `tokens` is one string.
    """
    if isinstance(tokens, str):
        raise ValueError(f"tokens={tokens!r} is one string; give a list of tokens, or encode")
    try:
        return [known[token] for token in tokens]
    except KeyError as error:
        raise ValueError(
            f"tokens holds {error.args[0]!r}, which is not among the {len(known)} tokens of the "
            "vocabulary; encode turns any text into ids"
        ) from None


def checked(at: int, size: int) -> int:
    """Return an id as a Python int, if it is one of a vocabulary of that size.

    Raises:
        ValueError: it is not.
    """
    at = index(at)
    if 0 <= at < size:
        return at
    raise ValueError(f"ids holds {at}, outside 0 to {size - 1} (vocab_size - 1)")


def parts(
    text: str, special: Mapping[str, int], allowed: Special
) -> Iterator[tuple[str, int | None]]:
    """Cut a text at the allowed special tokens; yield each part, and its id if it is one.

    Args:
        text: any string.
        special: the special tokens and their ids.
        allowed: those that the text may hold as such, or "all".

    Raises:
        ValueError: `allowed` names what is no special token.

    Example:
        >>> list(parts("a<x>b", {"<x>": 7}, "all"))
        [('a', None), ('<x>', 7), ('b', None)]
    """
    names = tuple(special) if allowed == "all" else tuple(allowed)
    if not set(names) <= set(special) or (isinstance(allowed, str) and allowed != "all"):
        raise ValueError(
            f"allowed_special={allowed!r} must be 'all' or a set of special tokens, which here "
            f"are {tuple(special)}"
        )
    for part in cut(text, names):
        yield part, special[part] if part in names else None
