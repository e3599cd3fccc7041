"""Text from GPT-2, GPT or Transformer-XL: continue a prompt, begin from nothing, ask for prompts.

    python examples/generate.py --model_name_or_path tiny --prompt "The king said to the"
    python examples/generate.py --model_name_or_path tiny --unconditional --nsamples 3
    python examples/generate.py --model_name_or_path tiny                 # interactive

The flags are those of the well-known `run_gpt2.py`. Text is shown as it is made where samples are
made one at a time (--batch_size 1, the default); sample i depends on --seed and i alone, whatever
the batch size. A text of Transformer-XL may be of any length, and goes on after a line has ended.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator

import torch

from fnlm import random
from fnlm.generate import generate, stream
from fnlm.pipeline import Pipeline, load


def samples(model: Pipeline, prompt: str, args: argparse.Namespace) -> Iterator[Iterable[str]]:
    """For each sample the pieces of its text; those of a batch come all at once."""
    ids = torch.tensor([model.encode(prompt)])
    settings = {name: getattr(args, name) for name in ("temperature", "top_k", "top_p")}
    settings |= {"eos": model.eos, "prefill": model.family.hidden_states}
    for first in range(0, args.nsamples, args.batch_size):
        rows = torch.arange(first, min(first + args.batch_size, args.nsamples))
        keys = random.fold_in(random.key(args.seed), rows)
        given = (model.family.apply, model.params, ids.expand(len(rows), -1), args.length)
        if len(rows) == 1:
            yield model.decode(stream(*given, key=keys, **settings))
        else:
            yield from (model.decode(row) for row in generate(*given, key=keys, **settings))


def show(model: Pipeline, prompt: str, args: argparse.Namespace) -> None:
    for number, pieces in enumerate(samples(model, prompt, args), 1):
        if args.nsamples > 1:
            print(f"{'=' * 30} sample {number} {'=' * 30}")
        for piece in pieces:
            print(piece, end="", flush=True)
        print(flush=True)


def talk(model: Pipeline, args: argparse.Namespace) -> None:
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
    add = parser.add_argument
    add("--model_name_or_path", default="gpt2", help="bundled, directory or hub")
    add("--seed", type=int, default=0)
    add("--nsamples", type=int, default=1, help="texts for each prompt")
    add("--batch_size", type=int, default=1, help="texts made at the same time")
    add("--length", type=int, default=-1, help="most tokens; -1: half of the positions, or 128")
    add("--temperature", type=float, default=1.0)
    add("--top_k", type=int, default=0, help="0: all tokens")
    add("--top_p", type=float, default=1.0, help="1: all tokens")
    add("--dtype", choices=["float32", "bfloat16"], default="float32")
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
        model = load(args.model_name_or_path, dtype=args.dtype)
        if args.length == -1:
            args.length = getattr(model.params["config"], "n_positions", 256) // 2
        if args.unconditional or args.prompt is not None:
            show(model, args.prompt or "", args)
        else:
            talk(model, args)
    except (ValueError, LookupError, OSError) as error:
        print(f"generate.py: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
