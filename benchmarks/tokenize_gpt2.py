"""Claim: text to GPT-2 ids as fast as `tiktoken` once words were seen, half as fast before.

All in one thread, in seconds of a processor, on a long file, on its lines one by one, and on
hostile text: runs of one character, no spaces, control characters, emoji, words of many scripts.
Cold is a tokenizer that has seen nothing; `tiktoken` keeps no words, so it is never cold. All ids
must agree. The last row is `encode_batch` by two processes, each of which begins with no words.

What is new is merged by `tiktoken` itself, with ranks that are ours (`fnlm.tokenize._compiled`),
once a few thousand characters have been merged in Python. The tables for that are made once for all
tokenizers with these merges; like those of the peer, they are made before the clock starts, and how
long that takes is said. "fnlm, compiled=False" is the same without it, for comparison.

The limit is that of the interpreter: to split a text at spaces and look each word up takes two
thirds of the time on a long file.
"""

import sys
import time

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

    def python() -> Encode:
        return gpt2.Tokenizer(tokenizer.vocab, tokenizer.merges, compiled=False).encode

    peer = encoding.encode_ordinary
    return {"fnlm": ours, "fnlm, compiled=False": python, "tiktoken": lambda: peer}


def main() -> int:
    args = flags(__doc__)
    print(f"{environment('tiktoken', 'regex')}; one is used")
    rounds = 3 if args.quick else args.rounds
    tokenizer = vocabulary()
    start = time.process_time()
    engine = tokenizer.engine
    print(f"new words: {engine}, ready after {1e3 * (time.process_time() - start):.0f} ms")
    texts = kinds(args.text.read_text() if args.text else prose(), quick=args.quick)
    met = compare(makers(tokenizer), "tiktoken", texts, rounds, {"warm": 1.0, "cold": 0.5})
    met &= compare_processes(tokenizer.encode_batch, rounds, quick=args.quick)
    return not met


if __name__ == "__main__":
    sys.exit(main())
