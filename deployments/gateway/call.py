"""One request of a client, as the log and the figures know it: never what it says."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from deployments.gateway.figures import Figures
from deployments.gateway.heard import Heard
from deployments.gateway.keys import Key
from deployments.gateway.names import Name
from deployments.gateway.places import Place
from infra.errors import EnginehouseError

TRACE_HEADERS = ("traceparent", "tracestate")
"""Of W3C's Trace Context, as metadata of gRPC too."""
_PLAIN = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")

_log = logging.getLogger("enginehouse.gateway")


def request_id(given: str | None) -> str:
    """The client's own id if it is short and plain, else a fresh one."""
    return given if given is not None and _PLAIN.fullmatch(given) else uuid.uuid4().hex


@dataclass(frozen=True)
class Caller:
    """What a client says of itself and its request, apart from the request. `timeout_s` is None if it names none.

    `path` is that of HTTP, and `trace` has the headers that say where the request is in a trace.
    """

    authorization: str | None = None
    id: str | None = None
    session: str = ""
    timeout_s: float | None = None
    path: str = ""
    trace: Mapping[str, str] = field(default_factory=dict[str, str])


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
    canary: int | None = None
    """The release that it goes to before the public one, as long as that answers."""
    place: Place | None = None
    """Where it runs, or ran last."""
    origin: str = ""
    """The `traceparent` of the rebuild that made the release there, if it is known."""
    trace: tuple[tuple[str, str], ...] = ()
    """Metadata that tell a node where it is in a trace; none outside of one."""
    begun: float = field(default_factory=time.monotonic)
    answers: list[Heard] = field(default_factory=list[Heard])
    """Of most calls one; none of those that are refused, or only ask about a model."""

    def answer(self) -> Heard:
        """One more answer that is asked for."""
        self.answers.append(Heard(self.begun))
        return self.answers[-1]

    @property
    def first_at(self) -> float | None:
        """When the first token of any answer came."""
        return min((each.first_at for each in self.answers if each.first_at is not None), default=None)

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        return tuple(reason for each in self.answers for reason in each.reasons)

    @property
    def tokens_in(self) -> int:
        return sum(each.tokens_in for each in self.answers)

    @property
    def tokens_out(self) -> int:
        return sum(each.tokens_out for each in self.answers)


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
        adapter = "" if call.name is None or call.place is None else call.name.adapter
        figures.ended(model, release, outcome, adapter)
        for answer in call.answers:
            figures.heard(model, release, answer, adapter)
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
