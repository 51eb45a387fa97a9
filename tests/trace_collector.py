"""A collector of OpenTelemetry for tests: OTLP over HTTP, as protobuf or JSON, held to the protocol's own messages."""

from __future__ import annotations

import base64
import gzip
import http.server
import importlib
import json
import re
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

_messages: Any = importlib.import_module("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
_json: Any = importlib.import_module("google.protobuf.json_format")

_ID = re.compile("[0-9a-f]{16}|[0-9a-f]{32}")


@dataclass(frozen=True)
class Seen:
    """A span as it arrived. Times in seconds since 1970; `links` are traceparents without version and flags."""

    trace: str
    id: str
    parent: str
    name: str
    service: str
    kind: int
    began: float
    ended: float
    attributes: dict[str, Any]
    events: dict[str, float]
    links: tuple[str, ...]
    failed: bool


@dataclass
class Collector:
    """`spans` in the order of their arrival. With a `status` other than 200 it takes none; `asked` counts messages."""

    port: int = 0
    status: int = 200
    asked: int = 0
    bodies: list[bytes] = field(default_factory=list[bytes])
    spans: list[Seen] = field(default_factory=list[Seen])
    mistakes: list[str] = field(default_factory=list[str])

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def take(self, path: str, media_type: str, body: bytes) -> None:
        assert path == "/v1/traces", path
        self.bodies.append(body)
        for resource in _read(media_type, body).resource_spans:
            service = _attributes(resource.resource.attributes)["service.name"]
            for scope in resource.scope_spans:
                self.spans += [_seen(span, service) for span in scope.spans]

    def of(self, trace: str) -> dict[str, Seen]:
        """The spans of a trace, by their names."""
        return {span.name: span for span in self.spans if span.trace == trace}

    def wait(self, condition: Callable[[], object], what: str, seconds: float = 15) -> None:
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, f"no {what}; there are {sorted(span.name for span in self.spans)}"
            time.sleep(0.02)
        assert not self.mistakes, self.mistakes


@contextmanager
def collector() -> Generator[Collector]:
    made = Collector()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            made.asked += 1
            if made.status == 200:
                try:
                    made.take(self.path, self.headers["Content-Type"], body)
                except Exception as error:
                    made.mistakes.append(f"{type(error).__name__}: {error}")
            self.send_response(made.status)
            self.send_header("Content-Type", self.headers["Content-Type"])
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    made.port = server.server_port
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()


def _read(media_type: str, body: bytes) -> Any:
    if media_type == "application/x-protobuf":
        return _messages.ExportTraceServiceRequest.FromString(body)
    assert media_type == "application/json", media_type
    # OTLP writes ids in hexadecimal, where protobuf's own JSON has base64. Unknown fields are an error here.
    return _json.Parse(json.dumps(_with_base64_ids(json.loads(body))), _messages.ExportTraceServiceRequest())


def _with_base64_ids(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_base64_ids(each) for each in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    found = {name: _with_base64_ids(each) for name, each in cast("dict[str, Any]", value).items()}
    for name in ("traceId", "spanId", "parentSpanId"):
        if found.get(name):
            assert _ID.fullmatch(found[name]), found[name]
            found[name] = base64.b64encode(bytes.fromhex(found[name])).decode()
    return found


def _seen(span: Any, service: str) -> Seen:
    assert len(span.trace_id) == 16 and len(span.span_id) == 8 and len(span.parent_span_id) in (0, 8)
    assert 0 < span.start_time_unix_nano <= span.end_time_unix_nano
    return Seen(
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.name,
        service,
        span.kind,
        span.start_time_unix_nano / 1e9,
        span.end_time_unix_nano / 1e9,
        _attributes(span.attributes),
        {event.name: event.time_unix_nano / 1e9 for event in span.events},
        tuple(f"{link.trace_id.hex()}-{link.span_id.hex()}" for link in span.links),
        span.status.code == 2,
    )


def _attributes(found: Any) -> dict[str, Any]:
    return {each.key: _value(each.value) for each in found}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, kind)
