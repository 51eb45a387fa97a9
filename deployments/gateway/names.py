"""What clients call a model, and what a node's Triton calls it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from infra.errors import GatewayError
from tasks.triton.config import LLM, RELEASE
from tasks.triton.placement import release_names

_NAME = re.compile(
    r"(?P<model>[A-Za-z0-9_][A-Za-z0-9._-]{0,199})(@(?P<release>[0-9]{1,9}))?(:(?P<adapter>[a-z0-9][a-z0-9._-]{0,63}))?"
)


@dataclass(frozen=True)
class Name:
    """`MODEL`, or `MODEL@7` for one release whether it is public or not. With `alias` the client calls the model so.

    `:ADAPTER` behind either chooses one of the release's adapters.
    """

    model: str
    release: int | None = None
    alias: str = ""
    adapter: str = ""

    @classmethod
    def parse(cls, text: str) -> Name:
        """Raises GatewayError, code `model-unknown`, for what can be no name."""
        found = _NAME.fullmatch(text)
        if found is None:
            raise unknown(text)
        release = None if found["release"] is None else int(found["release"])
        return cls(found["model"], release, adapter=found["adapter"] or "")

    def __str__(self) -> str:
        asked = self.alias or self.model
        released = asked if self.release is None else f"{asked}@{self.release}"
        return f"{released}:{self.adapter}" if self.adapter else released


def asked_names(model: str, release: int) -> tuple[str, str]:
    """What a node's Triton calls the model that runs a release's requests, and the release's ensemble around it.

    What they answer never changes. Triton 2.51 cancels a request of the model that it is asked for, and none that an
    ensemble makes of it; so the ensemble is asked only where a release has no such model.
    """
    names = release_names(model, release)
    return names[LLM], names[RELEASE]


def unknown(name: str, why: str = "") -> GatewayError:
    """The error for a model that no target has, or that the caller's key may not know."""
    return GatewayError(
        f"the model {name[:200]!r} does not exist{why}",
        hint="GET /v2/models lists what this key may ask",
        code="model-unknown",
    )
