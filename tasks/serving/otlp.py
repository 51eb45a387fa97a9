"""Sends spans to a collector of OpenTelemetry: OTLP as JSON over HTTP, by a thread of its own.

Nobody waits for it. What does not fit into its queue, and what the collector does not take, is dropped.
Source: "OTLP/HTTP" and "JSON Protobuf Encoding" of the OpenTelemetry Protocol Specification.
"""

from __future__ import annotations

import http.client
import json
import queue
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

Value = bool | int | float | str | tuple[str, ...]

ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"

_MOST_WAITING = 4096
_MOST_AT_ONCE = 64
"""Spans of one message. Writing them as JSON keeps Python from everything else for half a millisecond."""
_TIMEOUT_S = 10.0
_LAST_S = 2.0
_INTERNAL, _ERROR = 1, 2
"""`SpanKind` and `StatusCode` of OTLP."""


@dataclass(frozen=True)
class Span:
    """Times in nanoseconds since 1970; ids in hexadecimal. `error` is a code, empty if there was none."""

    trace_id: str
    id: str
    parent: str
    name: str
    began: int
    ended: int
    attributes: Mapping[str, Value]
    error: str = ""

    def document(self) -> dict[str, object]:
        return {
            "traceId": self.trace_id,
            "spanId": self.id,
            "parentSpanId": self.parent,
            "name": self.name,
            "kind": _INTERNAL,
            "startTimeUnixNano": str(self.began),
            "endTimeUnixNano": str(self.ended),
            "attributes": _attributes(self.attributes),
            **({"status": {"code": _ERROR, "message": self.error}} if self.error else {}),
        }


class Sender:
    """Takes spans from any thread. `say` is told once that the collector is away, and once more after it was back."""

    def __init__(self, environment: Mapping[str, str], service: str, say: Callable[[str], object]) -> None:
        self._url = environment[ENDPOINT]
        self._headers = {"Content-Type": "application/json", **_headers(environment)}
        self._certificate = _either(environment, "CERTIFICATE") or None
        self._pause_s = float(environment.get("OTEL_BSP_SCHEDULE_DELAY") or 5000) / 1000
        own = dict(_pairs(environment.get("OTEL_RESOURCE_ATTRIBUTES", "")))
        self._resource = {"attributes": _attributes({**own, "service.name": service})}
        self._say = say
        self._away = False
        self._waiting: queue.Queue[Span] = queue.Queue(_MOST_WAITING)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
        self._thread.start()

    def put(self, *spans: Span) -> None:
        for span in spans:
            try:
                self._waiting.put_nowait(span)
            except queue.Full:
                return

    def close(self) -> None:
        """Send what is left, for a short while."""
        self._ending.set()
        self._thread.join(_LAST_S)

    def _run(self) -> None:
        while not self._ending.wait(self._pause_s):
            self._send_all()
        self._send_all()

    def _send_all(self) -> None:
        while batch := list(self._batch()):
            try:
                self._send(batch)
                self._away = False
            except (OSError, http.client.HTTPException) as error:
                if not self._away:
                    self._say(f"the collector of traces takes none ({error}): they are dropped while that is so")
                self._away = True
                return

    def _batch(self) -> Iterator[Span]:
        for _ in range(_MOST_AT_ONCE):
            try:
                yield self._waiting.get_nowait()
            except queue.Empty:
                return

    def _send(self, spans: Sequence[Span]) -> None:
        scope = {"scope": {"name": "enginehouse"}, "spans": [span.document() for span in spans]}
        body = json.dumps({"resourceSpans": [{"resource": self._resource, "scopeSpans": [scope]}]}).encode()
        where = urlsplit(self._url)
        if where.scheme == "https":
            context = ssl.create_default_context(cafile=self._certificate)
            connection = http.client.HTTPSConnection(where.netloc, timeout=_TIMEOUT_S, context=context)
        else:
            connection = http.client.HTTPConnection(where.netloc, timeout=_TIMEOUT_S)
        try:
            connection.request("POST", f"{where.path or '/'}", body, self._headers)
            response = connection.getresponse()
            response.read()
            if response.status >= 300:
                raise http.client.HTTPException(f"HTTP {response.status}")
        finally:
            connection.close()


def _attributes(values: Mapping[str, Value]) -> list[dict[str, object]]:
    return [{"key": key, "value": _value(value)} for key, value in values.items()]


def _value(value: Value) -> dict[str, object]:
    match value:
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}
        case float():
            return {"doubleValue": value}
        case str():
            return {"stringValue": value}
        case tuple():
            return {"arrayValue": {"values": [_value(each) for each in value]}}


def _either(environment: Mapping[str, str], name: str) -> str:
    """Of traces alone, or of all signals."""
    return environment.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}") or environment.get(f"OTEL_EXPORTER_OTLP_{name}", "")


def _headers(environment: Mapping[str, str]) -> dict[str, str]:
    return dict(_pairs(_either(environment, "HEADERS")))


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    """`a=1,b=2`, where values may be written as in addresses."""
    for word in text.split(","):
        name, found, value = word.partition("=")
        if found:
            yield name.strip(), unquote(value.strip())
