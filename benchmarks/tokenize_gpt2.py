"""Claim: text to GPT-2 ids as fast as `tiktoken` once words were seen, half as fast before.

All in one thread, in seconds of a processor, on a long file, on its lines one by one, and on
hostile text: runs of one character, no spaces, control characters, emoji, words of many scripts.
Cold is a tokenizer that has seen nothing; `tiktoken` keeps no words, so it is never cold. All ids
must agree. The last row is `encode_batch` by two processes, each of which begins with no words.

The limit is that of the interpreter: to split a text at spaces and look each word up takes two
thirds of the time on a long file. On hostile text what counts is the merging of bytes, which
`tiktoken` does in Rust; only a word that is one token, and those cut where no token holds two bytes
side by side, need none.
"""

import sys

from _harness import environment
from _texts import DATA, Encode, Maker, compare, compare_processes, flags, kinds, prose

from fnlm.tokenize import gpt2


def vocabulary() -> gpt2.Tokenizer:
    """Return OpenAI's, or one that is trained here if there is none."""
    if (DATA / "vocab" / "gpt2").is_dir():
        print(f"vocabulary: {DATA / 'vocab' / 'gpt2'}")
        return gpt2.load(DATA / "vocab" / "gpt2")
    print("vocabulary: of 5,000 tokens, trained on a part of the text")
    return gpt2.train([prose()[:300_000]], 5_000)


def makers(tokenizer: gpt2.Tokenizer) -> dict[str, Maker]:
    """Return for each program a function that makes a fresh encoder."""
    import tiktoken
    from tiktoken_ext import openai_public  # type: ignore[import-untyped]

    special = {name: tokenizer.tokens_to_ids([name])[0] for name in tokenizer.special}
    ordinary = [at for at in range(tokenizer.vocab_size) if at not in special.values()]
    ranks = {tokenizer.decode_bytes([at]): at for at in ordinary}
    encoding = tiktoken.Encoding(
        "gpt2", pat_str=openai_public.r50k_pat_str, mergeable_ranks=ranks, special_tokens=special
    )

    def ours() -> Encode:
        return gpt2.Tokenizer(tokenizer.vocab, tokenizer.merges).encode

    return {"fnlm": ours, "tiktoken": lambda: encoding.encode_ordinary}


def main() -> int:
    args = flags(__doc__)
    print(f"{environment('tiktoken', 'regex')}; one is used")
    rounds = 3 if args.quick else args.rounds
    tokenizer = vocabulary()
    texts = kinds(args.text.read_text() if args.text else prose(), quick=args.quick)
    met = compare(makers(tokenizer), "tiktoken", texts, rounds, {"warm": 1.0, "cold": 0.5})
    met &= compare_processes(tokenizer.encode_batch, rounds, quick=args.quick)
    return not met


if __name__ == "__main__":
    sys.exit(main())
