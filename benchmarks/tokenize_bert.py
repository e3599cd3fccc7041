"""Claim: text to BERT ids at least 3 times as fast as the `tokenizers` library.

All in one thread, in seconds of a processor, on a long file, on its lines one by one, and on
hostile text: runs of one character, no spaces, control characters, emoji, words of many scripts.
Cold is a tokenizer that has seen nothing. All ids must agree. `offsets` is ours with offsets, which
`tokenizers` always finds. The last row is `encode_batch` by two processes.
"""

import sys
from collections import Counter

from _harness import environment
from _texts import DATA, Encode, Maker, compare, compare_processes, flags, kinds, prose

from fnlm.tokenize import bert


def vocabulary() -> dict[str, int]:
    """Return that of bert-base-uncased, or one of frequent words if there is none."""
    path = DATA / "vocab" / "bert" / "bert-base-uncased-vocab.txt"
    if path.is_file():
        print(f"vocabulary: {path}")
        return dict(bert.load(path).vocab)
    print("vocabulary: letters, and the 8,000 most frequent words of the text")
    words = Counter(word for word in prose().lower().split() if word.isalpha())
    letters = sorted({letter for letter in prose().lower() if letter.strip()})
    pieces = [*letters, *(f"##{letter}" for letter in letters), "##ing", "##ed", "##er", "##tion"]
    frequent = [word for word, _ in words.most_common(8_000)]
    tokens = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces, *frequent])
    return {token: at for at, token in enumerate(tokens)}


def makers(vocab: dict[str, int]) -> dict[str, Maker]:
    """Return for each program a function that makes a fresh encoder."""
    import tokenizers

    def ours() -> bert.Tokenizer:
        return bert.Tokenizer(vocab, True, "transformers")

    def offsets() -> Encode:
        tokenizer = ours()
        return lambda text: tokenizer.encode_with_offsets(text)[0]

    def theirs() -> Encode:
        model = tokenizers.models.WordPiece(vocab, unk_token="[UNK]")
        peer = tokenizers.Tokenizer(model)
        peer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
        peer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        peer.add_special_tokens(["[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"])
        return lambda text: list(peer.encode(text, add_special_tokens=False).ids)

    return {"fnlm": lambda: ours().encode, "fnlm offsets": offsets, "tokenizers": theirs}


def main() -> int:
    args = flags(__doc__)
    print(f"{environment('tokenizers')}; one is used")
    rounds = 3 if args.quick else args.rounds
    vocab = vocabulary()
    texts = kinds(args.text.read_text() if args.text else prose(), quick=args.quick)
    met = compare(makers(vocab), "tokenizers", texts, rounds, {"warm": 3.0, "cold": 3.0})
    tokenizer = bert.Tokenizer(vocab, True, "transformers")
    met &= compare_processes(tokenizer.encode_batch, rounds, quick=args.quick)
    return not met


if __name__ == "__main__":
    sys.exit(main())
