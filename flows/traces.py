"""Traces of runs: Prefect makes a span of each flow run and each task, and hands the place in the trace to child runs.

It does so where PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY is true, with any server, and where its process has a
provider of spans, which is made here. A run keeps its place in a label of its own. Source:
`prefect/telemetry/run_telemetry.py` of 3.8.8.
"""

from __future__ import annotations

import atexit
import os

from opentelemetry.trace import get_current_span

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


def note_error(code: str) -> None:
    """Note on the span of this run that it ended with an error of ours: Prefect notes only errors that are raised."""
    get_current_span().set_attribute("error.type", code)


def trace_labels(traceparent: str) -> dict[str, str]:
    """The labels of a run that goes on with the trace of `traceparent`; none for none."""
    return {_LABEL: traceparent} if is_traceparent(traceparent) else {}
