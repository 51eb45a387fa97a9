"""What a node counts of its clients, from the text of Triton's figures."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from deployments.node.observing import Observing, by_process
from infra.triton.client import TritonClient
from tasks.serving.figures import FINISHED, FIRST, GAP
from tasks.targets.observed import Observed

LABELS = ("model", "release", "adapter", "replica")


class Figures:
    """Figures of releases' processes, as Triton writes them."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self._ended = Counter(
            FINISHED.name.removesuffix("_total"), "x", (*LABELS, "finished_reason"), registry=registry
        )
        self._first, self._gap = (
            Histogram(metric.name, "x", LABELS, buckets=metric.buckets, registry=registry) for metric in (FIRST, GAP)
        )

    def answer(
        self, release: str, first_s: float, *, model: str = "chat", replica: str = "0", how: str = "stop"
    ) -> None:
        self._ended.labels(model, release, "", replica, how).inc()
        if how == "stop":
            self._first.labels(model, release, "", replica).observe(first_s)
            self._gap.labels(model, release, "", replica).observe(first_s / 10)

    def text(self) -> str:
        return generate_latest(self.registry).decode() + 'nv_inference_count{model="chat--r7--llm"} 5\n'


def test_counters_are_read_by_process_and_bucket() -> None:
    figures = Figures()
    for seconds in (0.003, 0.03, 0.03, 1000):
        figures.answer("7", seconds)
    figures.answer("7", 0, replica="1", how="internal")
    figures.answer("", 0.1, model="upstream")
    assert by_process(figures.text()) == {
        ("chat", 7, "0"): Observed(
            ended={"stop": 4}, first={"0.005": 1, "0.04": 2, "+Inf": 1}, gap={"0.001": 1, "0.004": 2, "+Inf": 1}
        ),
        ("chat", 7, "1"): Observed(ended={"internal": 1}),
    }


def test_what_a_node_reports_only_grows() -> None:
    observing, figures = Observing(TritonClient("127.0.0.1:9")), Figures()
    figures.answer("7", 0.03)
    observing.take(figures.text())  # what the agent before it has counted
    known = {"chat": frozenset((7, 8))}
    assert observing.observed(known).models == {}
    figures.answer("7", 0.03)
    figures.answer("8", 0.03, replica="0")
    figures.answer("8", 0.03, replica="1", how="cancelled")
    observing.take(figures.text())
    one = Observed(ended={"stop": 1}, first={"0.04": 1}, gap={"0.004": 1})
    two = one.model_copy(update={"ended": {"cancelled": 1, "stop": 1}})
    assert observing.observed(known).models == {"chat": {7: one, 8: two}}
    observing.begin_again()
    again = Figures()
    again.answer("8", 0.03)
    observing.take(again.text())
    observing.take(again.text())
    seen = observing.observed(known)
    assert seen.of("chat", 8) == two + one and seen.of("chat", 7) == one
    assert observing.observed({"chat": frozenset((8,))}).models["chat"].keys() == {8}
    assert seen.epoch and seen.epoch != Observing(TritonClient("127.0.0.1:9")).observed(known).epoch
