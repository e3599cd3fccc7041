"""English text that every Python has, the language reference of `help`, and vocabularies of it."""

import re
from collections import Counter

from fnlm.tokenize import bert, gpt

MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def topics() -> list[str]:
    """Return the texts of the language reference, about half a million characters."""
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def paragraphs() -> list[str]:
    """Return the paragraphs of these texts, each in one line."""
    pieces = [" ".join(piece.split()) for text in topics() for piece in text.split("\n\n")]
    return [piece for piece in pieces if len(piece) > 80]


def bert_tokenizer(text: str, size: int = 8000) -> bert.Tokenizer:
    """Return a tokenizer of characters, and of the commonest words and ends of words of a text."""
    words = Counter(re.findall(r"\w+", text.lower()))
    ends = Counter("##" + word[-n:] for word in words for n in (1, 2, 3) if len(word) > n)
    letters = sorted(set(text.lower()) - {" ", "\n"})
    common = [token for token, _ in (words + ends).most_common(size)]
    tokens = [*MARKS, *letters, *(f"##{letter}" for letter in letters), *common]
    vocab = {token: at for at, token in enumerate(dict.fromkeys(tokens))}
    return bert.Tokenizer(vocab, profile="transformers")


def gpt_tokenizer(text: str) -> gpt.Tokenizer:
    """Return a tokenizer of characters, and of the pairs that begin the commonest words."""
    letters = sorted(set(text.lower()) - {" ", "\n"})
    words = Counter(re.findall(r"[a-z]{3,}", text.lower()))
    merges: dict[tuple[str, str], None] = {}
    for word, _ in words.most_common(3000):
        for end in range(1, len(word)):
            last = "</w>" if end == len(word) - 1 else ""
            merges.setdefault((word[:end], word[end] + last))
    joined = [left + right for left, right in merges]
    tokens = ["<unk>", *letters, *(f"{letter}</w>" for letter in letters), *joined]
    vocab = {token: at for at, token in enumerate(dict.fromkeys(tokens))}
    return gpt.Tokenizer(vocab, list(merges), mode="fallback")
