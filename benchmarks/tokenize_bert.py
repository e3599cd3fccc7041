"""Text to BERT ids, against the `tokenizers` library, both in one thread.

    python benchmarks/tokenize_bert.py --vocab FILE --text FILE --rounds 9

The claim: on WikiText's raw test set, ids are found at least twice as fast as by `tokenizers` once
the words have been seen (warm), and at least as fast by a tokenizer that has seen nothing (cold).
The programs take turns in one process; a ratio is that of neighbours, and its median and range are
printed. `fast` is the peer's way without offsets, `offsets` is ours with them. The physical limit
given is that of this interpreter: to split the text at spaces, look each piece up and copy the ids.
"""

import argparse
import os
import platform
from importlib.metadata import version
from itertools import chain
from pathlib import Path

from tokenize_gpt2 import DATA, LINES, WHOLE, Encode, Maker, floor, measure, read

from fnlm.tokenize import bert


def makers(vocabulary: Path, lower_case: bool | None) -> dict[str, Maker]:
    """Return for each program a function that makes a fresh encoder."""
    import tokenizers

    first = bert.load(vocabulary, lower_case=lower_case, profile="transformers")
    vocab = dict(first.vocab)

    def ours() -> bert.Tokenizer:
        return bert.Tokenizer(vocab, first.lower_case, "transformers")

    def fresh() -> tokenizers.Tokenizer:
        model = tokenizers.models.WordPiece(vocab, unk_token="[UNK]")
        peer = tokenizers.Tokenizer(model)
        peer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=first.lower_case)
        peer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        peer.add_special_tokens(list(first.never_split or ()))
        return peer

    def make_offsets() -> Encode:
        tokenizer = ours()
        return lambda text: tokenizer.encode_with_offsets(text)[0]

    def make_tokenizers() -> Encode:
        peer = fresh()
        return lambda text: list(peer.encode(text, add_special_tokens=False).ids)

    def make_fast() -> Encode:
        peer = fresh()
        return lambda text: list(chain(*(found.ids for found in peer.encode_batch_fast([text]))))

    return {
        "fnlm": lambda: ours().encode,
        "fnlm offsets": make_offsets,
        "tokenizers": make_tokenizers,
        "tokenizers fast": make_fast,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else "")
    parser.add_argument(
        "--vocab", type=Path, default=DATA / "vocab" / "bert" / "bert-base-uncased-vocab.txt"
    )
    parser.add_argument("--text", type=Path, default=DATA / "wikitext" / "wiki.test.raw.gz")
    parser.add_argument("--lower-case", action=argparse.BooleanOptionalAction, default=None)
    parser.add_argument("--rounds", type=int, default=9)
    flags = parser.parse_args()
    # Both are read when the library starts its threads, so before it is imported.
    os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1")
    text = read(flags.text)
    print(
        f"Python {platform.python_version()}, tokenizers {version('tokenizers')}, 1 thread, "
        f"{os.cpu_count()} processors; {flags.text.name}, {len(text.encode())} bytes"
    )
    limit = len(text.encode()) / floor(text, flags.rounds) / 1e6
    print(
        f"physical limit of the interpreter (split, look up, copy): "
        f"{limit:.1f} MB a second of processor time"
    )
    programs = makers(flags.vocab, flags.lower_case)
    for name, texts in {WHOLE: [text], LINES: text.splitlines(keepends=True)}.items():
        for warm in (True, False):
            print(f"{name}, {'warm' if warm else 'cold'}, median of {flags.rounds} rounds:")
            measure(programs, texts, flags.rounds, warm=warm)


if __name__ == "__main__":
    main()
