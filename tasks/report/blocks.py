"""What a report is made of, before anybody says whether it becomes a page, lines or Markdown.

Texts are what was recorded, whoever wrote it: each printer shortens and escapes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from tasks.targets.gate_record import Comparison, Histogram, VerdictState


@dataclass(frozen=True)
class Words:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Verdicted:
    """A verdict with its reason."""

    state: VerdictState | None
    """None: there is none yet."""
    text: str


@dataclass(frozen=True)
class Table:
    """Rows under a head. Each row has as many cells as the head."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Intervals:
    """Comparisons, whose interval is drawn beside the margin."""

    comparisons: tuple[Comparison, ...]


@dataclass(frozen=True)
class Distributions:
    """How times spread over the requests, candidate and live."""

    histograms: tuple[Histogram, ...]


@dataclass(frozen=True)
class Answers:
    """Two answers to one question, side by side. `question` may be empty."""

    question: str
    ours: str
    theirs: str
    beside: str
    """Whose the second answer is."""
    note: str = ""


@dataclass(frozen=True)
class Command:
    """What to type, and what that does."""

    line: str
    does: str


Block: TypeAlias = Words | Verdicted | Table | Intervals | Distributions | Answers | Command


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it. Every report has its sections in one order."""

    title: str
    blocks: tuple[Block, ...]
