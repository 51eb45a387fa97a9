"""How much may run at once, and how many tokens a key may have a minute. All counts are of this process."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

from deployments.gateway.keys import Key
from infra.errors import GatewayError

_BUSY_SECONDS = 1.0
"""When to come again if too much runs: about as long as a short answer takes."""


@dataclass
class _Tokens:
    """A token bucket. `left` is as of `at` and below 0 once an answer was longer than what was left."""

    left: float
    at: float


class Limits:
    """Counts what runs, of everybody and of each key. `clock` gives seconds."""

    def __init__(self, most_requests: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most_requests
        self._clock = clock
        self._by_key: Counter[str] = Counter()
        self._tokens: dict[str, _Tokens] = {}
        self.running = 0

    @contextmanager
    def request(self, key: Key | None) -> Generator[None]:
        """Count a request while it runs. Raises GatewayError, code `requests-limit` or `tokens-limit`."""
        if self.running >= self._most:
            raise GatewayError(
                f"{self.running} requests run on this gateway, which is the most",
                code="requests-limit",
                retryable=True,
                retry_after_s=_BUSY_SECONDS,
            )
        if key is not None:
            self._check(key)
            self._by_key[key.name] += 1
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            if key is not None:
                self._by_key[key.name] -= 1

    def spend(self, key: Key | None, tokens: int) -> None:
        """Take tokens from what a key has, also more than is left: the answer is not cut off."""
        if key is not None and key.tokens_per_minute:
            self._filled(key).left -= tokens

    def _check(self, key: Key) -> None:
        if key.requests and self._by_key[key.name] >= key.requests:
            raise GatewayError(
                f"{key.requests} requests of the key '{key.name}' run, which is its most",
                code="requests-limit",
                retryable=True,
                retry_after_s=_BUSY_SECONDS,
            )
        if key.tokens_per_minute and (left := self._filled(key).left) <= 0:
            raise GatewayError(
                f"the key '{key.name}' has used its {key.tokens_per_minute} tokens a minute",
                code="tokens-limit",
                retryable=True,
                retry_after_s=math.ceil((1 - left) * 60 / key.tokens_per_minute),
            )

    def _filled(self, key: Key) -> _Tokens:
        """What the key has now: a minute's tokens at most, and each second a sixtieth of them more."""
        now, most = self._clock(), key.tokens_per_minute
        bucket = self._tokens.setdefault(key.name, _Tokens(most, now))
        bucket.left = min(most, bucket.left + (now - bucket.at) * most / 60)
        bucket.at = now
        return bucket
