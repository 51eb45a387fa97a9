"""`GET /v1/models`: what a client may ask."""

from __future__ import annotations

from collections.abc import Iterable

from .errors import ApiError

_OWNER = "enginehouse"


def model_entry(name: str, created: int) -> dict[str, object]:
    """One model. `created` is when it was released, in seconds since 1970."""
    return {"id": name, "object": "model", "created": created, "owned_by": _OWNER}


def model_list(entries: Iterable[dict[str, object]]) -> dict[str, object]:
    """All of them."""
    return {"object": "list", "data": list(entries)}


def unknown_model(name: str) -> ApiError:
    """The error of a request for a model that is not there."""
    return ApiError("model-unknown", f"the model '{name:.256}' does not exist", param="model")
