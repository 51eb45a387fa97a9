"""The one table that the campaign prints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

State = Literal["met", "MISSED", "figure", "not run"]


@dataclass(frozen=True)
class Row:
    part: int
    what: str
    measured: str
    goal: str
    state: State


@dataclass
class Table:
    """Rows are printed as they come too, since a campaign may be ended by its limit of time."""

    part: int = 0
    rows: list[Row] = field(default_factory=list[Row])

    def figure(self, what: str, measured: str) -> None:
        """Something measured, of which nothing is demanded."""
        self._add(Row(self.part, what, measured, "", "figure"))

    def goal(self, what: str, measured: str, goal: str, met: bool) -> None:
        self._add(Row(self.part, what, measured, goal, "met" if met else "MISSED"))

    def skipped(self, what: str, why: str) -> None:
        self._add(Row(self.part, what, why, "", "not run"))

    @property
    def missed(self) -> bool:
        return any(row.state == "MISSED" for row in self.rows)

    def text(self) -> str:
        """As Markdown, so that it can go into a page as it is."""
        lines = ["| part | what | measured | goal | |", "|---|---|---|---|---|"]
        lines += [f"| {row.part} | {row.what} | {row.measured} | {row.goal} | {row.state} |" for row in self.rows]
        return "\n".join(lines)

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        print(f"{row.part}: {row.what}: {row.measured} {f'({row.goal}) ' if row.goal else ''}{row.state}", flush=True)
