"""One request of a client, as the log and the figures know it: never what it says."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from deployments.gateway.figures import Figures
from deployments.gateway.keys import Key
from deployments.gateway.messages import InferResponse
from deployments.gateway.names import Name
from deployments.gateway.state import Place
from infra.errors import EnginehouseError

_PLAIN = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")

_log = logging.getLogger("enginehouse.gateway")


def request_id(given: str | None) -> str:
    """The client's own id if it is short and plain, else a fresh one."""
    return given if given is not None and _PLAIN.fullmatch(given) else uuid.uuid4().hex


@dataclass
class Call:
    """One request. `until` is its deadline on the monotonic clock; `session` keeps equal ones on one node."""

    id: str
    until: float
    session: str = ""
    key: Key | None = None
    name: Name | None = None
    pinned: int | None = None
    """The release that its requests are made for; None: any that answers to the name."""
    place: Place | None = None
    """Where it runs, or ran last."""
    tokens_in: int = 0
    tokens_out: int = 0
    begun: float = field(default_factory=time.monotonic)
    first_at: float | None = None
    """When the first response of a model came."""

    def note(self, response: InferResponse) -> int:
        """Count what a response has; returns its tokens, of the input too where the release says them."""
        if self.first_at is None:
            self.first_at = time.monotonic()
        has_text = tokens_in = 0
        tokens_out: int | None = None
        for index, tensor in enumerate(response.outputs):
            match tensor.name:
                case "text_output":
                    # A text is its length in four bytes, then itself.
                    has_text = len(response.raw_output_contents[index]) > 4
                case "num_output_tokens":
                    tokens_out = _sum(response.raw_output_contents[index])
                case "num_input_tokens" if not self.tokens_in:
                    tokens_in = _sum(response.raw_output_contents[index])
                case _:
                    pass
        tokens_out = int(has_text) if tokens_out is None else tokens_out
        self.tokens_in += tokens_in
        self.tokens_out += tokens_out
        return tokens_in + tokens_out


def _sum(raw: bytes) -> int:
    """The sum of an INT32 tensor."""
    return sum(int.from_bytes(raw[at : at + 4], "little", signed=True) for at in range(0, len(raw), 4))


@contextmanager
def recorded(call: Call, figures: Figures) -> Generator[Call]:
    """Counts the call and writes its one line of the log, however it ends."""
    outcome = "failed"
    try:
        yield call
        outcome = "ok"
    except EnginehouseError as error:
        outcome = error.code
        raise
    except BaseException as error:
        outcome = "failed" if isinstance(error, Exception) else "client-left"
        raise
    finally:
        seconds = time.monotonic() - call.begun
        model = "" if call.name is None else call.name.model
        release = "" if call.place is None else str(call.place.release)
        figures.requests.labels(model, release, outcome).inc()
        figures.duration.labels(model).observe(seconds)
        if call.first_at is not None:
            figures.first_response.labels(model).observe(call.first_at - call.begun)
            figures.tokens.labels(model, release, "input").inc(call.tokens_in)
            figures.tokens.labels(model, release, "output").inc(call.tokens_out)
        _log.info(
            "request=%s key=%s model=%s release=%s node=%s outcome=%s seconds=%.3f tokens_in=%d tokens_out=%d",
            call.id,
            "-" if call.key is None else call.key.name,
            call.name or "-",
            release or "-",
            "-" if call.place is None else "/".join(call.place.node.key),
            outcome,
            seconds,
            call.tokens_in,
            call.tokens_out,
        )
