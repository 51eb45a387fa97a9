"""The spans of this process, by OpenTelemetry's SDK: sampled as its variables say, and sent by another thread."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from infra.traces.collector import service_name

_LAST_SECONDS = 2.0
"""What an ending process waits for its last spans. The SDK would wait 30 s for a collector that is away."""
_LOUD = ("opentelemetry.exporter", "opentelemetry.sdk")
"""Loggers that say of every batch that it was not taken."""

_log = logging.getLogger("enginehouse.traces")


class Sending:
    """Spans go to the collector at `url`, as those of `service` unless OTEL_SERVICE_NAME says otherwise."""

    def __init__(self, url: str, service: str) -> None:
        for name in _LOUD:
            logging.getLogger(name).propagate = False
            logging.getLogger(name).addHandler(logging.NullHandler())
        resource = Resource.create({"service.name": service_name(os.environ, service)})
        self.provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self.provider.add_span_processor(BatchSpanProcessor(_SaidOnce(OTLPSpanExporter(url), url)))
        self._ending, self._ended = threading.Event(), threading.Event()
        # From the beginning: Python 3.12 starts no thread while it ends.
        threading.Thread(target=self._end, name="last spans", daemon=True).start()

    def end(self) -> None:
        """Send what is left, for a short while."""
        self._ending.set()
        self._ended.wait(_LAST_SECONDS)

    def _end(self) -> None:
        self._ending.wait()
        self.provider.shutdown()
        self._ended.set()


class _SaidOnce(SpanExporter):
    """Sends by another exporter, and says once that the collector is away."""

    def __init__(self, exporter: SpanExporter, url: str) -> None:
        self._exporter = exporter
        self._url = url
        self._away = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        away = result is not SpanExportResult.SUCCESS
        if away and not self._away:
            _log.warning("the collector of traces at %s takes none: they are dropped while that is so", self._url)
        self._away = away
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)
