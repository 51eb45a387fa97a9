"""A client of the stack's gateway, which asks without pause while a rollout moves what answers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator
from dataclasses import dataclass, field

import httpx

ASKED = {"text_input": "Say hello.", "max_tokens": 4, "temperature": 0.0}


@dataclass
class Client:
    """Asks a gateway for the public name of `model`. `failures` are those that no killed gateway explains."""

    url: str
    model: str
    every_s: float = 0.5
    answered: int = 0
    gateway_away: bool = False
    failures: list[str] = field(default_factory=list[str])

    def ask(self) -> None:
        away = self.gateway_away
        try:
            answer = httpx.post(f"{self.url}/v2/models/{self.model}/generate", json=ASKED, timeout=60, trust_env=False)
            said = None if answer.status_code == 200 else f"{answer.status_code} {answer.text}"
        except httpx.TransportError as error:
            said = repr(error)
        if said is None:
            self.answered += 1
        elif not (away or self.gateway_away):
            self.failures.append(said)

    @contextlib.contextmanager
    def asking(self) -> Generator[None]:
        stop = threading.Event()

        def run() -> None:
            while not stop.wait(self.every_s):
                self.ask()

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
