"""Asking a release for one token: the only proof that it answers.

Triton calls a model ready whose process has died.
"""

from __future__ import annotations

from collections.abc import Mapping

from infra.errors import TritonError
from infra.triton.client import Completion, TritonClient
from tasks.serving.figures import UNCOUNTED
from tasks.targets.release import Intent

_TOKEN = {"text_input": "a", "max_tokens": 1}
_REFUSED = {"text_input": "a", "max_tokens": 0}
"""Every kind refuses it before its engine hears of it, so it is answered however busy the engine is."""
_DEADLINE_SECONDS = 60.0
"""Of a release whose record does not say after how long it ends a request."""
_LATE_SECONDS = 10.0

_GONE = ("is not healthy", "has no available versions", "is not found", "unknown model", "is not ready")
"""Words of Triton (2.51) for a model whose process has died or stands still, and for one that it does not have."""


def patience(intent: Intent | None) -> float:
    """After how many seconds a release must have ended any request, with an error at least."""
    deadline = intent.serving.get("request_timeout_s") if intent is not None else None
    return (float(deadline) if isinstance(deadline, int | float) else _DEADLINE_SECONDS) + _LATE_SECONDS


def takes_ids(intent: Intent | None) -> bool:
    """Whether a release takes a request that has an id. One without a record is asked without."""
    return intent is not None and intent.takes_ids


def ask(triton: TritonClient, name: str, seconds: float, *, by_id: bool) -> Completion:
    """One token of the model `name` on the server. Raises TritonError."""
    return triton.within(seconds).generate(name, _with_id(_TOKEN, by_id))


def dead(triton: TritonClient, name: str, seconds: float, *, by_id: bool) -> str:
    """Why the model `name` is taken for dead; empty if its process refuses a request as it should."""
    try:
        triton.within(seconds).generate(name, _with_id(_REFUSED, by_id))
    except TritonError as error:
        return f"it does not answer: {error.message}" if is_gone(error) or error.retryable else ""
    return ""


def _with_id(request: Mapping[str, str | int], by_id: bool) -> Mapping[str, str | int]:
    return {**request, "id": UNCOUNTED} if by_id else request


def is_gone(error: TritonError) -> bool:
    """Whether Triton itself says that the model cannot answer any more."""
    return any(words in error.message for words in _GONE)
