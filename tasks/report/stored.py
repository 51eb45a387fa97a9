"""The page beside its release: targets/TARGET/MODEL/N/report.html, created once, when the result is known.

It tells of the moment of the verdict. What became of the release since then is in `enginehouse report`.
"""

from __future__ import annotations

from infra.errors import PreconditionFailed
from tasks.report.html import page
from tasks.report.release import ReleaseReport
from tasks.report.sections import sections, title
from tasks.targets.target import Target


def page_of(report: ReleaseReport) -> str:
    """The page of a report."""
    return page(title(report), sections(report))


def keep_page(target: Target, report: ReleaseReport) -> bool:
    """Keep the page of a release that has a result, unless it has one; returns whether it was kept now."""
    where = report.reference
    try:
        target.bucket.create(f"{target.prefix}{where.model}/{where.release}/report.html", page_of(report).encode())
    except PreconditionFailed:
        return False
    return True
