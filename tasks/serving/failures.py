"""How a request fails, as a code that its error says at the end: `the prompt has 3000 tokens; … [context-length]`.

Triton's errors in a stream are a text and no more. Version 2.51 can end a gRPC stream by a status instead
(`triton_grpc_error` in the metadata), but it knows no deadline, and leaves responses behind that come after
(`StreamInferResponseComplete` in its `stream_infer_handler.cc` returns without deleting them).
"""

from __future__ import annotations

import re
from typing import Literal, TypeAlias, cast, get_args

FailureCode: TypeAlias = Literal["invalid", "context-length", "unavailable", "deadline", "cancelled", "internal"]
"""`invalid` is a request that is refused; `context-length` one whose prompt is too long; `unavailable` one that may be
sent again; `deadline` one that took too long; `internal` a fault of the engine."""

_CODE = re.compile(rf" \[({'|'.join(get_args(FailureCode))})\]\Z")


def with_code(message: str, code: FailureCode) -> str:
    """The text of an error from contract 2 on."""
    return f"{message} [{code}]"


def without_code(text: str) -> tuple[str, FailureCode | None]:
    """The message and the code of an error; None for one of Triton itself, and of contract 1."""
    found = _CODE.search(text)
    return (text, None) if found is None else (text[: found.start()], cast(FailureCode, found[1]))
