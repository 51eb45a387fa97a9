"""What clients call a model, and what a node's Triton calls it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from infra.errors import GatewayError
from tasks.triton.config import RELEASE
from tasks.triton.placement import release_names

_NAME = re.compile(r"(?P<model>[A-Za-z0-9_][A-Za-z0-9._-]{0,199})(@(?P<release>[0-9]{1,9}))?")


@dataclass(frozen=True)
class Name:
    """`MODEL`, or `MODEL@7` for one release whether it is public or not."""

    model: str
    release: int | None = None

    @classmethod
    def parse(cls, text: str) -> Name:
        """Raises GatewayError, code `model-unknown`, for what can be no name."""
        if ":" in text:
            raise unknown(text, ": behind ':' stands an adapter, and none is served yet")
        found = _NAME.fullmatch(text)
        if found is None:
            raise unknown(text)
        return cls(found["model"], None if found["release"] is None else int(found["release"]))

    def __str__(self) -> str:
        return self.model if self.release is None else f"{self.model}@{self.release}"


def served_name(name: Name) -> str:
    """The model that a node is asked for: a public name by itself, a release by the name that only it has."""
    return name.model if name.release is None else release_name(name.model, name.release)


def release_name(model: str, release: int) -> str:
    """What a node's Triton calls a release. What it answers of it never changes."""
    return release_names(model, release)[RELEASE]


def unknown(name: str, why: str = "") -> GatewayError:
    """The error for a model that no target has, or that the caller's key may not know."""
    return GatewayError(
        f"the model {name[:200]!r} does not exist{why}",
        hint="GET /v2/models lists what this key may ask",
        code="model-unknown",
    )
