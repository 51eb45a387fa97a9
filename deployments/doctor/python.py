"""This Python, and the packages that Enginehouse asks for."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from deployments.doctor.check import Check, Finding, fine, wrong
from infra.settings import Settings


def _look(_: Settings) -> Iterator[Finding]:
    wanted = metadata("enginehouse")["Requires-Python"] or ""
    if platform.python_version() not in SpecifierSet(wanted):
        yield wrong(
            "python-version",
            f"this is Python {platform.python_version()}, and Enginehouse needs {wanted}",
            "python3.12 -m venv .venv && .venv/bin/pip install -r requirements.lock",
        )
    needed = [Requirement(text) for text in requires("enginehouse") or ()]
    yield from packages(needed)
    yield fine(f"Python {platform.python_version()} at {sys.executable}, Enginehouse {version('enginehouse')}")


def packages(needed: Iterable[Requirement]) -> Iterator[Finding]:
    """What is wrong with the packages. Those of an extra count only where they are installed."""
    for each in needed:
        always = each.marker is None or each.marker.evaluate({"extra": ""})
        try:
            found = version(each.name)
        except PackageNotFoundError:
            found = "missing"
        if (found == "missing" and not always) or each.specifier.contains(found, prereleases=True):
            continue
        if found != "missing" or always:
            what = f"{each.name} is {found}, and Enginehouse needs {each.name}{each.specifier}"
            yield wrong("python-package", what, f"{sys.executable} -m pip install '{each.name}{each.specifier}'")


CHECK = Check("python", "the version of Python, and of the packages that Enginehouse needs", _look)
