"""All pages of the documentation: those in the tree, as they are, and those that are made from the code."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from deployments.docs.command_page import command_page
from deployments.docs.errors_page import errors_page
from deployments.docs.events_page import events_page
from deployments.docs.figures_page import figures_page
from deployments.docs.model_page import model_page
from deployments.docs.settings_page import settings_page
from infra.settings import CHECKOUT

WRITTEN = ("*.md", "docs/**/*.md", "infra/**/*.md", "tasks/**/*.md")
"""Where pages lie in the tree. They keep their places in the site, so their links to each other hold in both."""

MADE: Mapping[str, Callable[[], Iterator[str]]] = {
    "docs/reference/command-line.md": command_page,
    "docs/reference/errors.md": errors_page,
    "docs/reference/events.md": events_page,
    "docs/reference/figures.md": figures_page,
    "docs/reference/model-file.md": model_page,
    "docs/reference/settings.md": settings_page,
}

CONFIGURATION = CHECKOUT / "docs" / "zensical.toml"
"""Of the generator. Its folders are beside it, once it lies in the folder that `put_together` has filled."""

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\]|!\[[^\]]*\]\([^)]*\))*)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")
_FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def written() -> tuple[str, ...]:
    """The pages that lie in the tree, by their paths in the checkout."""
    found = {path for pattern in WRITTEN for path in CHECKOUT.glob(pattern)}
    return tuple(sorted(str(path.relative_to(CHECKOUT)) for path in found))


def pages() -> dict[str, str]:
    """The text of every page by its path."""
    made = {name: "\n".join(lines()) for name, lines in MADE.items()}
    return {name: (CHECKOUT / name).read_text() for name in written()} | made


def put_together(folder: Path) -> None:
    """Fill `folder`, which is emptied, with all pages, what they link to, and the configuration of the generator."""
    shutil.rmtree(folder, ignore_errors=True)
    found = pages()
    for name, text in found.items():
        put = folder / "pages" / name
        put.parent.mkdir(parents=True, exist_ok=True)
        put.write_text(_for_site(name, text, found, folder / "pages"))
    shutil.copy(CONFIGURATION, folder / CONFIGURATION.name)


def _for_site(name: str, text: str, found: Mapping[str, str], folder: Path) -> str:
    """A page with links that hold in the site: other files are beside it, and folders are told without a link."""

    def link(match: re.Match[str]) -> str:
        target = ((CHECKOUT / name).parent / match[3]).resolve()
        path = str(target.relative_to(CHECKOUT))
        if path in found:
            return match[0]
        if target.is_dir():
            return match[2]
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(target, folder / path)
        if inner := _LINK.search(match[2]):  # a picture that is a link to itself
            return match[0].replace(inner[0], _LINK.sub(link, inner[0]))
        return match[0]

    parts: list[str] = []
    end = 0
    for fence in _FENCE.finditer(text):
        parts += [_LINK.sub(link, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, _LINK.sub(link, text[end:])])
