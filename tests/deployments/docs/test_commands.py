"""Commands in the documentation are those that there are. What needs more than this machine says so in its first line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from deployments.cli.completion import subcommands
from deployments.cli.main import command_line
from deployments.docs.site import written
from infra.errors import UsageError
from infra.settings import CHECKOUT
from tasks.models.catalogue import load_model

PAGES = [name for name in written() if name != "CHANGELOG.md"]
MARKS = ("# needs a GPU", "# needs a cluster", "# needs an account", "# needs Docker")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`enginehouse ([^`\n]+(?:\n[^`\n]+)?)`")
_ENDS = {";", "&&", "||", "|", ">", "<", "&", "(", ")"}


def blocks(page: str, language: str) -> Iterator[str]:
    for found, text in _FENCE.findall((CHECKOUT / page).read_text()):
        if found == language:
            yield text


def words(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    return list(lexer)


def commands(block: str) -> Iterator[list[str]]:
    """The commands of a block, word by word, those in `$(…)` too, without the variables that are set before one."""
    for line in re.sub(r"\\\n", " ", block).splitlines():
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


def require_parsed(command: list[str]) -> None:
    given = ["1" if word == "N" else word for word in command[1:]]
    try:
        command_line().parse_args(given)
    except UsageError as error:
        pytest.fail(f"{' '.join(command)}: {error.message}")
    except SystemExit as ended:  # --version, --help
        assert ended.code in (0, None)


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_read_by_the_real_parser(page: str) -> None:
    for block in (*blocks(page, "sh"), *blocks(page, "console")):
        for command in commands(block):
            if command[0] == "enginehouse":
                require_parsed(command)


@pytest.mark.parametrize("page", PAGES)
def test_commands_within_a_sentence_too(page: str) -> None:
    known = subcommands(command_line())
    for found in _INLINE.findall((CHECKOUT / page).read_text()):
        command = ["enginehouse", *words(found.replace("…", ""))]
        if command[1] in known and len(command) == 2:
            continue  # the command itself is meant
        require_parsed(command)


def test_each_command_that_is_shown_runs_in_a_test_or_is_marked() -> None:
    tests = "\n".join(path.read_text() for path in sorted((CHECKOUT / "tests").rglob("*.py")))
    shown = {
        command[1]
        for page in PAGES
        for block in blocks(page, "sh")
        if not block.startswith(MARKS)
        for command in commands(block)
        if command[0] == "enginehouse" and not command[1].startswith("-")
    }
    assert len(shown) > 20
    assert [name for name in sorted(shown) if not re.search(rf"[\"' ]{re.escape(name)}[\"' ]", tests)] == []


@pytest.mark.parametrize("page", PAGES)
def test_what_needs_more_is_marked(page: str) -> None:
    """A block of commands is in the language `sh`, and one for a cluster, for Docker or for a GPU begins with its mark."""
    for language, block in _FENCE.findall((CHECKOUT / page).read_text()):
        called = {command[0] for command in commands(block)} if language == "sh" else set[str]()
        if called & {"kubectl", "docker"} or re.search(r"--runtime 1\.3|build-sm\d+", block) and language == "sh":
            assert block.startswith(MARKS) or not called - {"enginehouse"}, f"{page}: {block}"
        if language == "":
            assert not re.search(r"^(enginehouse|make|prefect|kubectl) ", block, re.MULTILINE), f"{page}: {block}"


def test_targets_of_make_in_blocks_are_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (CHECKOUT / "Makefile").read_text(), re.MULTILINE))
    named = {
        command[1]
        for page in PAGES
        for block in blocks(page, "sh")
        for command in commands(block)
        if command[0] == "make"
    }
    assert {"run", "test", "docs"} <= named <= targets


def test_models_files_in_the_documentation_are_right(tmp_path: Path) -> None:
    """Every block of YAML that is a whole file: it has a name, a source, a recipe and prompts."""
    read: list[str] = []
    for page in PAGES:
        for block in blocks(page, "yaml"):
            document = yaml.safe_load(block)
            if not isinstance(document, dict) or not {"name", "source", "recipe", "prompts"} <= document.keys():
                continue
            path = tmp_path / f"{document['name']}.yaml"
            path.write_text(block)
            read.append(load_model(path).name)
    assert len(read) >= 5
