"""What all commands have in common: flags, errors in one line, progress, escaped output."""

import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, cast, get_origin

from fnlm.programs._launch import environment

__all__ = ["RENAMED", "RETIRED", "VERBS", "as_flags", "progress", "run"]

Flags = TypeVar("Flags")

# The four commands of pytorch-pretrained-bert: the family, and the arguments in their order.
VERBS = {
    "convert_tf_checkpoint_to_pytorch": ("bert", "source", "config", "target"),
    "convert_openai_checkpoint": ("gpt", "source", "target", "config"),
    "convert_transfo_xl_checkpoint": ("transfo_xl", "source", "target", "config"),
    "convert_gpt2_checkpoint": ("gpt2", "source", "target", "config"),
}

# Arguments that errors name, and the flags of `fnlm convert` for them; those of `fnlm inspect`.
FLAGS = {
    "heads": "heads", "ignore": "ignore", "key": "seed", "dialect": "to", "family": "family",
    "dtype": "dtype", "config": "config",
}  # fmt: skip
_READ = ("heads", "ignore", "seed")

# Flags of pytorch-pretrained-bert's programs, and what does the same here: a flag that takes their
# value, or a flag with its value.
RENAMED = {
    "epochs": "num_train_epochs",
    "fp16": "dtype=float16",
    "max_seq_len": "max_seq_length",
    "no_cuda": "device=cpu",
    "num_workers": "workers",
}

# Flags of those programs that are not needed here, and what to do instead.
RETIRED = {
    "ext_len": "leave it out, as the memory (--mem_len) has one length",
    "fp16": "leave it out, as no model is computed",
    "local_rank": "leave it out, as torchrun sets it in the environment: torchrun "
    "--nproc-per-node 2 -m fnlm glue ...",
    "loss_scale": "leave it out, as nothing is trained",
    "n_valid": "give a file of the wanted stories as --eval_dataset",
    "no_cuda": "leave it out, as no model is computed",
    "no_log": "leave it out, as the results are written to the directory of the run",
    "on_memory": "leave it out, as rows are always in memory",
    "optimize_on_cpu": "leave it out, as nothing is trained",
    "overwrite_output_dir": "remove the directory to start anew, or give another --output_dir",
    "reduce_memory": "leave it out, as rows are small arrays",
    "server_ip": "leave it out, as any debugger attaches without it",
    "server_port": "leave it out, as any debugger attaches without it",
    "verbose_logging": "leave it out, as what is shown does not depend on it",
}


def run(
    work: Callable[[Flags], None],
    flags: type[Flags],
    args: list[str] | None = None,
    *,
    program: str | None = None,
) -> int:
    """Run a program whose flags are the fields of a dataclass; --config reads them from YAML, too.

    Args:
        work: what to do with the flags.
        flags: the dataclass; a flag without a value sets a field of type bool.
        args: the command line's arguments; by default those of this process.
        program: its name in messages; by default that of this process.

    Returns:
        the exit code: 0; 2 after an error of the caller, reported in one line; 130 after an
        interruption by Ctrl-C.
    """
    import jsonargparse  # takes a while, and not every command needs it

    program = program or Path(sys.argv[0]).name
    types = {field.name: field.type for field in fields(cast(Any, flags))}
    try:
        arguments = _translated(
            sys.argv[1:] if args is None else args,
            {name: kind is bool for name, kind in types.items()},
        )
    except ValueError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    lists = {f"--{name}" for name, kind in types.items() if get_origin(kind) is list}
    arguments = _joined(arguments, lists)
    values = jsonargparse.auto_cli(flags, args=arguments, as_positional=False, prog=program)

    def check_and_work() -> None:
        with _processes_of(values):
            _check_device(getattr(values, "device", "cpu"))
            work(values)

    return exit_code(program, check_and_work)


def _processes_of(flags: Any) -> AbstractContextManager[None]:
    """Return the block in which the processes of `torchrun` can reach each other, if it runs."""
    processes = environment().size
    if processes == 1:
        return nullcontext()
    if not hasattr(flags, "plan"):
        raise ValueError(
            f"this command is one process, and torchrun has started {processes}: start it without"
        )
    from fnlm.programs._training import in_session

    return in_session(flags.device)


def _translated(arguments: list[str], own: dict[str, bool]) -> list[str]:
    """Return the arguments in the flags of a program.

    Args:
        arguments: of a command line, perhaps one for a program of pytorch-pretrained-bert.
        own: the program's flags, and whether each may stand without a value.

    Raises:
        ValueError: only pytorch-pretrained-bert has a flag.
    """
    translated = []
    for word in arguments:
        name, _, value = word.removeprefix("--").partition("=")
        target, _, constant = RENAMED.get(name, "").partition("=")
        if not word.startswith("--"):
            pass
        elif name in own:
            word = f"{word}=true" if own[name] and not value else word
        elif target in own and not constant:
            word = word.replace(name, target, 1)
        elif target in own and value in ("", "true", "True"):
            word = f"--{target}={constant}"
        elif name in RETIRED and target not in own:
            raise ValueError(f"there is no --{name}: {RETIRED[name]}")
        translated.append(word)
    return translated


def _joined(arguments: list[str], lists: set[str]) -> list[str]:
    """Return the arguments with the words after a flag that takes a list as one JSON list.

    >>> _joined(["--files", "a.txt", "b.txt", "--steps", "3"], {"--files"})
    ['--files=["a.txt", "b.txt"]', '--steps', '3']
    """
    joined: list[str] = []
    left = list(arguments)
    while left:
        word, values = left.pop(0), list[str]()
        while word in lists and left and not left[0].startswith("--"):
            values.append(left.pop(0))
        is_json = len(values) == 1 and values[0].startswith("[")
        joined.append(f"{word}={values[0] if is_json else json.dumps(values)}" if values else word)
    return joined


def _check_device(name: str) -> None:
    """Raise ValueError, before any file is read, unless tensors can be made on a device."""
    from fnlm.train.device import choose_device

    try:
        choose_device(name)
    except ValueError as error:
        raise ValueError(str(error).replace("device=", "--device ")) from error


def progress(what: str) -> Callable[[int, int], None]:
    """Return a function show(records done, in all) that draws a progress bar on standard error."""
    from tqdm import tqdm

    bar = tqdm(desc=what, unit="record", delay=1e-3, disable=None)  # an error stands alone

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return show


def next_command(command: str, flags: Any, keep: Sequence[str], **given: Any) -> list[str]:
    """Return the words of a command that goes on from a run.

    Args:
        command: without `fnlm`.
        flags: of the run; the command has the same.
        keep: which of them to take over, where they differ from their defaults.
        given: other values.
    """
    words = ["fnlm", command]
    for field in fields(flags):
        kept = getattr(flags, field.name) if field.name in keep else field.default
        value = given.get(field.name, kept)
        if value != field.default:
            words += [f"--{field.name}", *([] if value is True else [str(value)])]
    return words


def exit_code(program: str, work: Callable[[], None]) -> int:
    """Run `work` and return its exit code; an error of the caller is reported in one line."""
    try:
        work()
    except BrokenPipeError:  # the reader has gone, as in `fnlm inspect model | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print(f"\n{program}: interrupted", file=sys.stderr)
        return 130  # as shells have it: 128 and the number of the signal
    except (ValueError, LookupError, TypeError, OSError, ImportError) as error:
        text = error.args[0] if isinstance(error, KeyError) else error
        line = as_flags(" ".join(str(text).split()), program.removeprefix("fnlm "))
        which = f" (process {rank})" if (rank := environment().rank) else ""
        if "raised on rank 0" not in getattr(error, "__notes__", ()):  # which says it
            print(shown(f"{program}{which}: {line}"), file=sys.stderr)
        return 2
    return 0


def as_flags(text: str, command: str) -> str:
    """Return a message with the arguments of functions replaced by the flags of a command.

    Args:
        text: a message that names an argument as in Python: `heads=('masked_lm',)`.
        command: "inspect", for example; of one without these flags, those of `fnlm convert`.

    >>> as_flags("pass ignore=('score.*', 'b'), or key=fnlm.random.key(seed)", "convert")
    "pass --ignore 'score.*' b, or --seed 0"
    >>> as_flags("pass heads=('masked_lm',)", "generate")
    'pass fnlm convert --heads masked_lm'
    """

    def flag(match: re.Match[str]) -> str:
        name, value = FLAGS[match[1]], match[2]
        values = re.findall(r"'((?:[^'\\]|\\.)*)'", value) if name != "seed" else ["0"]
        is_own = command in ("convert", "inspect", *VERBS) and (
            command != "inspect" or name in _READ
        )
        return f"{'' if is_own else 'fnlm convert '}--{name} {shlex.join(values)}"

    text_of = r"'(?:[^'\\]|\\.)*'"
    argument = rf"{text_of}|\((?:{text_of},? ?)+\)|fnlm\.random\.key\(seed\)"
    return re.sub(rf"\b({'|'.join(FLAGS)})=({argument})", flag, text)


def shown(text: str) -> str:
    """Escape control characters, all but newline and tab."""
    from fnlm.files._text import printable

    return encodable(printable(text, keep="\n\t"))


def encodable(text: str) -> str:
    """Replace characters that the terminal's encoding lacks."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)
