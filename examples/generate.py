"""Text from a GPT-2: continue a prompt, begin from nothing, or ask for prompts one after another.

    python examples/generate.py --model_name_or_path tiny --prompt "The king said to the"
    python examples/generate.py --model_name_or_path tiny --unconditional --nsamples 3
    python examples/generate.py --model_name_or_path tiny                 # interactive

The flags are those of the well-known `run_gpt2.py`. Text is shown as it is made where samples are
made one at a time (--batch_size 1, the default); sample i depends on --seed and i alone, whatever
the batch size.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnlm import gpt2, random
from fnlm.generate import generate, stream
from fnlm.params.layout import for_decoding
from fnlm.params.tree import cast
from fnlm.tokenize import gpt2 as bpe

END_OF_TEXT = "<|endoftext|>"


class Model(NamedTuple):
    """What writing needs: parameters, tokenizer, and the id that begins and ends a text."""

    params: Any
    tokenizer: bpe.Tokenizer
    end: int


def load(name_or_path: str, dtype: str) -> Model:
    tokenizer = bpe.load(name_or_path)
    (end,) = tokenizer.tokens_to_ids([END_OF_TEXT])
    params = for_decoding(cast(gpt2.load(name_or_path), getattr(torch, dtype)))
    return Model(params, tokenizer, end)


def until(end: int, tokens: Iterable[Tensor]) -> Iterator[int]:
    """The ids before the end of a text."""
    for token in tokens:
        if int(token) == end:
            return
        yield int(token)


def samples(model: Model, prompt: str, args: argparse.Namespace) -> Iterator[Iterable[str]]:
    """For each sample the pieces of its text; those of a batch come all at once."""
    ids = torch.tensor([model.tokenizer.encode(prompt) or [model.end]])
    settings: dict[str, Any] = {
        "temperature": args.temperature,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "end": model.end,
        "prefill": gpt2.hidden_states,
    }
    for first in range(0, args.nsamples, args.batch_size):
        rows = torch.arange(first, min(first + args.batch_size, args.nsamples))
        keys = random.fold_in(random.key(args.seed), rows)
        given = (gpt2.apply, model.params, ids.expand(len(rows), -1), args.length)
        if len(rows) == 1:
            texts: Iterable[Iterable[Tensor]] = [stream(*given, key=keys, **settings)]
        else:
            texts = generate(*given, key=keys, **settings)
        for tokens in texts:
            yield model.tokenizer.decode_stream(until(model.end, tokens))


def show(model: Model, prompt: str, args: argparse.Namespace) -> None:
    for number, pieces in enumerate(samples(model, prompt, args), 1):
        if args.nsamples > 1:
            print(f"{'=' * 30} sample {number} {'=' * 30}")
        for piece in pieces:
            print(piece, end="", flush=True)
        print(flush=True)


def talk(model: Model, args: argparse.Namespace) -> None:
    """Ask for prompts until the end of the input."""
    while True:
        try:
            prompt = input("Model prompt >>> ")
        except EOFError:
            print()
            return
        if not prompt:
            print("The prompt is empty: type some text, or end with Ctrl-D.")
            continue
        try:
            show(model, prompt, args)
        except ValueError as error:  # a prompt that is too long
            print(f"No text: {error}")


def arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model_name_or_path", default="gpt2", help="bundled, directory or hub")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nsamples", type=int, default=1, help="texts for each prompt")
    parser.add_argument("--batch_size", type=int, default=1, help="texts made at the same time")
    parser.add_argument(
        "--length", type=int, default=-1, help="most tokens; -1: half of the positions"
    )
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top_k", type=int, default=0, help="0: all words")
    parser.add_argument("--top_p", type=float, default=1.0, help="1: all words")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--prompt", help="continue this text and stop")
    mode.add_argument("--unconditional", action="store_true", help="begin from nothing and stop")
    args = parser.parse_args(words)
    if args.nsamples < 1 or args.batch_size == 0 or args.batch_size < -1:
        parser.error("--nsamples must be at least 1, --batch_size at least 1 (or -1: 1)")
    args.batch_size = max(args.batch_size, 1)
    return args


def main(words: list[str] | None = None) -> int:
    args = arguments(words)
    try:
        model = load(args.model_name_or_path, args.dtype)
        if args.length == -1:
            args.length = model.params["config"].n_positions // 2
        if args.unconditional or args.prompt is not None:
            show(model, args.prompt or "", args)
        else:
            talk(model, args)
    except (ValueError, OSError) as error:
        print(f"generate.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
