"""What was found, as lines of 80 columns and as JSON."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence

from deployments.doctor.examine import Examined

_WIDTH = 80
STATE_WIDTH = 9
"""Of the first column."""
_INDENT = STATE_WIDTH + 20


def lines(examined: Sequence[Examined]) -> Iterator[str]:
    for each in examined:
        for finding in each.findings:
            code = f" [{finding.code}]" if finding.code else ""
            yield from _wrapped(f"{finding.state:{STATE_WIDTH}} {each.check.name:18} ", f"{finding.what}{code}")
            if finding.remedy:
                yield from _wrapped(f"{'':23}mend: ", finding.remedy)
    yield ""
    yield summary(examined)


def summary(examined: Sequence[Examined]) -> str:
    count = Counter(finding.state for each in examined for finding in each.findings)
    told = ", ".join(f"{count[state]} {state}" for state in ("fine", "notice", "wrong", "not made"))
    return f"{len(examined)} check{'s' * (len(examined) != 1)}: {told}"


def document(examined: Sequence[Examined]) -> dict[str, object]:
    """What `doctor --json` prints."""
    return {
        "sound": not any(each.is_wrong for each in examined),
        "checks": [
            {
                "check": each.check.name,
                "looks_at": each.check.looks_at,
                "seconds": round(each.seconds, 3),
                "findings": [
                    {"state": found.state, "code": found.code, "what": found.what, "remedy": found.remedy}
                    for found in each.findings
                ],
            }
            for each in examined
        ],
    }


def _wrapped(first: str, text: str) -> Iterator[str]:
    # A command is never broken inside a word: what is copied from here must run.
    for part in text.splitlines() or [""]:
        yield from textwrap.wrap(
            part,
            width=_WIDTH,
            initial_indent=first,
            subsequent_indent=" " * _INDENT,
            break_long_words=False,
            break_on_hyphens=False,
        )
        first = " " * _INDENT
