"""What a night brings to one model: promotions, rollbacks, candidates that do not load, canaries that are withdrawn."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import httpx

from tasks.targets.traffic import Canary, Shadow, copy_to_shadow, send_to_canary
from tests.deployments.gateway.house import until
from tests.deployments.node.served import Served

Event = Literal["promotion", "rollback", "failure", "canary"]

SOAK_S = 1.0
"""How long a canary has its half of the requests."""


def events(rounds: int) -> Iterator[Event]:
    """A round has three promotions and a rollback; some have a candidate that fails, and a canary."""
    for number in range(rounds):
        yield "promotion"
        if number % 4 == 0:
            yield "failure"
        yield "promotion"
        if number % 5 == 0:
            yield "canary"
        yield "promotion"
        yield "rollback"


@dataclass
class Moving:
    """Moves the public name of `model`, whose first release is live, as `flows` would. `url` is a gateway's."""

    node: Served
    url: str
    model: str

    def answers(self) -> bool:
        """Whether the gateway answers for the public name."""
        try:
            return self._answer() is not None
        except httpx.TransportError:
            return False

    def does(self, event: Event) -> float | None:
        """Returns after how many seconds the gateway followed a move of the name; None: there was none."""
        match event:
            case "promotion":
                return self._move(self._candidate())
            case "rollback":
                previous = self.node.target.current(self.model)[0].previous
                assert previous is not None
                return self._move(previous)
            case "failure":
                number = self.node.release(self.model, begin="raise RuntimeError('no weights')", public=False)
                self.node.wait(lambda: self.node.state(self.model, number) == "failed", "failure")
                self._withdraw(number)
            case "canary":
                number = self._candidate()
                send_to_canary(self.node.target, self.model, Canary(release=number, share=0.5))
                copy_to_shadow(self.node.target, self.model, Shadow(release=number, share=0.5))
                until(lambda: self._answer() == f"{self.model}@{number}", "answer of the canary", 60)
                time.sleep(SOAK_S)
                self._withdraw(number)
        return None

    def _candidate(self) -> int:
        number = self.node.release(self.model, public=False)
        self.node.wait(lambda: self.node.state(self.model, number) == "ready", "candidate")
        name = f"{self.model}@{number}"
        until(lambda: self._answer(name) == name, "look at the candidate", 60)
        return number

    def _move(self, number: int) -> float:
        self.node.target.move(self.model, lambda current: current.promoted(number))
        return until(lambda: self._answer() == f"{self.model}@{number}", "move of the name", 60)

    def _withdraw(self, number: int) -> None:
        self.node.target.move(self.model, lambda current: current.without_candidates(number))
        self.node.wait(lambda: not self.node.processes(self.model, number), "end of the candidate")

    def _answer(self, name: str = "") -> str | None:
        body = {"text_input": "what", "max_tokens": 4}
        url = f"{self.url}/v2/models/{name or self.model}/generate"
        answer = httpx.post(url, json=body, trust_env=False, timeout=30)
        return answer.json()["text_output"] if answer.status_code == 200 else None
