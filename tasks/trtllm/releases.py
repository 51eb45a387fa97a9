"""The releases of TensorRT-LLM whose command lines are known, how well, and the TensorRT that comes with each.

Planning without a toolchain goes by this table, and says so. A real toolchain's report and `--help` count for more.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from packaging.version import Version


@dataclass(frozen=True)
class Release:
    """One minor release. `read_in` names the sources of its options; `exact` if they are its own, not the nearest ones.

    `tensorrt` is that of the first Triton container that ships the release (Triton's support matrix).
    """

    name: str
    exact: bool
    read_in: str
    tensorrt: str


_POST1 = "0.17.0.post1 (16d2467e, script 258c7540)"
_UNDATED = "undated sources of 2025 (008b2b8d, script fd96a08b) and logs of the release"

RELEASES = (
    Release("0.8", True, "0.8.0 (5955b8af)", "9.2.0"),
    Release("0.9", True, "0.9.0 (250d9c29)", "9.3.0"),
    Release("0.10", True, "0.10.0 (9bd15f19)", "10.0.1"),
    Release("0.11", True, "0.11.0 (05316d33)", "10.1.0"),
    Release("0.12", True, "0.12.0 (28fb9aac)", "10.3.0"),
    Release("0.13", True, "0.13.0 (201135e5)", "10.4.0"),
    Release("0.14", True, "0.14.0 (b0880169)", "10.4.0"),
    Release("0.15", True, "0.15.0 (8f91cff2)", "10.6.0"),
    Release("0.16", True, "0.16.0 (42a7b092)", "10.7.0"),
    Release("0.17", False, _POST1, "10.8.0.43"),
    Release("0.18", False, f"{_POST1}; the release notes name new dependencies alone", "10.9.0.34"),
    Release("0.19", False, _UNDATED, "10.9.0.34"),
    Release("0.20", False, _UNDATED, "10.10.0.31"),
    Release("0.21", False, _UNDATED, "10.11.0.33"),
    Release("1.0", False, _UNDATED, "10.11.0.33"),
    Release("1.1", False, _UNDATED, "10.13.3.9"),
    Release("1.2", False, "1.3.0rc3 (95c8e29a, script 368f8f2a)", "10.14.1.48"),
)
MINORS = tuple(release.name for release in RELEASES)
FIRST, LAST = MINORS[0], MINORS[-1]
"""The oldest release with the unified checkpoint, and the last one with trtllm-build and the C++ backend."""

FIRST_LLM_API = "1.0"
"""The first release whose LLM API runs PyTorch in Triton. Before, it wrapped engines."""


def minor(version: Version) -> tuple[int, int]:
    """(0, 18) for 0.18.2."""
    return version.major, version.minor


@cache
def minor_named(name: str) -> tuple[int, int]:
    """(0, 18) for `0.18`, as the tables of this folder name it. A model's file asks them a hundred times."""
    return minor(Version(name))


def without_engines(version: Version) -> bool:
    """Whether `version` came after the last release that builds engines."""
    return minor(version) > minor_named(LAST)


def in_span(version: Version, since: str, until: str = "") -> bool:
    """Whether the minor release of `version` is in [since, until). An empty `until` sets no end."""
    return minor_named(since) <= minor(version) and not (until and minor(version) >= minor_named(until))


def release_of(version: Version) -> Release | None:
    """The minor release of `version`. Returns None for one that builds no engines or is not known."""
    asked = minor(version)
    return next((release for release in RELEASES if minor_named(release.name) == asked), None)
