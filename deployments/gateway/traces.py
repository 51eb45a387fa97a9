"""A span of each request through the gateway: where it went, what was counted and how it ended, never what it says.

Attributes have the names of OpenTelemetry's conventions for generative AI; what these lack begins with `enginehouse`.
A node's Triton is told the place in the trace. A span has a link to the rebuild that made its release: no more than a
link, since a release answers for months, and one trace of all that would be of no use to anybody.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Span, SpanKind, StatusCode, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from deployments.gateway.call import Call, Caller
from deployments.gateway.refusals import status_of
from infra.errors import EnginehouseError

_W3C = TraceContextTextMapPropagator()


class RequestTraces:
    """The spans of one gateway, which `provider` samples and sends."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("enginehouse.gateway")

    @contextmanager
    def traced(self, call: Call, caller: Caller) -> Generator[None]:
        """Around a call. A span that is not sampled goes to no node either: Triton would record it."""
        began = time.time_ns()
        operation = "chat" if caller.path.endswith("/chat/completions") else "text_completion"
        span = self._tracer.start_span(operation, _W3C.extract(caller.trace), SpanKind.SERVER, start_time=began)
        if not span.is_recording():
            yield
            return
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, set_span_in_context(span))
        call.trace = tuple(carrier.items())
        failure: BaseException | None = None
        try:
            yield
        except BaseException as error:
            failure = error
            raise
        finally:
            if call.place is not None or failure is not None:  # else it asked no model anything
                self._describe(span, call, caller, operation, failure)
                if call.first_at is not None:
                    span.add_event("first response", timestamp=began + int((call.first_at - call.begun) * 1e9))
                origin = get_current_span(_W3C.extract({"traceparent": call.origin})).get_span_context()
                if origin.is_valid:
                    span.add_link(origin, {"enginehouse.link": "rebuild"})
                span.end()

    def _describe(self, span: Span, call: Call, caller: Caller, operation: str, failure: BaseException | None) -> None:
        span.set_attribute("gen_ai.operation.name", operation)
        span.set_attribute("gen_ai.provider.name", "enginehouse")
        span.set_attribute("enginehouse.request_id", call.id)
        if caller.path:
            span.set_attribute("url.path", caller.path[:256])
        if call.name is not None:
            span.update_name(f"{operation} {call.name.model}")
            span.set_attribute("gen_ai.request.model", str(call.name))
        if call.name is not None and call.place is not None:
            span.set_attribute("gen_ai.response.model", f"{call.name.model}@{call.place.release}")
            span.set_attribute("enginehouse.release", call.place.release)
            span.set_attribute("enginehouse.target", call.place.node.target)
            span.set_attribute("enginehouse.node", call.place.node.name)
        if call.first_at is not None:
            span.set_attribute("gen_ai.response.time_to_first_chunk", call.first_at - call.begun)
            span.set_attribute("gen_ai.usage.input_tokens", call.tokens_in)
            span.set_attribute("gen_ai.usage.output_tokens", call.tokens_out)
        if call.finish_reasons:
            span.set_attribute("gen_ai.response.finish_reasons", call.finish_reasons)
        if failure is not None:
            is_ours = isinstance(failure, Exception)
            known = isinstance(failure, EnginehouseError)
            span.set_attribute("error.type", failure.code if known else "failed" if is_ours else "client-left")
            if is_ours and not (known and status_of(failure).http < 500):
                span.set_status(StatusCode.ERROR)
