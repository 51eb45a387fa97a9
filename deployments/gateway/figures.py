"""The gateway's own figures, in Prometheus form."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
"""From a refusal to the longest answer, each about twice the one before."""


class Figures:
    """Labels have only names of models that a target has: a client cannot make new ones."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "enginehouse_gateway_requests",
            "Requests that ended: `ok`, `client-left`, or the code of the error.",
            ["model", "release", "outcome"],
            registry=self._registry,
        )
        self.running = Gauge(
            "enginehouse_gateway_requests_running", "Requests that run.", ["model"], registry=self._registry
        )
        self.first_response = Histogram(
            "enginehouse_gateway_first_response_seconds",
            "From the request's arrival to the first response of a model.",
            ["model"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.duration = Histogram(
            "enginehouse_gateway_request_seconds",
            "From the request's arrival to the end of its answer.",
            ["model"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.tokens = Counter(
            "enginehouse_gateway_tokens",
            "Tokens, `input` and `output`. Of releases that do not count them, responses with text are counted.",
            ["model", "release", "direction"],
            registry=self._registry,
        )
        self.nodes = Gauge(
            "enginehouse_gateway_nodes_ready",
            "Nodes that answer to a public name.",
            ["model"],
            registry=self._registry,
        )
        self.store_errors = Gauge(
            "enginehouse_gateway_state_stale", "1 while the store cannot be read.", registry=self._registry
        )

    def text(self) -> bytes:
        return generate_latest(self._registry)
