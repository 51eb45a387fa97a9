"""Completion for shells, as a script made from the parser: it runs no Python at a press of Tab.

It knows commands, options, the values of those that have a fixed few, and the models by the names of their files.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import cast

_NAMES_A_MODEL = ("model", "release", "reference")
"""Arguments that a model's name may be."""

_SCRIPT = """\
# Made by `enginehouse completion`; made again after an upgrade, it knows the new commands.
{zsh}_enginehouse_models() {{
    local file
    for file in "${{ENGINEHOUSE_CATALOGUE:-"{catalogue}"}}"/*.yaml "${{ENGINEHOUSE_CATALOGUE:-"{catalogue}"}}"/*.yml; do
        [ -e "$file" ] && file="${{file##*/}}" && printf '%s ' "${{file%.*}}"
    done
}}
_enginehouse() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words={commands}
    else
        case "${{COMP_WORDS[1]}} $before" in
{values}
        esac
        if [ -z "$words" ]; then
            case "${{COMP_WORDS[1]}} $word" in
{options}
            esac
        fi
        if [ -z "$words" ]; then
            case "${{COMP_WORDS[1]}}" in
                {models}) words="$(_enginehouse_models)" ;;
            esac
        fi
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word")) || :
}}
complete -o default -F _enginehouse enginehouse
"""
_ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"


@dataclass
class _Command:
    takes_model: bool = False
    options: list[str] = field(default_factory=list[str])
    values: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    """Of options with a fixed few values, and under the command's own name its commands."""


def script(parser: argparse.ArgumentParser, shell: str, catalogue: Path) -> str:
    """The script for `bash` or `zsh`; `catalogue` is looked into where ENGINEHOUSE_CATALOGUE is not set."""
    commands = {name: _read(name, sub) for name, sub in subcommands(parser).items()}
    return _SCRIPT.format(
        zsh=_ZSH if shell == "zsh" else "",
        catalogue=str(catalogue).replace('"', '\\"'),
        commands=quote(" ".join(commands)),
        values="\n".join(
            f"            {quote(f'{name} {option}')}) words={quote(' '.join(values))} ;;"
            for name, command in commands.items()
            for option, values in command.values.items()
        ),
        options="\n".join(
            f"                {quote(f'{name} -')}*) words={quote(' '.join(command.options))} ;;"
            for name, command in commands.items()
        ),
        models="|".join(name for name, command in commands.items() if command.takes_model),
    )


def _read(name: str, parser: argparse.ArgumentParser) -> _Command:
    command = _Command()
    for action in actions_of(parser):
        values = [str(choice) for choice in action.choices or ()]
        if action.option_strings:
            command.options += action.option_strings
            command.values.update({option: values for option in action.option_strings if values})
        elif values:
            command.values[name] = values
        command.takes_model |= not action.option_strings and action.dest in _NAMES_A_MODEL
    for sub in subcommands(parser).values():
        command.options += [option for option in _read(name, sub).options if option not in command.options]
    return command


def subcommands(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    found: dict[str, argparse.ArgumentParser] = {}
    for action in actions_of(parser):
        choices: object = action.choices
        if isinstance(choices, dict):
            named = cast("dict[str, object]", choices)
            found |= {name: sub for name, sub in named.items() if isinstance(sub, argparse.ArgumentParser)}
    return found


def actions_of(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    yield from parser._actions  # pyright: ignore[reportPrivateUsage] - argparse has no other list of them
