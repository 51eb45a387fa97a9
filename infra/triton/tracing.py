"""Triton's own traces: its mode `opentelemetry`, which sends OTLP as JSON over HTTP.

It records the requests that come with a `traceparent`, over HTTP or gRPC, and no others (`rate=0`). The models below an
ensemble get a place in the same trace, which the Python backend hands to its model (`request.trace().get_context()`,
from 24.03 on). Source: `docs/user_guide/trace.md` and `src/tracer.cc` of the server, 24.10.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from infra.traces.collector import ENDPOINT, SERVICE, collector_url, service_name

_SERVICE = "enginehouse-triton"
_PASSED_ON = ("OTEL_EXPORTER_OTLP_", "OTEL_BSP_", "OTEL_RESOURCE_ATTRIBUTES", SERVICE)
"""Variables that Triton's exporter and that of `llm` read. A key of the collector, if it has one, is among them."""


@dataclass(frozen=True)
class Tracing:
    """What a Triton is started with: nothing without a collector."""

    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Tracing:
        """As the variables say. Raises SettingsError, code `traces`."""
        url = collector_url(environment)
        if not url:
            return cls()
        opentelemetry = {"url": url, "resource": f"service.name={service_name(environment, _SERVICE)}"}
        settings = {"mode": "opentelemetry", "level": "TIMESTAMPS", "rate": "0", "count": "-1"}
        return cls(
            (
                *(f"--trace-config={name}={value}" for name, value in settings.items()),
                *(f"--trace-config=opentelemetry,{name}={value}" for name, value in opentelemetry.items()),
            ),
            {name: value for name, value in environment.items() if name.startswith(_PASSED_ON)} | {ENDPOINT: url},
        )
