"""Errors as clients get them: a status of HTTP and one of gRPC by the error's code."""

from __future__ import annotations

import logging
import math
import traceback
from dataclasses import dataclass

from pydantic import JsonValue

from infra.errors import EnginehouseError, GatewayError


@dataclass(frozen=True)
class Status:
    """`grpc` is the name of a `grpc.StatusCode`."""

    http: int
    grpc: str


_STATUS = {
    "answer-malformed": Status(422, "UNIMPLEMENTED"),
    "answers-many": Status(400, "UNIMPLEMENTED"),
    "bodies-limit": Status(503, "RESOURCE_EXHAUSTED"),
    "body-encoded": Status(415, "UNIMPLEMENTED"),
    "body-large": Status(413, "RESOURCE_EXHAUSTED"),
    "body-slow": Status(408, "DEADLINE_EXCEEDED"),
    "context-length": Status(400, "INVALID_ARGUMENT"),
    "client-left": Status(499, "CANCELLED"),
    "deadline": Status(504, "DEADLINE_EXCEEDED"),
    "gateway-ending": Status(503, "UNAVAILABLE"),
    "key-missing": Status(401, "UNAUTHENTICATED"),
    "key-unknown": Status(401, "UNAUTHENTICATED"),
    "model-busy": Status(503, "UNAVAILABLE"),
    "model-cancelled": Status(503, "CANCELLED"),
    "model-failed": Status(500, "INTERNAL"),
    "model-not-ready": Status(503, "UNAVAILABLE"),
    "model-unknown": Status(404, "NOT_FOUND"),
    "node-lost": Status(502, "UNAVAILABLE"),
    "release-not-loaded": Status(404, "NOT_FOUND"),
    "request-malformed": Status(400, "INVALID_ARGUMENT"),
    "requests-limit": Status(429, "RESOURCE_EXHAUSTED"),
    "state-unknown": Status(503, "UNAVAILABLE"),
    "tokens-limit": Status(429, "RESOURCE_EXHAUSTED"),
    "triton-refused": Status(400, "INVALID_ARGUMENT"),
    "version-unknown": Status(404, "NOT_FOUND"),
}


@dataclass(frozen=True)
class Refusal:
    """An error as an answer over HTTP."""

    document: JsonValue
    status: int
    headers: tuple[tuple[str, str], ...] = ()


_log = logging.getLogger("enginehouse.gateway")


def status_of(error: EnginehouseError) -> Status:
    return _STATUS.get(error.code, Status(500, "INTERNAL"))


def triton_refusal(error: EnginehouseError) -> Refusal:
    """As Triton says it, with the code and the hint beside."""
    wait = retry_after(error)
    document: JsonValue = {"error": error.message, "code": error.code, **({"hint": error.hint} if error.hint else {})}
    return Refusal(document, status_of(error).http, () if wait is None else (("retry-after", str(wait)),))


def unexpected(error: Exception) -> GatewayError:
    """The error for a mistake of ours. The log gets where it was made, and not its words, which may be a prompt's."""
    _log.error("%s in the gateway\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))
    return GatewayError("the gateway has failed", hint="its log says where")


def retry_after(error: EnginehouseError) -> int | None:
    """Whole seconds for the header `Retry-After`; None if nobody knows."""
    seconds = error.retry_after_s if isinstance(error, GatewayError) else None
    return None if seconds is None else max(1, math.ceil(seconds))
