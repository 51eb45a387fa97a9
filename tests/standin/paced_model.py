"""A stand-in for TensorRT-LLM's C++ backend that is about time alone: each request gets a token at fixed times.

The times are those of the clock and never drift: a token that is late does not delay the next ones. What a request is
given is the `tokens` of `standin.json`, in the folder of the engine, over and over, each `token_seconds` after the one
before it. Several threads send, so that one that waits for Triton holds up only its own requests.
"""

from __future__ import annotations

import heapq
import json
import threading
import time
from collections.abc import Sequence
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton  # pyright: ignore[reportMissingImports]

_triton: Any = triton
_THREADS = 4


class TritonPythonModel:
    """Triton's interface to a decoupled Python model."""

    def initialize(self, args: dict[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        own = json.loads((Path(parameters["gpt_model_path"]["string_value"]) / "standin.json").read_text())
        self._tokens: list[int] = own["tokens"]
        self._senders = [Sender(own["token_seconds"]) for _ in range(_THREADS)]
        self._next = cycle(self._senders)

    def execute(self, requests: Sequence[Any]) -> None:
        for request in requests:
            tensors = {tensor.name(): tensor for tensor in request.inputs()}
            tokens = tensors["request_output_len"].as_numpy().item()
            next(self._next).start(request.get_response_sender(), list(islice(cycle(self._tokens), tokens)))

    def finalize(self) -> None:
        for sender in self._senders:
            sender.close()


class Sender:
    """One thread, and the requests that it answers."""

    def __init__(self, token_seconds: float) -> None:
        self._seconds = token_seconds
        self._changed = threading.Condition()
        self._due: list[tuple[float, int, Any, list[int]]] = []
        self._numbers = count()
        self._closed = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def start(self, sender: Any, ids: list[int]) -> None:
        with self._changed:
            due = time.monotonic() + self._seconds
            heapq.heappush(self._due, (due, next(self._numbers), sender, ids[::-1]))
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (not self._due or self._due[0][0] > time.monotonic()):
                    self._changed.wait(self._due[0][0] - time.monotonic() if self._due else None)
                if self._closed:
                    return
                due, number, sender, left = heapq.heappop(self._due)
                token_id = left.pop()
                if left:
                    heapq.heappush(self._due, (due + self._seconds, number, sender, left))
            sender.send(_token(token_id), flags=0 if left else _triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _token(token_id: int) -> Any:
    tensors = {
        "output_ids": np.array([[[token_id]]], dtype=np.int32),
        "sequence_length": np.array([[1]], dtype=np.int32),
    }
    return _triton.InferenceResponse([_triton.Tensor(name, value) for name, value in tensors.items()])
