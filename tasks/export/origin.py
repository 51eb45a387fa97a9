"""Where the weights of a snapshot come from, by the names that other programs have for such places: package URLs.

https://github.com/package-url/purl-spec
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from pydantic import JsonValue

from tasks.explain.lineage import source_name
from tasks.store.artifact import Manifest


@dataclass(frozen=True)
class Origin:
    """What a snapshot was pinned to."""

    name: str
    """`org/repo`, the distribution, or the pin in a line."""
    version: str = ""
    purl: str = ""
    """Empty where there is no type of package for such a source."""
    commit: str = ""
    """Of git; empty if it is none."""


def origin_of(snapshot: Manifest) -> Origin:
    """The origin of a snapshot. One that was exported from a checkpoint for training has snapshots for inputs."""
    pin = _pin(snapshot)
    match pin:
        case {"scheme": "hf", "repository": str(repository), "commit": str(commit)}:
            return Origin(repository, commit, f"pkg:huggingface/{_quoted(repository)}@{commit}", commit)
        case {"scheme": "pip", "distribution": str(distribution), "version": str(version)}:
            return Origin(distribution, version, f"pkg:pypi/{_quoted(distribution)}@{_quoted(version)}")
        case _:
            return Origin(source_name(snapshot.identity))


def _pin(snapshot: Manifest) -> JsonValue:
    fields = snapshot.identity.get("fields")
    return fields.get("source") if isinstance(fields, dict) else None


def _quoted(text: str) -> str:
    return quote(text, safe="/.-_~")
