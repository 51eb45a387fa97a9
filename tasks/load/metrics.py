"""What is measured, under AIPerf's names and with the formulas.

From AIPerf's own they differ in this: moments are counted from when a request was to be sent, not from when it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MetricName = Literal[
    "time_to_first_token", "inter_token_latency", "inter_chunk_latency", "request_latency", "output_sequence_length",
    "input_sequence_length",
]  # fmt: skip


@dataclass(frozen=True)
class Metric:
    """One number of each request. `limit`: whether goodput may have a limit of it."""

    name: MetricName
    unit: Literal["ms", "tokens"]
    formula: str
    limit: bool = False


METRICS: tuple[Metric, ...] = (
    Metric("time_to_first_token", "ms", "first piece with text - intended moment", limit=True),
    Metric(
        "inter_token_latency",
        "ms",
        "(request_latency - time_to_first_token) / (output_sequence_length - 1)",
        limit=True,
    ),
    Metric("inter_chunk_latency", "ms", "piece with text - the piece with text before it"),
    Metric("request_latency", "ms", "last piece with text - intended moment", limit=True),
    Metric("output_sequence_length", "tokens", "tokens of an answer, as the server counts them"),
    Metric("input_sequence_length", "tokens", "tokens of a prompt, as the server counts them"),
)

FORMULAS: tuple[tuple[str, str], ...] = (
    *((metric.name, metric.formula) for metric in METRICS),
    ("benchmark_duration", "last piece with text of all - first intended moment"),
    ("request_throughput", "answered requests / benchmark_duration"),
    ("output_token_throughput", "their output_sequence_length, added up / benchmark_duration"),
    ("goodput", "answered requests within all limits / benchmark_duration"),
    ("sender_lateness", "when the load came to a request - intended moment"),
)
"""Names and formulas, as they are printed."""

LIMITED: tuple[MetricName, ...] = tuple(metric.name for metric in METRICS if metric.limit)
