"""How a gateway ends a request of `llm` to which it has given an id of its own: by another one, with that id alone.

It does not cancel the call. If a call is cancelled while Triton writes its last response, Triton waits for ever for a
response that has been, and never unloads the model (`HandleCancellation` in `src/grpc/infer_handler.h`, 2.51).
"""

from __future__ import annotations

CANCELLATION_ID = "cancellation_id"
"""The parameter of a request, and the one tensor, BYTES `[1, 1]`, of the request that cancels it."""
