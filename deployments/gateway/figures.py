"""The gateway's own figures, in Prometheus form. Their names are those of a release's own, behind the gateway's."""

from __future__ import annotations

import time
from collections.abc import Collection

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from deployments.gateway.heard import Heard
from tasks.serving.figures import FIRST, GAP, QUEUE, WHOLE

_PREFIX = "enginehouse_gateway_"
_RELEASE = ("model", "release", "adapter")
_CHARACTERS = (0.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0)
_KEPT_SECONDS = 600.0
"""How long figures of a release stay that no node has any more: until everybody who scrapes has seen the last ones."""


class Figures:
    """Labels have only names of models and adapters that a target has: a client cannot make new ones.

    `adapter` is what the client named behind the model.
    """

    def __init__(self, kept_s: float = _KEPT_SECONDS) -> None:
        self._registry = CollectorRegistry()
        self._kept_s = kept_s
        self._gone: dict[tuple[str, str], float] = {}
        self._seen: set[tuple[str, str]] = set()
        self._requests = self._counter(
            "requests", "Requests that ended: `ok`, `client-left`, or the code of the error.", "outcome"
        )
        self._fallbacks = self._counter(
            "canary_fallbacks", "Requests that a canary did not answer, and the public release got.", "outcome"
        )
        self._shadows = self._counter(
            "shadow_requests",
            "Copies: `same`, `differs`, `answered` (not compared), `dropped`, or the code of the error.",
            "outcome",
        )
        self._difference = self._histogram(
            "shadow_first_difference_characters", "Where an answer to a copy first differs, from 0.", _CHARACTERS
        )
        self._finished = self._counter("request_finish", "Answers that ended, by how they did.", "finished_reason")
        self._first = self._histogram("time_to_first_token_seconds", FIRST.help, FIRST.buckets)
        self._gap = self._histogram("time_per_output_token_seconds", GAP.help, GAP.buckets)
        self._whole = self._histogram("e2e_request_latency_seconds", WHOLE.help, WHOLE.buckets)
        self._queue = self._histogram(
            "request_queue_time_seconds", "From a request's arrival until a node was asked.", QUEUE.buckets
        )
        tokens = "Where a release is not asked to count them, responses with text are counted."
        self._prompt = self._counter("prompt_tokens", f"Tokens of prompts. {tokens}")
        self._generation = self._counter("generation_tokens", f"Tokens of answers. {tokens}")
        self.running = self._gauge("num_requests_running", "Requests that run or wait for a node.", "model")
        self._nodes = self._gauge("nodes_ready", "Nodes that answer to a public name.", "model")
        self._stale = self._gauge("state_stale", "1 while the store cannot be read.")

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def ended(self, model: str, release: str, outcome: str, adapter: str = "") -> None:
        """A request, also one that was refused before its model was known."""
        self._seen.add((model, release))
        self._requests.labels(model, release, adapter, outcome).inc()

    def fell_back(self, model: str, release: str, outcome: str, adapter: str = "") -> None:
        """A request that a canary had first, with the code of its error. It ends as one of the public release."""
        self._seen.add((model, release))
        self._fallbacks.labels(model, release, adapter, outcome).inc()

    def shadowed(self, model: str, release: str, outcome: str, adapter: str = "") -> None:
        """A copy of a request, which is none of the requests."""
        self._seen.add((model, release))
        self._shadows.labels(model, release, adapter, outcome).inc()

    def differed(self, model: str, release: str, at: int, adapter: str = "") -> None:
        """The first character at which the answer to a copy differs."""
        self._difference.labels(model, release, adapter).observe(at)

    def heard(self, model: str, release: str, heard: Heard, adapter: str = "") -> None:
        """What came of one answer, whole or not."""
        labels = (model, release, adapter)
        if (asked_at := heard.asked_at) is None:
            return
        self._queue.labels(*labels).observe(asked_at - heard.begun)
        self._prompt.labels(*labels).inc(heard.tokens_in)
        self._generation.labels(*labels).inc(heard.tokens_out)
        if heard.first_at is not None:
            self._first.labels(*labels).observe(heard.first_at - heard.begun)
        for reason in heard.reasons:
            self._finished.labels(*labels, reason).inc()
        if heard.whole_at is not None:
            self._whole.labels(*labels).observe(heard.whole_at - heard.begun)
            if (gap := heard.gap) is not None:
                self._gap.labels(*labels).observe(gap)

    def state(self, nodes: dict[str, int], releases: Collection[tuple[str, str]], *, stale: bool) -> None:
        """What is known now: nodes by model, and the releases that are there. Figures of others go after a while."""
        self._stale.set(stale)
        for model, number in nodes.items():
            self._nodes.labels(model).set(number)
            self._seen.add((model, ""))
        # A request that no node was asked for has no release, one that named no model no model either.
        there = {*releases, *((model, "") for model in nodes), ("", "")}
        now = time.monotonic()
        self._gone = {each: self._gone.get(each, now) for each in self._seen - there}
        for model, release in [each for each, since in self._gone.items() if now - since >= self._kept_s]:
            self._forget(model, release)

    def _forget(self, model: str, release: str) -> None:
        self._seen.discard((model, release))
        for counter in (self._requests, self._fallbacks, self._shadows, self._finished, self._prompt, self._generation):
            counter.remove_by_labels({"model": model, "release": release})
        for histogram in (self._first, self._gap, self._whole, self._queue, self._difference):
            histogram.remove_by_labels({"model": model, "release": release})
        if not release:
            self._nodes.remove_by_labels({"model": model})
            self.running.remove_by_labels({"model": model})

    def _counter(self, name: str, words: str, label: str = "") -> Counter:
        labels = (*_RELEASE, label) if label else _RELEASE
        return Counter(_PREFIX + name, words, labels, registry=self._registry)

    def _histogram(self, name: str, words: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(_PREFIX + name, words, _RELEASE, buckets=buckets, registry=self._registry)

    def _gauge(self, name: str, words: str, *labels: str) -> Gauge:
        return Gauge(_PREFIX + name, words, labels, registry=self._registry)
