"""Errors in OpenAI's form: the status, the body, and the headers by which its clients decide on another try."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, TypeAlias

from infra.errors import EnginehouseError
from tasks.serving.failures import FailureCode

from .generation import GenerationFailed

Code: TypeAlias = Literal[
    "request-invalid",
    "context-length",
    "request-large",
    "model-unknown",
    "key-invalid",
    "requests-limited",
    "tokens-limited",
    "unavailable",
    "cancelled",
    "deadline",
    "internal",
]


class _Form(NamedTuple):
    status: int
    type: str
    code: str | None


_FORMS: dict[Code, _Form] = {
    "request-invalid": _Form(400, "invalid_request_error", None),
    "context-length": _Form(400, "invalid_request_error", "context_length_exceeded"),
    "request-large": _Form(413, "invalid_request_error", "request_too_large"),
    "model-unknown": _Form(404, "invalid_request_error", "model_not_found"),
    "key-invalid": _Form(401, "invalid_request_error", "invalid_api_key"),
    "requests-limited": _Form(429, "requests", "rate_limit_exceeded"),
    "tokens-limited": _Form(429, "tokens", "rate_limit_exceeded"),
    "unavailable": _Form(503, "server_error", "unavailable"),
    "cancelled": _Form(503, "server_error", "cancelled"),
    "deadline": _Form(504, "server_error", "deadline_exceeded"),
    "internal": _Form(500, "server_error", "internal_error"),
}

_OF_FAILURE: dict[FailureCode, Code] = {
    "invalid": "request-invalid",
    "context-length": "context-length",
    "unavailable": "unavailable",
    "cancelled": "cancelled",
    "deadline": "deadline",
    "internal": "internal",
}

_PARAMS = {
    "text_input": "prompt",
    "stop_words": "stop",
    "return_log_probs": "logprobs",
    "num_top_log_probs": "top_logprobs",
    "guided_decoding_guide": "response_format",
    "guided_decoding_guide_type": "response_format",
}
"""Inputs of the contract whose name in OpenAI's API is another. A guide may also come from an extension field."""

_NAMED = re.compile(r"'([a-z_]{1,64})'")


class ApiError(EnginehouseError):
    """What a client of OpenAI's API is told. `param` names the field that is wrong, as `messages[0].content`."""

    def __init__(
        self, code: Code, message: str, *, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, code=code, retryable=code in ("requests-limited", "tokens-limited", "unavailable"))
        self.param = param
        self._form = _FORMS[code]
        self._retry_after_s = retry_after_s

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self._form.status

    @property
    def headers(self) -> dict[str, str]:
        """The `openai` client tries every 408, 409, 429 and 5xx again, unless `x-should-retry` tells it not to."""
        headers = {} if self.retryable else {"x-should-retry": "false"}
        if self._retry_after_s is not None:
            headers["retry-after"] = f"{self._retry_after_s:g}"
        return headers

    def body(self) -> dict[str, dict[str, str | None]]:
        form = self._form
        return {"error": {"message": self.message, "type": form.type, "param": self.param, "code": form.code}}


def invalid(message: str, param: str | None) -> ApiError:
    """The error of a request that is malformed, or asks for what cannot be honoured."""
    return ApiError("request-invalid", message, param=param)


def of_failure(error: GenerationFailed) -> ApiError:
    """What a client is told of a generation that failed. The input that an invalid one names becomes `param`."""
    named = _NAMED.search(error.message) if error.failure == "invalid" else None
    param = _PARAMS.get(named[1], named[1]) if named else error.param
    # LangChain and LiteLLM know these words, and make an error of their own of it.
    begin = "the prompt is too long: " if error.failure == "context-length" else ""
    return ApiError(_OF_FAILURE[error.failure], begin + error.message, param=param)
