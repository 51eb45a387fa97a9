"""Commands in the documentation are those that there are. What needs more than this machine says so."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import cast

import pytest
import yaml

from deployments.cli.completion import subcommands
from deployments.cli.main import command_line
from deployments.docs.site import written
from infra.errors import UsageError
from infra.settings import CHECKOUT
from tasks.models.catalogue import load_model

PAGES = [name for name in written() if name != "CHANGELOG.md"]
MARKS = ("# needs a GPU", "# needs a cluster", "# needs an account", "# needs Docker", "# needs other machines")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`enginehouse ([^`\n]+(?:\n[^`\n]+)?)`")
_ENDS = {";", "&&", "||", "|", ">", "<", "&", "(", ")"}


def blocks(page: str, language: str) -> Iterator[str]:
    for found, text in FENCE.findall((CHECKOUT / page).read_text()):
        if found == language:
            yield text


def words(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    return list(lexer)


def lines(block: str) -> Iterator[str]:
    """The lines of a block, as a shell reads them: on until a quotation that was opened is closed."""
    left = ""
    for line in re.sub(r"\\\n", " ", block).splitlines():
        left += line
        try:
            words(left)
        except ValueError:
            left += "\n"
            continue
        yield left
        left = ""
    assert not left, f"a quotation is not closed: {left}"


def commands(block: str) -> Iterator[list[str]]:
    """The commands of a block, word by word, those in `$(…)` too, without the variables that are set before one."""
    for line in lines(block):
        for inner in re.findall(r"\$\((enginehouse [^)]*)\)", line):
            yield words(inner)
        command: list[str] = []
        for word in [*words(line), ";"]:
            if word in _ENDS:
                if command:
                    yield command
                command = []
            elif command or not re.fullmatch(r"\w+=.*", word):
                command.append(word)


class Incomplete(Exception):
    """A command that lacks what it needs."""


@cache
def parser() -> argparse.ArgumentParser:
    return command_line()


def require_parsed(command: list[str]) -> None:
    given = ["1" if word == "N" else word for word in command[1:]]
    try:
        parser().parse_args(given)
    except UsageError as error:
        if error.message.startswith("the following arguments are required"):
            raise Incomplete(" ".join(command)) from error
        pytest.fail(f"{' '.join(command)}: {error.message}")
    except SystemExit as ended:  # --version, --help
        assert ended.code in (0, None)


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_read_by_the_real_parser(page: str) -> None:
    shown = [re.findall(r"^\$ (.*)", block, re.MULTILINE) for block in blocks(page, "console")]
    for block in (*blocks(page, "sh"), *("\n".join(typed) for typed in shown)):
        for command in commands(block):
            if command[0] == "enginehouse":
                require_parsed(command)


@pytest.mark.parametrize("page", PAGES)
def test_commands_within_a_sentence_too(page: str) -> None:
    known = subcommands(parser())
    for found in _INLINE.findall((CHECKOUT / page).read_text()):
        command = ["enginehouse", *words(found.replace("…", ""))]
        if command[1] == "COMMAND":
            continue  # any of them
        assert command[1] in known or command[1].startswith("-"), found
        try:
            require_parsed(command)
        except Incomplete:
            continue  # a command, or an option of it, and not a whole line


def test_each_command_that_is_shown_runs_in_a_test_or_is_marked() -> None:
    run: set[str] = set()
    for path in (CHECKOUT / "tests").rglob("*.py"):
        run.update(re.findall(r"(?:\"|enginehouse )([a-z]+(?:-[a-z]+)*)(?=[\" ])", path.read_text()))
    shown = {
        command[1]
        for page in PAGES
        for block in blocks(page, "sh")
        if not block.startswith(MARKS)
        for command in commands(block)
        if command[0] == "enginehouse" and not command[1].startswith("-")
    }
    assert len(shown) > 20
    assert sorted(shown - run) == []


def more(command: list[str]) -> bool:
    """Whether a command needs a cluster, Docker or a GPU: it makes a model other than that of `make run`, say."""
    if command[0] == "enginehouse":
        return command[1] in ("node", "probe") or (command[1] in ("rebuild", "ask") and command[2] != "smollm2-135m")
    return command[0] in ("kubectl", "docker") or (command[0] == "prefect" and "build-sm90" in command)


@pytest.mark.parametrize("page", PAGES)
def test_what_needs_more_is_marked(page: str) -> None:
    """A block of commands is in the language `sh`, and one for a cluster, Docker or a GPU begins with its mark."""
    for language, block in FENCE.findall((CHECKOUT / page).read_text()):
        asked: list[list[str]] = [command for command in commands(block) if more(command)] if language == "sh" else []
        assert not asked or block.startswith(MARKS), f"{page}: {asked[0]}"
        typed = re.search(r"^(enginehouse|make|prefect|kubectl) ", block, re.MULTILINE)
        assert language or typed is None, f"{page}: this block is in no language: {block}"


def test_targets_of_make_in_blocks_are_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (CHECKOUT / "Makefile").read_text(), re.MULTILINE))
    named = {
        command[1]
        for page in PAGES
        for block in blocks(page, "sh")
        for command in commands(block)
        if command[0] == "make"
    }
    assert {"run", "test"} <= named <= targets


def test_models_files_in_the_documentation_are_right(tmp_path: Path) -> None:
    """Every block of YAML that is a whole file: it has a name, a source, a recipe and prompts."""
    read: list[str] = []
    for page in PAGES:
        for block in blocks(page, "yaml"):
            found: object = yaml.safe_load(block)
            document = cast("dict[str, object]", found) if isinstance(found, dict) else {}
            if not {"name", "source", "recipe", "prompts"} <= document.keys():
                continue
            path = tmp_path / f"{document['name']}.yaml"
            path.write_text(block)
            read.append(load_model(path).name)
    assert len(read) >= 5
