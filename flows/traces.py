"""Traces of runs: Prefect makes a span of each flow run and each task, and hands the place in the trace to child runs.

It does so where PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY is true, with any server, and where its process has a
provider of spans, which is made here. A run keeps its place in a label of its own. Source:
`prefect/telemetry/run_telemetry.py` of 3.8.8.
"""

from __future__ import annotations

import atexit
import os

from infra.traces.collector import collector_url, require_sdk
from infra.traces.propagation import is_traceparent

_LABEL = "__OTEL_TRACEPARENT"


def begin_traces() -> None:
    """Have the spans of this process sent, if its variables name a collector. Raises SettingsError `traces`."""
    url = collector_url(os.environ)
    if not url:
        return
    require_sdk()
    from opentelemetry import trace

    from infra.traces.sending import Sending

    sending = Sending(url, "enginehouse-flows")
    trace.set_tracer_provider(sending.provider)
    atexit.register(sending.end)


def trace_labels(traceparent: str) -> dict[str, str]:
    """The labels of a run that goes on with the trace of `traceparent`; none for none."""
    return {_LABEL: traceparent} if is_traceparent(traceparent) else {}
