"""The report as one page that needs no other file, and runs nothing: no script, no address outside.

Everything that was recorded is escaped here. The policy in its head forbids the rest, should that ever miss something.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path

from tasks.report import svg
from tasks.report.blocks import Answers, Block, Command, Distributions, Intervals, Section, Table, Verdicted, Words
from tasks.report.shown import cell, shown
from tasks.targets.gate_record import Histogram

_STYLE = Path(__file__).with_name("page.css")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STATES = {"passed", "refused", "undecided", "failed", "FAILED"}


def page(title: str, sections: tuple[Section, ...]) -> str:
    """The whole file."""
    style = _STYLE.read_text(encoding="utf-8")
    name = escape(cell(title))
    body = "\n".join(_section(section) for section in sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="referrer" content="no-referrer">
<title>{name}</title>
<style>
{style}</style>
</head>
<body>
<main>
<h1>{name}</h1>
{body}
</main>
</body>
</html>
"""


def _section(section: Section) -> str:
    return "\n".join((f"<section>\n<h2>{escape(section.title)}</h2>", *map(_block, section.blocks), "</section>"))


def _block(block: Block) -> str:
    match block:
        case Words(text):
            return f"<p>{_words(text)}</p>"
        case Verdicted(state, text):
            word = state or "open"
            return f'<p class="verdict {word}"><strong>{word}</strong> {_words(text)}</p>'
        case Table():
            return _table(block)
        case Intervals(comparisons):
            return "\n".join(
                f"<figure><figcaption>{escape(cell(each.measure))}</figcaption>{svg.interval(each)}</figure>"
                for each in comparisons
            )
        case Distributions(histograms):
            return "\n".join(map(_distribution, histograms))
        case Answers():
            return _answers(block)
        case Command(line, does):
            return f"<p>{_words(does)}:<br><code>{escape(line)}</code></p>"


def _distribution(each: Histogram) -> str:
    name = escape(f"{cell(each.measure)}, {cell(each.unit)}")
    sides = " and ".join(f'<span class="{side}">{side}</span>' for side in ("candidate", "live")[: 1 + bool(each.live)])
    return (
        f"<figure><figcaption>{name}, of {sides}: requests by time</figcaption>{svg.histogram(each)}"
        f"<figcaption>share of requests within a time</figcaption>{svg.by_share(each)}</figure>"
    )


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.head)
    rows = "\n".join(f"<tr>{''.join(_cells(table.head, row))}</tr>" for row in table.rows)
    return f'<div class="table"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>'


def _cells(head: tuple[str, ...], row: tuple[str, ...]) -> Iterator[str]:
    for name, text in zip(head, row, strict=True):
        state = f' class="{text}"' if name == "verdict" and text in _STATES else ""
        # The name is for narrow screens, where each row is a list.
        yield f'<td data-name="{escape(name)}"{state} dir="auto">{escape(cell(text))}</td>'


def _answers(pair: Answers) -> str:
    same = _alike(pair.ours, pair.theirs)
    note = f"<figcaption>{_words(pair.note)}</figcaption>" if pair.note else ""
    question = f'<pre class="question" dir="auto">{escape(shown(pair.question))}</pre>' if pair.question else ""
    sides = "".join(
        f'<div><h3>{escape(whose)}</h3><pre dir="auto">{_marked(text, same)}</pre></div>'
        for whose, text in (("candidate", pair.ours), (pair.beside, pair.theirs))
    )
    return f'<figure class="answers">{note}{question}<div class="sides">{sides}</div></figure>'


def _alike(ours: str, theirs: str) -> int:
    """How many characters both begin with."""
    differing = (place for place, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other)
    return next(differing, min(len(ours), len(theirs)))


def _marked(text: str, same: int) -> str:
    """The text with its part from the first difference on marked, if that part is shown."""
    if not text:
        return "<em>nothing</em>"
    whole, alike = shown(text), shown(text[:same])
    if same == 0 or not whole.startswith(alike):
        return escape(whole)
    return f"{escape(alike)}<mark>{escape(whole[len(alike) :])}</mark>"


def _words(text: str) -> str:
    return escape(" ".join(shown(text).split()))
