"""What became of one request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

FailureKind = Literal[
    "refused", "unauthorized", "limited", "unavailable", "unreachable", "failed", "deadline", "timeout", "broken",
    "malformed", "empty", "crowded",
]  # fmt: skip
"""Why a request has no answer.

`refused`: the server does not take it; `unauthorized`: it wants another key; `limited`: a limit of requests or tokens;
`unavailable`: it cannot answer now; `unreachable`: there was no connection; `failed`: an error of the server, also in
the middle of an answer; `deadline`: the server gave up; `timeout`: the load did; `broken`: the connection ended before
the answer; `malformed`: no answer of this protocol; `empty`: an answer without a token; `crowded`: as many requests
were open as the load keeps.
"""


class RequestFailed(Exception):
    """A request has no answer. `kind` says why, the message what the server said."""

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message[:300])
        self.kind: FailureKind = kind


class Hearing:
    """An answer as far as it was heard. Moments are of the monotonic clock, in seconds."""

    def __init__(self, gap: Callable[[float], None]) -> None:
        self._gap = gap
        self.first: float | None = None
        self.last: float | None = None
        self.output_tokens: int | None = None
        self.input_tokens: int | None = None

    def text(self, moment: float) -> None:
        """A piece with text has come."""
        if self.last is None:
            self.first = moment
        else:
            self._gap(moment - self.last)
        self.last = moment

    def count(self, output_tokens: int) -> None:
        """The server says that a piece had so many tokens."""
        self.output_tokens = (self.output_tokens or 0) + output_tokens


@dataclass(frozen=True)
class Outcome:
    """Moments of the monotonic clock, in seconds.

    `intended` is when the request should have been sent; `begun` is when the load came to it, which is later if the
    load was busy; `sent` is when it was sent, which is later again where only so many run at once. `ended` is the last
    piece with text, or when the request failed.
    """

    number: int
    intended: float
    begun: float
    sent: float
    first: float | None
    ended: float
    output_tokens: int | None = None
    input_tokens: int | None = None
    failure: FailureKind | None = None
    message: str = ""
