"""Scripts for shells: completing the commands of `fnlm` and their flags."""

import argparse
import shlex
from dataclasses import fields
from typing import Any

from fnlm import programs

_BASH = """\
_fnlm() {{
  local words="" word="${{COMP_WORDS[COMP_CWORD]}}"
  if (( COMP_CWORD == 1 )); then
    words="{commands}"
  elif [[ $word == -* ]]; then
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _fnlm fnlm
"""
# zsh reads the script of bash.
_ZSH = "autoload -U +X compinit bashcompinit && compinit -u && bashcompinit\n"


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def flags(command: str, parser: argparse.ArgumentParser) -> dict[str, str]:
    """Return the flags of a command, each with what it is for, or "" if that is not known here."""
    options = {
        option: action.help or ""
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--")
    }
    if command in programs.PROGRAMS:
        own: Any = programs.find(command).Flags
        options |= {f"--{field.name}": "" for field in fields(own)} | {"--config": ""}
    return options


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    """Return the script for a shell.

    Args:
        shell: "bash", "zsh" or "fish".
        parser: of all commands, with what each is for.
    """
    commands = subparsers(parser)
    if shell == "fish":
        lines = ["complete -c fnlm -n __fish_use_subcommand -f"]
        for name, command in commands.items():
            what = shlex.quote(command.description or "")
            lines.append(f"complete -c fnlm -n __fish_use_subcommand -a {name} -d {what}")
            for flag, what in flags(name, command).items():
                seen = f"-n '__fish_seen_subcommand_from {name}'"
                words = (
                    f"complete -c fnlm {seen} -l {flag.removeprefix('--')} -d {shlex.quote(what)}"
                )
                lines.append(words)
        return "\n".join(lines) + "\n"
    cases = "\n".join(
        f'      {name}) words="{" ".join(flags(name, command))}" ;;'
        for name, command in commands.items()
    )
    bash = _BASH.format(commands=" ".join(commands), cases=cases)
    return _ZSH + bash if shell == "zsh" else bash
