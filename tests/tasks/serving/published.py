"""What NVIDIA's published gRPC clients send and how they read the answer, for tests that always run.

`end_to_end_grpc_client.py` and `end_to_end_test.py` of v0.8.0 to v0.19.0 send inputs of `[batch, 1]`, words of
`[batch, n]`, and read the first element of `text_output`, and `[0][0]` of `batch_index` and `sequence_index`.
"""

from __future__ import annotations

import importlib
import queue
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tasks.serving.contract import CONTRACT, inputs_of

_NUMPY: Mapping[str, Any] = {
    "BYTES": np.object_,
    "INT32": np.int32,
    "FP32": np.float32,
    "UINT64": np.uint64,
    "BOOL": np.bool_,
}
_TYPES = {entry.name: entry.data_type for entry in inputs_of(CONTRACT)}

ALWAYS: Mapping[str, Any] = {"stream": False, "beam_width": 1, "temperature": 0.0}
"""Sent with each request by `end_to_end_grpc_client.py`, of every version."""
NEUTRAL: Mapping[str, Any] = {
    "exclude_input_in_output": False,
    "num_return_sequences": 1,
    "num_draft_tokens": 0,
    "use_draft_logits": False,
    "return_context_logits": False,
    "return_generation_logits": False,
    "return_perf_metrics": False,
    "return_kv_cache_reuse_stats": False,
    "return_log_probs": False,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "pad_id": 0,
    "stop_words": [""],
    "bad_words": [""],
}
"""Sent by some versions, or where an option is given, and asks for nothing."""


def inputs(library: Any, prompts: Sequence[str], tokens: int, fields: Mapping[str, Any]) -> list[Any]:
    """The inputs of a request with a row for each prompt; `library` is a client of Triton, for HTTP or gRPC."""
    rows: dict[str, list[list[Any]]] = {
        "text_input": [[text] for text in prompts],
        "max_tokens": [[tokens]] * len(prompts),
    }
    rows |= {name: [value if isinstance(value, list) else [value]] * len(prompts) for name, value in fields.items()}
    made: list[Any] = []
    for name, values in rows.items():
        tensor = np.array(values, dtype=_NUMPY[_TYPES[name]])
        made.append(library.InferInput(name, list(tensor.shape), _TYPES[name]))
        made[-1].set_data_from_numpy(tensor)
    return made


def streamed(address: str, model: str, given: list[Any], outputs: Sequence[str] = ()) -> list[Any]:
    """The responses to one request on a stream of its own. Raises the client's error."""
    library: Any = importlib.import_module("tritonclient.grpc")
    heard: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()

    def hear(result: Any, error: Any) -> None:
        heard.put((result, error))

    wanted = [library.InferRequestedOutput(name) for name in outputs] or None
    with library.InferenceServerClient(address) as client:
        client.start_stream(callback=hear)
        client.async_stream_infer(model, given, outputs=wanted, request_id="")
        client.stop_stream()
    found = [heard.get() for _ in range(heard.qsize())]
    for _, error in found:
        if error is not None:
            raise error
    return [result for result, _ in found]


def read(responses: Sequence[Any], rows: int = 1) -> list[str]:
    """The text of each row, as the clients put it together."""
    texts = [""] * rows
    for response in responses:
        assert response.as_numpy("sequence_index")[0][0] == 0
        texts[response.as_numpy("batch_index")[0][0]] += response.as_numpy("text_output")[0].decode("utf-8")
    return texts
