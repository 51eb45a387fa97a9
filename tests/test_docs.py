"""The documentation names files, classes, settings and targets that there are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from deployments.docs.site import MADE, WRITTEN
from infra.settings import CHECKOUT, Settings

PAGES = sorted(path.relative_to(CHECKOUT) for pattern in WRITTEN for path in CHECKOUT.glob(pattern))
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")
_PATH = re.compile(r"`((?:deployments|docs|flows|infra|tasks|tests)/[\w./-]+)`")
_PLACEHOLDER = re.compile(r"[A-Z]{4,}(?!\.md)")
"""`tasks/kinds/NAME.py` stands for a file that somebody adds."""
_DEFINED = re.compile(r"`(\w+)` in `([\w/]+\.py)`")


def text_of(page: Path) -> str:
    """A page without its blocks of code, whose brackets are no links."""
    return re.sub(r"^```.*?^```", "", (CHECKOUT / page).read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(text: str) -> Iterator[str]:
    """Names of a page's headings, as GitHub makes them."""
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        yield re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text, folder = text_of(page), (CHECKOUT / page).parent
    broken: list[str] = []
    for link, anchor in _LINK.findall(text):
        target = folder / link if link else CHECKOUT / page
        if (name := str(target.resolve().relative_to(CHECKOUT))) in MADE:
            if anchor and anchor not in anchors("\n".join(MADE[name]())):
                broken.append(f"{link}#{anchor}")
        elif not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            broken.append(f"{link}#{anchor}")
    broken += [path for path in _PATH.findall(text) if not _PLACEHOLDER.search(path) and not (CHECKOUT / path).exists()]
    assert broken == []


def test_each_word_lives_where_the_page_says() -> None:
    found = [pair for page in PAGES for pair in _DEFINED.findall(text_of(page))]
    assert len(found) > 50
    defined = r"^ *(?:class|def|async def) {0}\b|^{0}\b.*=|^    {0}: "
    elsewhere = [
        f"{name} in {path}"
        for name, path in found
        if not re.search(defined.format(name), (CHECKOUT / path).read_text(), re.MULTILINE)
    ]
    assert elsewhere == []


def test_the_table_of_settings_has_each_once() -> None:
    page = text_of(Path("docs/how-to/own-servers.md"))
    rows = re.findall(r"^\| (`ENGINEHOUSE_.*?) \|", page, re.MULTILINE)
    described = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert len(described) == len(set(described))
    assert {f"ENGINEHOUSE_{field.name.upper()}" for field in fields(Settings)} <= set(described)


def test_the_targets_are_those_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (CHECKOUT / "Makefile").read_text(), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"`make ([a-z-]+)`", text_of(page))}
    assert {"run", "test", "check"} <= named <= targets
