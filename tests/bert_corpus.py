"""A million characters of all planes, and what their ids hash to: it may never change.

    python tests/bert_corpus.py

prints the hashes; they are the same whatever Python runs it and whatever libraries are installed.
"""

import hashlib

from fnlm.tokenize import bert

DIGESTS = {
    "ppb-0.6.2": "02a1b2b516921d667d7fb0b35329685b77c0a11a3aed6f9115b85c5b1e5dd104",
    "google-2018-11": "2e0d9c1bab29a1670d035f44daf5c5c8d47c0b0731f89785b5972daa54421ecb",
    "google-2019-03": "e71f2a86552148d45eda76d9b47c42c8b0bc8c563bacf8ee0c7a9f6d571364a2",
    "transformers": "d30867b8028196bfb1941071fac88fd5331409d0e1f94efe2019e61b9c21e96d",
}


def lines() -> list[str]:
    """Lines of a million characters of all planes, made by arithmetic alone."""
    state, made = 14, []
    # Of each kind: how many code points there are to choose from, and how far apart they are.
    kinds = [(0x110000, 97), (0x20000, 7), (0x3400, 1), (0x250, 1), (0x7F, 1), (0x7F, 1)]
    for length in [50] * 19_700 + [150] * 100:
        line = []
        for _ in range(length):
            state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
            kind, number = divmod(state >> 32, 2**29)
            if length > 50:  # one long word
                line.append(0x61 + number % 26)
            elif kind < len(kinds):
                limit, step = kinds[kind]
                code = number % (limit // step) * step
                line.append(code if not 0xD800 <= code < 0xE000 else 0x3A3)
            else:
                line.append(0x20)
        made.append("".join(map(chr, line)))
    return made


def vocabulary() -> dict[str, int]:
    """A vocabulary of single characters: all up to U+3400, and every seventh after it."""
    alone = [*map(chr, range(0x21, 0x3400)), *map(chr, range(0x3400, 0x110000, 7))]
    tokens = ["[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]", *alone, *(f"##{c}" for c in alone)]
    return {token: at for at, token in enumerate(tokens)}


def digest(profile: str) -> str:
    """Return the hash of the ids of all lines, lower-cased and then cased."""
    total, vocab, texts = hashlib.sha256(), vocabulary(), lines()
    for lower in (True, False):
        for ids in bert.Tokenizer(vocab, lower, profile).encode_batch(texts):
            total.update(f"{ids}".encode())
    return total.hexdigest()


if __name__ == "__main__":
    for name in DIGESTS:
        print(name, digest(name))  # noqa: T201
