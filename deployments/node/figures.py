"""What a node says of itself in Prometheus form, beside `/ready`. Its Triton has the figures of requests."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily

from deployments.node.health import Health


def figures(health: Health) -> bytes:
    """The text of `/metrics`: of each public name whether it answers, and by which release."""
    registry = CollectorRegistry()
    registry.register(_Node(health))
    return generate_latest(registry)


class _Node:
    def __init__(self, health: Health) -> None:
        self._health = health

    def collect(self) -> Iterator[GaugeMetricFamily]:
        health, models = self._health, self._health.models.items()
        yield _gauge("ready", "1 once each model has answered since Triton started, or is given up.", health.ready)
        yield _gauge("state_stale", "1 while the store cannot be read: the last wanted state goes on.", health.stale)
        ready = _by_model("model_ready", "Whether the wanted release has answered lately by the public name.")
        given_up = _by_model("model_given_up", "1 of a model that fails again and again.")
        wanted = _by_model("model_wanted_release", "The release that the store names.")
        public = _by_model("model_public_release", "The release that answers by the public name.")
        for name, model in models:
            ready.add_metric([name], model.ready)
            given_up.add_metric([name], model.given_up)
            if model.wanted is not None:
                wanted.add_metric([name], model.wanted)
            if model.public is not None:
                public.add_metric([name], model.public)
        yield from (ready, given_up, wanted, public)


def _gauge(name: str, words: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"enginehouse_node_{name}", words, value=value)


def _by_model(name: str, words: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"enginehouse_node_{name}", words, labels=["model"])
