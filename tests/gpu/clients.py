"""Clients that ask a public name through the gateway without a pause, and note when each first token came."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import httpx

_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Answer:
    """One answer, begun at `began` of the monotonic clock. `failed` says why it is none; empty if it is one."""

    began: float
    first_token_s: float = 0.0
    failed: str = ""


@dataclass
class Clients:
    """A block during which `count` clients of the model run, each in its own connection."""

    url: str
    model: str
    count: int
    tokens: int
    answers: list[Answer] = field(default_factory=list[Answer])
    _ended: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all()))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def failures(self) -> list[str]:
        return [answer.failed for answer in self.answers if answer.failed]

    def first_tokens(self, spans: Sequence[tuple[float, float]], *, inside: bool) -> list[float]:
        """Seconds to the first token of answers that ran, or did not run, at any moment of one of `spans`."""
        return [
            answer.first_token_s
            for answer in self.answers
            if not answer.failed
            and inside
            == any(answer.began < end and answer.began + answer.first_token_s > begin for begin, end in spans)
        ]

    async def _all(self) -> None:
        limits = httpx.Limits(max_connections=self.count, max_keepalive_connections=self.count)
        async with httpx.AsyncClient(base_url=self.url, timeout=_TIMEOUT_S, limits=limits, trust_env=False) as client:
            await asyncio.gather(*(self._one(client, number) for number in range(self.count)))

    async def _one(self, client: httpx.AsyncClient, number: int) -> None:
        asked = 0
        while not self._ended.is_set():
            asked += 1
            self.answers.append(await self._ask(client, f"Client {number} asks {asked}: name a colour."))

    async def _ask(self, client: httpx.AsyncClient, text: str) -> Answer:
        body = {"text_input": text, "max_tokens": self.tokens, "temperature": 1.0, "seed": 7, "stream": True}
        began, first = time.monotonic(), 0.0
        try:
            async with client.stream("POST", f"/v2/models/{self.model}/generate_stream", json=body) as response:
                if response.status_code != 200:
                    return Answer(began, failed=f"{response.status_code} {(await response.aread())[:300]!r}")
                async for line in response.aiter_lines():
                    if line.startswith("data: "):
                        first = first or time.monotonic() - began
                        if "error" in (event := json.loads(line.removeprefix("data: "))):
                            return Answer(began, failed=str(event["error"]))
        except httpx.HTTPError as error:
            return Answer(began, failed=repr(error))
        return Answer(began, first) if first else Answer(began, failed="no token came")


def p99(values: Sequence[float]) -> float:
    """Of at least one value."""
    return sorted(values)[int(len(values) * 0.99)]
