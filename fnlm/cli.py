"""The command `fnlm`: generate text, inspect a checkpoint, convert one, train, evaluate.

The first three commands are plain functions that yield the pieces of their output; the others are
`fnlm.programs`. Tensors are loaded only when a command runs, so that help comes at once, and the
parser is that of Python, as others take a tenth of the time of importing torch.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from fnlm import __version__, families, programs
from fnlm.programs._command import (
    VERBS,
    as_flags,
    encodable,
    exit_code,
    progress,
    run,
    shown,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["as_flags", "completion", "convert", "generate", "inspect", "main", "progress", "run"]


def main(args: list[str] | None = None) -> int:
    """Run a command.

    Args:
        args: the command line's arguments; by default those of this process.

    Returns:
        the exit code: 0; 2 after an error of the caller, reported in one line; 130 after an
        interruption by Ctrl-C.
    """
    args = sys.argv[1:] if args is None else args
    if args and args[0] in programs.PROGRAMS:
        program = programs.find(args[0])
        return run(program.main, program.Flags, args[1:], program=f"fnlm {args[0]}")
    options = vars(_parser().parse_args(_underscored(args)))
    command = options.pop("command")
    functions: dict[str, Callable[..., Iterator[str]]] = {"generate": generate, "inspect": inspect}
    functions["completion"] = completion
    if command in VERBS:
        options |= {"family": VERBS[command][0], "to": "pytorch-pretrained-bert"}

    def work() -> None:
        for piece in functions.get(command, convert)(**options):
            if command not in ("generate", "completion"):
                piece = as_flags(piece, command)
            raw = command == "generate" and not sys.stdout.isatty()  # as the model generated it
            print(encodable(piece) if raw else shown(piece), end="", flush=True)

    return exit_code(f"fnlm {command}", work)


def _underscored(args: list[str]) -> list[str]:
    """Return arguments with --max-new-tokens, as some spell it, for --max_new_tokens."""
    flag = re.compile(r"^--[a-z]+(-[a-z]+)+(?=$|=)")
    return [flag.sub(lambda found: "--" + found[0][2:].replace("-", "_"), x) for x in args]


def generate(
    model: str,
    prompt: str | None = None,
    *,
    max_new_tokens: int = 60,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical: float = 1.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    num_samples: int = 1,
    num_beams: int = 1,
    dtype: str = "float32",
) -> Iterator[str]:
    """Yield the generated text piece by piece, the prompt first.

    Args:
        model: of a causal family, for `fnlm.pipeline.load`.
        prompt: text to continue; an empty one starts a new text, which GPT cannot.
        max_new_tokens: the most tokens of a text; GPT-2 may end one earlier by <|endoftext|>.
        temperature: 0 takes the most likely token each time.
        top_k: see `fnlm.generate`, as for the next four.
        seed: random seed; text i depends on the seed and i alone.
        num_samples: how many texts; with beams, that many of the best.
        num_beams: more than 1 is beam search instead of sampling; its texts come when it is done.
        dtype: data type of the model, float32 or bfloat16.

    Raises:
        ValueError: a setting is out of range, the prompt and the tokens do not fit the model, or
            it is not a causal language model.
        FileNotFoundError: no such model.
    """
    _check_counts(num_samples, num_beams)
    _check_temperature(temperature)
    filters: dict[str, Any] = {
        "top_k": top_k, "top_p": top_p, "min_p": min_p, "typical": typical
    }  # fmt: skip
    beamed = {"repetition_penalty": repetition_penalty, "temperature": temperature or 1.0}
    if num_beams > 1:
        _check_unused({**filters, **beamed}, f"num_beams={num_beams}")
    elif not temperature:
        _check_unused(filters, "temperature=0")
    from fnlm import pipeline, random
    from fnlm.generate import beam_search, stream

    lm = pipeline.load(model, dtype=dtype)
    import torch  # not before fnlm, which says what to do where torch is missing

    apply, params = lm.apply, lm.params
    ids = torch.tensor([lm.encode(prompt or "")])
    shared: dict[str, Any] = {"eos": lm.eos, "prefill": lm.family.hidden_states}

    def texts() -> Iterator[Iterable["Tensor"]]:
        """Yield the tokens of each text, one by one."""
        if num_beams > 1:
            sequences, _ = beam_search(
                apply, params, ids, max_new_tokens, num_beams=num_beams, **shared
            )
            yield from sequences[0, :num_samples]
            return
        for i in range(num_samples):
            key = random.fold_in(random.key(seed), i)[None] if temperature else None
            yield stream(
                apply, params, ids, max_new_tokens, key=key, temperature=temperature or 1.0,
                repetition_penalty=repetition_penalty, **filters, **shared,
            )  # fmt: skip

    for i, tokens in enumerate(texts()):
        if num_samples > 1:
            yield f"--- {i + 1} of {num_samples}\n"
        yield prompt or ""
        yield from lm.decode(tokens)
        yield "\n"


def _check_counts(num_samples: int, num_beams: int) -> None:
    if num_samples < 1 or num_beams < 1 or 1 < num_beams < num_samples:
        raise ValueError(
            f"num_samples={num_samples} and num_beams={num_beams} must be at least 1, "
            "and beams, where there are several, no fewer than samples"
        )


def _check_unused(settings: dict[str, Any], reason: str) -> None:
    """Raise ValueError if a setting of sampling that has no effect is not left at its default."""
    for name, value in settings.items():
        if value != (0 if name in ("top_k", "min_p") else 1):
            raise ValueError(f"{name}={value} has no effect with {reason}: leave out one of them")


def _check_temperature(temperature: float) -> None:
    if temperature < 0:
        raise ValueError(
            f"temperature={temperature} is below 0: 0 takes the most likely token each time, 1 "
            "samples as the model says"
        )


def inspect(
    path: str,
    *,
    heads: list[str] | None = None,
    ignore: list[str] | None = None,
    seed: int | None = None,
) -> Iterator[str]:
    """Yield a description of a checkpoint, line by line: see `fnlm.checkpoints.inspect`."""
    from fnlm import checkpoints

    yield from checkpoints.inspect(path, heads=heads, ignore=ignore or (), seed=seed)


def convert(
    source: str,
    target: str,
    *,
    to: str = "transformers",
    config: str | None = None,
    family: str | None = None,
    dtype: str | None = None,
    heads: list[str] | None = None,
    ignore: list[str] | None = None,
    seed: int | None = None,
) -> Iterator[str]:
    """Write a checkpoint in another format: see `fnlm.checkpoints.convert`."""
    from fnlm import checkpoints

    yield from checkpoints.convert(
        source, target, dialect=to, config=config, family=family, dtype=dtype,
        heads=heads, ignore=ignore or (), seed=seed,
    )  # fmt: skip


def completion(shell: str) -> Iterator[str]:
    """Yield a script that lets a shell complete the commands and their flags."""
    from fnlm.programs import _completion

    yield _completion.script(shell, _parser())


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fnlm", description="Language models as functions.")
    parser.add_argument("--version", action="version", version=f"fnlm {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def command(name: str, what: str, description: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=what, description=description, formatter_class=_Help, allow_abbrev=False
        )

    generator = command(
        "generate", "generate text with a model", "Generate text with a language model."
    )
    add = generator.add_argument
    titles = ", ".join(record.title for record in families.causal())
    add("model", type=str, help=f"directory, file, bundled model or hub name, of: {titles}")
    add("--prompt", type=str, help="text to continue; by default a new text is started")
    add("--max_new_tokens", type=int, default=60, help="the most tokens of a text")
    _add_sampling(generator)
    add("--seed", type=int, default=0, help="random seed")
    add("--num_samples", type=int, default=1, help="how many texts")
    add("--num_beams", type=int, default=1, help="more than 1 is beam search instead of sampling")
    add("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the model")
    viewer = command("inspect", "show what a checkpoint holds", "Show what a checkpoint holds.")
    viewer.add_argument("path", type=str, help="file, directory, bundled model or hub name")
    _add_reading(viewer)
    what = "write a checkpoint in another format"
    converter = command("convert", what, "Write a checkpoint in another format.")
    add = converter.add_argument
    add("source", type=str, help="file or directory of any format, or hub name")
    add("target", type=str, help="directory, or file that ends in .safetensors or .bin")
    dialects = "transformers, pytorch-pretrained-bert, or another that the family has"
    add("--to", type=str, default="transformers", help=f"the form that is written: {dialects}")
    add("--config", type=str, help="configuration file; by default the one beside the source")
    known = ", ".join(families.FAMILIES)
    add("--family", type=str, help=f"one of {known}; by default found by the names")
    types = ["float32", "float16", "bfloat16", "float64"]
    add("--dtype", choices=types, help="cast to this type; by default nothing is cast")
    _add_reading(converter)
    _add_others(command)
    return parser


def _add_others(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the programs, whose flags are read when they run, and the commands by earlier names."""
    for name, description in programs.PROGRAMS.items():
        command(name, description, description)
    for verb, (family, *words) in VERBS.items():
        what = f"convert --family {family}, by its earlier name"
        alias = command(verb, what, f"Convert a {family} checkpoint.")
        for word in words:
            last = word == "config" and word == words[-1]
            alias.add_argument(word, type=str, nargs="?" if last else None, help=_POSITIONAL[word])
        _add_reading(alias)
    what = "print a script that lets a shell complete commands and flags"
    completer = command("completion", what, "Print a script for a shell to read when it starts.")
    completer.add_argument("shell", choices=["bash", "zsh", "fish"], help="which shell")


# What the commands for a conversion are given.
_POSITIONAL = {
    "source": "file or directory of the checkpoint",
    "config": "its configuration file; by default the one beside it",
    "target": "directory, or file that ends in .bin, to write",
}


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--temperature", type=float, default=1.0, help="0 takes the most likely token each time")
    add("--top_k", type=int, default=0, help="sample among the k most likely tokens; 0 for all")
    add("--top_p", type=float, default=1.0, help="sample among the most likely of this probability")
    add(
        "--min_p", type=float, default=0.0, help="of the likeliest, the least probability to sample"
    )
    add("--typical", type=float, default=1.0, help="sample among those of typical surprise")
    add("--repetition_penalty", type=float, default=1.0, help="more than 1 avoids repetition")


def _add_reading(parser: argparse.ArgumentParser) -> None:
    """Add the flags for reading a checkpoint."""
    add = parser.add_argument
    add("--heads", type=str, nargs="+", help="task heads to load; by default those of the source")
    add("--ignore", type=str, nargs="+", help="patterns of names of tensors to leave out")
    add("--seed", type=int, help="random seed to initialise heads that the source lacks")


if __name__ == "__main__":
    sys.exit(main())
