"""Status, form and headers of each error."""

from __future__ import annotations

import pytest

from deployments.gateway.openai.errors import ApiError, Code, of_failure
from deployments.gateway.openai.generation import GenerationFailed
from deployments.gateway.openai.models import model_entry, model_list, unknown_model
from tasks.serving.failures import FailureCode


@pytest.mark.parametrize(
    ("code", "status", "kind", "openai_code", "again"),
    [
        ("request-invalid", 400, "invalid_request_error", None, False),
        ("context-length", 400, "invalid_request_error", "context_length_exceeded", False),
        ("key-invalid", 401, "invalid_request_error", "invalid_api_key", False),
        ("model-unknown", 404, "invalid_request_error", "model_not_found", False),
        ("request-large", 413, "invalid_request_error", "request_too_large", False),
        ("requests-limited", 429, "requests", "rate_limit_exceeded", True),
        ("tokens-limited", 429, "tokens", "rate_limit_exceeded", True),
        ("internal", 500, "server_error", "internal_error", False),
        ("unavailable", 503, "server_error", "unavailable", True),
        ("cancelled", 503, "server_error", "cancelled", False),
        ("deadline", 504, "server_error", "deadline_exceeded", False),
    ],
)
def test_form(code: Code, status: int, kind: str, openai_code: str | None, again: bool) -> None:
    error = ApiError(code, "what happened", param="p")
    assert error.status == status
    assert error.body() == {"error": {"message": "what happened", "type": kind, "param": "p", "code": openai_code}}
    assert error.headers == ({} if again else {"x-should-retry": "false"})


def test_a_limit_says_when_to_come_again() -> None:
    assert ApiError("requests-limited", "m", retry_after_s=1.5).headers == {"retry-after": "1.5"}


@pytest.mark.parametrize(
    ("failure", "message", "status", "param"),
    [
        ("invalid", "'stop_words' hold 3000 characters; the most is 2000", 400, "stop"),
        ("invalid", "'text_input' has 9000 tokens", 400, "prompt"),
        ("invalid", "'messages' has no template", 400, "messages"),
        ("invalid", "'guided_decoding_guide' is no JSON schema", 400, "response_format"),
        ("invalid", "something else", 400, None),
        ("unavailable", "'messages' has no node", 503, None),
        ("deadline", "after 60 s", 504, None),
        ("cancelled", "the node drains", 503, None),
        ("internal", "out of memory", 500, None),
    ],
)
def test_a_generation_that_failed(failure: FailureCode, message: str, status: int, param: str | None) -> None:
    error = of_failure(GenerationFailed(failure, message))
    assert (error.status, error.param, error.message) == (status, param, message)


def test_a_prompt_that_is_too_long_names_itself() -> None:
    error = of_failure(GenerationFailed("context-length", "the prompt has 9 tokens; it may have 7", param="messages"))
    assert error.body()["error"]["code"] == "context_length_exceeded" and error.param == "messages"


def test_models() -> None:
    assert model_list([model_entry("llama", 1_700_000_000)]) == {
        "object": "list",
        "data": [{"id": "llama", "object": "model", "created": 1_700_000_000, "owned_by": "enginehouse"}],
    }
    error = unknown_model("x" * 10_000)
    assert (error.status, error.param) == (404, "model") and len(error.message) < 300
