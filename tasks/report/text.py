"""The report as lines for a terminal. Long texts are broken by who prints them, who knows how wide it is."""

from __future__ import annotations

from collections.abc import Iterator

from tasks.report.blocks import Answers, Block, Command, Distributions, Intervals, Section, Table, Verdicted, Words
from tasks.report.shown import cell, shown
from tasks.targets.gate_record import Comparison, Histogram

_WIDTH = 48
"""Characters of a drawn interval: it fits beside nothing else in a terminal of 80."""
_MOST_WIDTH = 76
"""Of a table's columns but the last. One that is wider becomes a list: a terminal would break its lines anywhere."""
_BARS = " ▁▂▃▄▅▆▇█"


def lines(title: str, sections: tuple[Section, ...]) -> Iterator[str]:
    """The whole report."""
    yield cell(title)
    for section in sections:
        yield ""
        yield section.title
        for block in section.blocks:
            yield from (f"  {line}".rstrip() for line in _block(block))


def _block(block: Block) -> Iterator[str]:
    match block:
        case Words(text):
            yield " ".join(shown(text).split())
        case Verdicted(state, text):
            yield f"{state or 'open'}: {' '.join(shown(text).split())}"
        case Table():
            yield from _table(block)
        case Intervals(comparisons):
            for each in comparisons:
                yield f"{drawn(each)}  {cell(each.measure)}"
        case Distributions(histograms):
            for each in histograms:
                yield from _histogram(each)
        case Answers():
            yield from _answers(block)
        case Command(line, does):
            yield f"{line}"
            yield f"    {does}"


def _table(table: Table) -> Iterator[str]:
    rows = [table.head, *(tuple(map(cell, row)) for row in table.rows)]
    # The last column may be as long as it likes.
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    if sum(widths) > _MOST_WIDTH:
        for name, *values in rows[1:]:
            yield name
            yield from (f"    {of}: {value}" for of, value in zip(table.head[1:], values, strict=True) if value)
        return
    for row in rows:
        yield "  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[-1]])


def drawn(each: Comparison) -> str:
    """`├──●──┤` on a line from worse to better, with `!` at the margin and `|` where nothing differs."""
    known = [value for value in (each.lower, each.upper) if value is not None]
    low, high = min(each.difference, -each.margin, 0.0, *known), max(each.difference, -each.margin, 0.0, *known)

    def place(value: float | None, otherwise: int) -> int:
        return otherwise if value is None else round((value - low) / ((high - low) or 1) * (_WIDTH - 1))

    left, right = place(each.lower, 0), place(each.upper, _WIDTH - 1)
    marks = [" "] * _WIDTH
    marks[left : right + 1] = "─" * (right + 1 - left)
    marks[place(0.0, 0)] = "|"
    if each.margin:
        marks[place(-each.margin, 0)] = "!"
    marks[left] = "├" if each.lower is not None else "←"
    marks[right] = "┤" if each.upper is not None else "→"
    marks[place(each.difference, 0)] = "●"
    return "".join(marks)


def _histogram(each: Histogram) -> Iterator[str]:
    between = f"{each.edges[0]:.4g} to {each.edges[-1]:.4g} {cell(each.unit)}"
    yield f"{cell(each.measure)} from {between}, each bar a factor wider"
    most = max((*each.candidate, *each.live), default=0) or 1
    for side, counts in (("candidate", each.candidate), ("live", each.live)):
        if counts:
            bars = "".join(_BARS[-(-count * (len(_BARS) - 1) // most)] for count in counts)
            yield f"  {side:9} {bars}"


def _answers(pair: Answers) -> Iterator[str]:
    if pair.note:
        yield " ".join(shown(pair.note).split())
    for whose, text in (("question", pair.question), ("candidate", pair.ours), (pair.beside, pair.theirs)):
        if text or whose != "question":
            first, *more = (shown(text) or "nothing").split("\n")
            yield f"  {whose:9}  {first}"
            yield from (f"  {'':9}  {line}" for line in more)
    yield ""
