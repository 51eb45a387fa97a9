"""The reference has all that there is, and nothing that there is not."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields

import pytest

from deployments.cli.completion import actions_of, subcommands
from deployments.cli.main import command_line
from deployments.docs.raised import FINDING, ROOMS, Raised, raised
from deployments.docs.site import pages
from deployments.docs.told import TOLD
from deployments.gateway.figures import Figures
from infra.settings import CHECKOUT, Settings
from tasks.serving.figures import METRICS

_VARIABLE = re.compile(r"\bENGINEHOUSE_[A-Z][A-Z_]*[A-Z]\b")
_NO_SETTINGS = {"ENGINEHOUSE_FIELD", "ENGINEHOUSE_STACK"}
"""What stands for any setting, and the mark by which the embedded stack knows its own processes."""


@pytest.fixture(scope="module")
def page() -> Mapping[str, str]:
    return pages()


@pytest.fixture(scope="module")
def places() -> Mapping[str, list[Raised]]:
    found: dict[str, list[Raised]] = {}
    for place in raised():
        found.setdefault(place.code, []).append(place)
    return found


def sections(text: str) -> dict[str, str]:
    """Of each heading of the second level, what is below it."""
    parts = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def source(*folders: str) -> str:
    return "\n".join(path.read_text() for folder in folders for path in sorted((CHECKOUT / folder).rglob("*.py")))


def test_every_code_says_what_happened_and_what_helps(
    page: Mapping[str, str], places: Mapping[str, list[Raised]]
) -> None:
    told = sections(page["docs/reference/errors.md"])
    assert list(told) == sorted(places)
    for code, found in places.items():
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", code), code
        assert any(place.says for place in found) or TOLD[code].means, f"{code}: what happened?"
        assert "**Then:**" in told[code], f"{code}: what helps?"


def test_words_beside_the_source_are_only_those_that_it_lacks(places: Mapping[str, list[Raised]]) -> None:
    needless = [
        code
        for code, told in TOLD.items()
        if code not in places
        or (told.remedy and any(place.remedy for place in places[code]))
        or (told.means and any(place.says for place in places[code]))
    ]
    assert needless == []


def test_every_code_is_named_by_a_test(places: Mapping[str, list[Raised]]) -> None:
    named: set[str] = set()
    for path in sorted((CHECKOUT / "tests").rglob("*.py")):
        if path.parent.name != "docs":
            named.update(re.findall(r"(?<=[\"'\[`])[a-z]+(?:-[a-z]+)*(?=[\"'\]`])", path.read_text()))
    assert [code for code in sorted(places) if code not in named] == []


def test_codes_that_tests_assert_are_in_the_reference(places: Mapping[str, list[Raised]]) -> None:
    """The places are read in the source; that none was missed is told by those who raise them."""
    asserted = set(re.findall(r"\.code == \"([a-z]+(?:-[a-z]+)+)\"", source("tests")))
    assert len(asserted) > 100
    assert sorted(asserted - set(places)) == []


def test_findings_of_the_doctor_are_among_them(places: Mapping[str, list[Raised]]) -> None:
    findings = {code for code, found in places.items() if any(place.error == FINDING for place in found)}
    assert {"hub-token", "pool-missing", "store-slow", "check-hung"} <= findings


def commands(parser: argparse.ArgumentParser, before: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for name, command in subcommands(parser).items():
        yield f"{before}{name}", command
        yield from commands(command, f"{before}{name} ")


def test_every_command_and_option_is_there(page: Mapping[str, str]) -> None:
    told = sections(page["docs/reference/command-line.md"])
    assert list(told) == [name for name, _ in commands(command_line())]
    for name, command in commands(command_line()):
        options = [option for action in actions_of(command) for option in action.option_strings]
        missing = [option for option in options if option not in ("-h", "--help") and f"`{option}" not in told[name]]
        assert missing == [], name


def test_every_setting_is_there(page: Mapping[str, str]) -> None:
    told = re.findall(r"^\| `(ENGINEHOUSE_\w+)` \|", page["docs/reference/settings.md"], re.MULTILINE)
    assert len(told) == len(set(told))
    assert {f"ENGINEHOUSE_{field.name.upper()}" for field in fields(Settings)} <= set(told)
    read = set(_VARIABLE.findall(source(*ROOMS))) - _NO_SETTINGS
    assert sorted(read - set(told)) == []


def test_every_row_of_the_reference_has_words(page: Mapping[str, str]) -> None:
    for name in ("settings", "model-file", "figures", "events"):
        rows = re.findall(r"^\| `.*$", page[f"docs/reference/{name}.md"], re.MULTILINE)
        assert len(rows) > 10 and [row for row in rows if row.endswith("|  |")] == [], name


def test_every_figure_is_there(page: Mapping[str, str]) -> None:
    told = set(re.findall(r"^\| `(\w+)` \|", page["docs/reference/figures.md"], re.MULTILINE))
    served = set(re.findall(r"^# TYPE (\w+) ", Figures().text().decode(), re.MULTILINE))
    assert {metric.name for metric in METRICS} | {name for name in served if not name.endswith("_created")} <= told
    written = page["docs/how-to/figures.md"] + page["docs/how-to/monitoring.md"]
    ours = set(re.findall(r"\benginehouse_(?:gateway|node)_\w+", written))
    assert len(ours) > 15 and sorted(ours - told) == []


def test_each_page_is_in_the_site(page: Mapping[str, str]) -> None:
    named = set(re.findall(r'"([\w/.-]+\.md)"', (CHECKOUT / "docs/zensical.toml").read_text()))
    ours = {name for name in page if name.startswith("docs/")}
    assert ours - named == set()
    assert [name for name in named if name not in page] == []
    table = page["docs/README.md"]
    unlisted = [name for name in sorted(ours) if f"({name.removeprefix('docs/')}" not in table]
    assert unlisted == ["docs/README.md"]
