"""The report as Markdown, for the Prefect UI. Pictures stay with the page: a line names the commands that show it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from tasks.report.blocks import Answers, Block, Command, Distributions, Intervals, Section, Table, Verdicted, Words
from tasks.report.shown import cell, shown
from tasks.report.text import drawn

_MEANING = re.compile(r"[\\`*_{}\[\]<>()#+!|~&-]")


def markdown(title: str, sections: tuple[Section, ...]) -> str:
    """The whole report."""
    return f"# {plain(title)}\n\n{markdown_of(sections)}"


def markdown_of(sections: Iterable[Section]) -> str:
    """Some sections, to stand below a heading of somebody else's."""
    parts: list[str] = []
    for section in sections:
        parts.append(f"## {plain(section.title)}")
        parts += [part for block in section.blocks for part in _block(block)]
    return "\n\n".join(parts) + "\n"


def _block(block: Block) -> Iterator[str]:
    match block:
        case Words(text):
            yield plain(shown(text))
        case Verdicted(state, text):
            yield f"**{state or 'open'}** {plain(shown(text))}"
        case Table(head, rows):
            lines = [_row(head), "|" + "---|" * len(head), *(_row(tuple(map(cell, row))) for row in rows)]
            yield "\n".join(lines)
        case Intervals(comparisons):
            yield _fenced("\n".join(f"{drawn(each)}  {cell(each.measure)}" for each in comparisons))
        case Distributions():
            pass
        case Answers():
            yield plain(shown(block.note))
            for whose, text in (("question", block.question), ("candidate", block.ours), (block.beside, block.theirs)):
                if text:
                    yield f"{plain(whose)}:\n\n{_fenced(shown(text))}"
        case Command(line, does):
            yield f"{plain(does)}:\n\n{_fenced(line)}"


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(map(plain, cells))} |"


def plain(text: str) -> str:
    """The text without a meaning: entities, which no Markdown reads as marks, on one line."""
    return _MEANING.sub(lambda found: f"&#{ord(found[0])};", " ".join(text.split()))


def _fenced(text: str) -> str:
    """As it is, between fences that are longer than any in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
