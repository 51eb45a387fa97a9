"""The Triton that clients of this machine ask: whether it lives, and who may load models into it.

Loading a model is running code. A node's Triton lets nobody do it who lacks the key of its start.
"""

from __future__ import annotations

from collections.abc import Iterator

import httpx2

from deployments.doctor.check import Check, Finding, fine, not_made, wrong
from infra.settings import Settings

_TIMEOUT_S = 5.0


def _look(settings: Settings) -> Iterator[Finding]:
    address = settings.triton_http
    if not address:
        yield not_made("ENGINEHOUSE_TRITON_HTTP names no Triton")
        return
    with httpx2.Client(base_url=address, timeout=_TIMEOUT_S) as client:
        try:
            live = client.get("/v2/health/live").status_code
            control = client.post("/v2/repository/index", json={}).status_code
        except httpx2.HTTPError as error:
            yield _down(f"no Triton answers at {address}: {error}")
            return
    if live != 200:
        yield _down(f"the Triton at {address} answers {live}: it is not live")
    elif control == 200:
        yield wrong(
            "triton-open",
            f"whoever reaches {address} may load models into its Triton, which is running code",
            "let `enginehouse node` start it, which restricts control to a key and listens on loopback",
        )
    else:
        yield fine(f"the Triton at {address} is live, and its control is restricted ({control})")


def _down(what: str) -> Finding:
    return wrong("triton-down", what, "enginehouse up for the embedded one, `enginehouse node` on any other machine")


CHECK = Check("triton-control", "the Triton that clients ask: whether it lives, and who may load models", _look)
