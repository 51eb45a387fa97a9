"""The place in a trace that one process hands to the next, as W3C's Trace Context writes it."""

from __future__ import annotations

import re
import sys

_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def is_traceparent(text: str) -> bool:
    """Whether this is a `traceparent` of version 00, the only one there is."""
    return _TRACEPARENT.fullmatch(text) is not None


def current_traceparent() -> str:
    """The place in a trace of what runs here now; empty if it is in none, or in one that is not recorded."""
    if "opentelemetry.sdk.trace" not in sys.modules:  # nothing here makes spans
        return ""
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    if not (context.is_valid and context.trace_flags.sampled):
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def trace_headers() -> dict[str, str]:
    """The same as headers of a request; none outside of a trace."""
    found = current_traceparent()
    return {"traceparent": found} if found else {}
