"""The command `fnlm`: write text with a model, show a checkpoint, convert one.

Each command is a plain function that yields the pieces of its output. Tensors are loaded only
when a command runs, so that help comes at once.
"""

import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import jsonargparse

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["as_flags", "convert", "generate", "inspect", "main", "progress", "run"]

Flags = TypeVar("Flags")

# Arguments that errors name, and the flags of `fnlm convert` for them; those of `fnlm inspect`.
FLAGS = {
    "heads": "heads", "ignore": "ignore", "key": "seed", "dialect": "to", "family": "family",
    "dtype": "dtype", "config": "config",
}  # fmt: skip
_READ = ("heads", "ignore", "seed")

# The four commands of pytorch-pretrained-bert: the family, and the words in their order.
VERBS = {
    "convert_tf_checkpoint_to_pytorch": ("bert", "source", "config", "target"),
    "convert_openai_checkpoint": ("gpt", "source", "target", "config"),
    "convert_transfo_xl_checkpoint": ("transfo_xl", "source", "target", "config"),
    "convert_gpt2_checkpoint": ("gpt2", "source", "target", "config"),
}


def main(args: list[str] | None = None) -> int:
    """Run a command.

    Args:
        args: words of the command line; by default those of this process.

    Returns:
        the exit code: 0; 2 after a mistake of the caller, which is told in one line; 130 after
        an interruption by Ctrl-C.
    """
    given = _parser().parse_args(args)
    commands: dict[str, Callable[..., Iterator[str]]] = {"generate": generate, "inspect": inspect}
    options = given[given.subcommand].as_dict()
    if given.subcommand in VERBS:
        options |= {"family": VERBS[given.subcommand][0], "to": "pytorch-pretrained-bert"}

    def work() -> None:
        for piece in commands.get(given.subcommand, convert)(**options):
            if given.subcommand != "generate":
                piece = as_flags(piece, given.subcommand)
            raw = given.subcommand == "generate" and not sys.stdout.isatty()  # as the model made it
            print(_encodable(piece) if raw else _shown(piece), end="", flush=True)

    return _exit_code(f"fnlm {given.subcommand}", work)


def run(work: Callable[[Flags], None], flags: type[Flags], args: list[str] | None = None) -> int:
    """Run a program whose flags are the fields of a dataclass; --config reads them from YAML, too.

    Args:
        work: what to do with the flags.
        flags: the dataclass; a flag without a value sets a field of type bool.
        args: words of the command line; by default those of this process.

    Returns:
        the exit code: 0; 2 after a mistake of the caller, which is told in one line; 130 after
        an interruption by Ctrl-C.
    """
    switches = {f"--{field.name}" for field in fields(cast(Any, flags)) if field.type is bool}
    words = [f"{w}=true" if w in switches else w for w in (sys.argv[1:] if args is None else args)]
    given = jsonargparse.auto_cli(flags, args=words, as_positional=False)

    def checked() -> None:
        _check_device(getattr(given, "device", "cpu"))
        work(given)

    return _exit_code(Path(sys.argv[0]).name, checked)


def _check_device(name: str) -> None:
    """Raise ValueError, before any file is read, unless tensors can be made on a device."""
    import torch

    try:
        torch.empty(0, device=name)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"--device {name} is none here ({reason}): use --device cpu") from error


def progress(what: str) -> Callable[[int, int], None]:
    """Make a bar on standard error: a function to be called as show(records done, in all)."""
    from tqdm import tqdm

    bar = tqdm(desc=what, unit="record", delay=1e-3)  # an error before the first one stands alone

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return show


def _exit_code(program: str, work: Callable[[], None]) -> int:
    """Work, and tell a mistake in one line."""
    try:
        work()
    except BrokenPipeError:  # the reader has gone, as in `fnlm inspect model | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted", file=sys.stderr)
        return 130  # as shells have it: 128 and the number of the signal
    except (ValueError, LookupError, TypeError, OSError) as error:
        text = error.args[0] if isinstance(error, KeyError) else error
        line = as_flags(" ".join(str(text).split()), program.removeprefix("fnlm "))
        print(_shown(f"{program}: {line}"), file=sys.stderr)
        return 2
    return 0


def generate(
    model: str,
    prompt: str | None = None,
    *,
    max_new_tokens: int = 60,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    num_samples: int = 1,
    num_beams: int = 1,
    dtype: str = "float32",
) -> Iterator[str]:
    """Yield text as it is made, the prompt first.

    Args:
        model: of GPT-2, GPT or Transformer-XL, for `fnlm.pipeline.load`.
        prompt: what to continue; nothing starts as a text begins, which GPT does not know.
        max_new_tokens: most tokens a text; one of GPT-2 may end earlier, by <|endoftext|>.
        temperature: 0 takes the most likely token each time.
        top_k: see `fnlm.generate`, as for `top_p` and `repetition_penalty`.
        seed: of the random numbers; text i depends on the seed and i alone.
        num_samples: how many texts; with beams, the best so many.
        num_beams: more than 1 searches instead of sampling, and shows texts when they are done.
        dtype: type of the arithmetic, float32 or bfloat16.

    Raises:
        ValueError: a setting is out of range, the prompt and the tokens do not fit the model, or
            it is none that continues texts.
        FileNotFoundError: no such model.
    """
    if num_samples < 1 or num_beams < 1 or 1 < num_beams < num_samples:
        raise ValueError(
            f"num_samples={num_samples} and num_beams={num_beams} must be at least 1, "
            "and beams, where there are several, no fewer than samples"
        )
    idle = {"top_k": (top_k, 0), "top_p": (top_p, 1.0)} if num_beams > 1 or not temperature else {}
    if num_beams > 1:
        idle |= {"repetition_penalty": (repetition_penalty, 1.0)}
        idle |= {"temperature": (temperature or 1.0, 1.0)}
    for name, (value, default) in idle.items():
        if value != default:
            reason = f"num_beams={num_beams}" if num_beams > 1 else "temperature=0"
            raise ValueError(f"{name}={value} has no effect with {reason}: leave out one of them")
    import torch

    from fnlm import pipeline, random
    from fnlm.generate import beam_search, stream

    made = pipeline.load(model, dtype=dtype)
    apply, params = made.apply, made.params
    ids = torch.tensor([made.encode(prompt or "")])
    shared: dict[str, Any] = {"eos": made.eos, "prefill": made.family.hidden_states}

    def texts() -> Iterator[Iterable["Tensor"]]:
        """For each text its tokens, one by one."""
        if num_beams > 1:
            found, _ = beam_search(
                apply, params, ids, max_new_tokens, num_beams=num_beams, **shared
            )
            yield from found[0, :num_samples]
            return
        for i in range(num_samples):
            key = random.fold_in(random.key(seed), i)[None] if temperature else None
            yield stream(
                apply, params, ids, max_new_tokens, key=key, temperature=temperature or 1.0,
                top_k=top_k, top_p=top_p, repetition_penalty=repetition_penalty, **shared,
            )  # fmt: skip

    for i, tokens in enumerate(texts()):
        if num_samples > 1:
            yield f"--- {i + 1} of {num_samples}\n"
        yield prompt or ""
        yield from made.decode(tokens)
        yield "\n"


def as_flags(text: str, command: str) -> str:
    """Return a message in which the arguments of functions are the flags of a command.

    Args:
        text: in which an argument stands as in Python: `heads=('masked_lm',)`.
        command: "inspect", for example; of one without these flags, those of `fnlm convert`.

    >>> as_flags("pass ignore=('score.*', 'b'), or key=fnlm.random.key(seed)", "convert")
    "pass --ignore 'score.*' b, or --seed 0"
    >>> as_flags("pass heads=('masked_lm',)", "generate")
    'pass fnlm convert --heads masked_lm'
    """

    def flag(match: re.Match[str]) -> str:
        name, value = FLAGS[match[1]], match[2]
        words = re.findall(r"'((?:[^'\\]|\\.)*)'", value) if name != "seed" else ["0"]
        given = command in ("convert", "inspect", *VERBS) and (
            command != "inspect" or name in _READ
        )
        return f"{'' if given else 'fnlm convert '}--{name} {shlex.join(words)}"

    text_of = r"'(?:[^'\\]|\\.)*'"
    values = rf"{text_of}|\((?:{text_of},? ?)+\)|fnlm\.random\.key\(seed\)"
    return re.sub(rf"\b({'|'.join(FLAGS)})=({values})", flag, text)


def inspect(
    path: str,
    *,
    heads: list[str] | None = None,
    ignore: list[str] | None = None,
    seed: int | None = None,
) -> Iterator[str]:
    """Yield lines on a checkpoint: see `fnlm.checkpoints.inspect`."""
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
    """Write a checkpoint in another form: see `fnlm.checkpoints.convert`."""
    from fnlm import checkpoints

    yield from checkpoints.convert(
        source, target, to=to, config=config, family=family, dtype=dtype,
        heads=heads, ignore=ignore or (), seed=seed,
    )  # fmt: skip


def _parser() -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(prog="fnlm", description="Language models as functions.")
    commands = parser.add_subcommands()
    pipeline = jsonargparse.ArgumentParser(description="Write text, shown as it is made.")
    add = pipeline.add_argument
    add("model", type=str, help="directory, .safetensors file, bundled model or hub name")
    add("--prompt", type=str, help="text to continue; without one a new text begins")
    add("--max_new_tokens", type=int, default=60, help="most tokens of a text")
    add("--temperature", type=float, default=1.0, help="0 takes the most likely token each time")
    add("--top_k", type=int, default=0, help="choose among the k most likely tokens; 0 for all")
    add("--top_p", type=float, default=1.0, help="choose among the most likely of this probability")
    add("--repetition_penalty", type=float, default=1.0, help="more than 1 avoids repetition")
    add("--seed", type=int, default=0, help="of the random numbers")
    add("--num_samples", type=int, default=1, help="texts to write")
    add("--num_beams", type=int, default=1, help="more than 1 searches for the most likely text")
    add("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the arithmetic")
    viewer = jsonargparse.ArgumentParser(description="Show what a checkpoint holds.")
    viewer.add_argument("path", type=str, help="file, directory, bundled model or hub name")
    _add_reading(viewer)
    converter = jsonargparse.ArgumentParser(description="Write a checkpoint in another form.")
    add = converter.add_argument
    add("source", type=str, help="file or directory of any format, or hub name")
    add("target", type=str, help="directory, or file that ends in .safetensors or .bin")
    add("--to", choices=["transformers", "pytorch-pretrained-bert"], default="transformers")
    add("--config", type=str, help="configuration file; by default the one beside the source")
    add("--family", type=str, help="bert, gpt, gpt2 or transfo_xl; by default told by the names")
    types = ["float32", "float16", "bfloat16", "float64"]
    add("--dtype", choices=types, help="cast to this type; by default nothing is cast")
    _add_reading(converter)
    commands.add_subcommand("generate", pipeline, help="write text with a model")
    commands.add_subcommand("inspect", viewer, help="show what a checkpoint holds")
    commands.add_subcommand("convert", converter, help="write a checkpoint in another form")
    for verb, (family, *words) in VERBS.items():
        alias = jsonargparse.ArgumentParser(description=f"Convert a {family} checkpoint.")
        for word in words:
            last = word == "config" and word == words[-1]
            alias.add_argument(word, type=str, nargs="?" if last else None)
        _add_reading(alias)
        commands.add_subcommand(verb, alias, help=f"convert --family {family}, as it was called")
    return parser


def _add_reading(parser: jsonargparse.ArgumentParser) -> None:
    """Add the flags that tell how a checkpoint is read."""
    add = parser.add_argument
    add("--heads", type=str, nargs="+", help="task heads wanted; by default those of the source")
    add("--ignore", type=str, nargs="+", help="patterns of names of tensors to leave out")
    add("--seed", type=int, help="lets heads that the source lacks be initialised at random")


def _shown(text: str) -> str:
    """Escape what would do more to a terminal than show."""
    from fnlm.files._text import printable

    return _encodable(printable(text, keep="\n\t"))


def _encodable(text: str) -> str:
    """Replace what the terminal can't show."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


if __name__ == "__main__":
    sys.exit(main())
