"""What Triton loads: requests in, responses out, everything between is the runner's."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as triton  # pyright: ignore[reportMissingImports]

from .answers import encode_answers
from .cancellation import CANCELLATION_ID
from .contract import Answer, GenerationRequest, RequestRefused
from .engine import Engine
from .failures import FailureCode, with_code
from .figures import UNCOUNTED, Figures
from .metrics import Metrics
from .parsing import parse_request
from .runner import Reply, Runner
from .settings import ServingSettings
from .tickets import TICKET, Tickets

if TYPE_CHECKING:
    from .traces import Traces

_triton: Any = triton
_FINAL = _triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL

# By name: Triton adds TritonError to its module only after it has imported this one.
_CODES: dict[FailureCode, str] = {
    "invalid": "INVALID_ARG",
    "context-length": "INVALID_ARG",
    "unavailable": "UNAVAILABLE",
    "deadline": "UNAVAILABLE",
    "cancelled": "CANCELLED",
    "internal": "INTERNAL",
}


class TritonPythonModel:
    """Triton's interface to a decoupled Python model."""

    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"]) / args["model_version"]
        settings = ServingSettings.read(folder)
        configured: dict[str, dict[str, str]] = json.loads(args["model_config"])["parameters"]
        parameters = {key: value["string_value"] for key, value in configured.items()}
        self._contract = settings.contract
        self._tickets = Tickets(_ticket)
        engine = load_engine(folder, settings, parameters)
        self._figures = Figures(settings.slots)
        self._metrics = Metrics(_triton, args, self._figures, engine.cache_usage)
        self._traces = load_traces(args["model_name"])
        if self._traces is not None:
            engine = self._traces.traced_engine(engine)
        self._runner = Runner(engine, settings.request_timeout_s)

    def execute(self, requests: Sequence[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            figures = Figures() if request.request_id() == UNCOUNTED else self._figures
            try:
                tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
                if TICKET in tensors:
                    number = int(tensors[TICKET].flat[0])
                    self._runner.call(self._tickets.bring, number, sender, request.is_cancelled(), _FINAL)
                    continue
                if CANCELLATION_ID in tensors:
                    key = bytes(tensors[CANCELLATION_ID].flat[0]).decode(errors="replace")
                    self._runner.call(self._cancel, key, sender)
                    continue
                parameters = json.loads(request.parameters())
                key = parameters.pop(CANCELLATION_ID, None)
                rows = parse_request(tensors, parameters, self._contract)
            except RequestRefused as error:
                figures.refused("invalid")
                self._traced(request, TritonReply(sender, (), self._contract)).fail("invalid", str(error))
            else:
                if set(request.requested_output_names()) == {TICKET}:
                    sender = ticketed = self._tickets.take(sender, len(rows))
                    key = secrets.token_hex()
                    ticketed.when_cancelled = partial(self._runner.cancel, key)
                    self._runner.call(ticketed.give)
                reply = self._traced(request, TritonReply(sender, rows, self._contract))
                self._runner.submit(rows, reply, figures, key)

    def finalize(self) -> None:
        self._runner.close()
        self._metrics.close()
        if self._traces is not None:
            self._traces.close()

    def _cancel(self, key: str, sender: Any) -> None:
        self._runner.cancel(key)
        sender.send(flags=_FINAL)

    def _traced(self, request: Any, reply: Reply) -> Reply:
        return reply if self._traces is None else self._traces.traced(request.trace(), reply)


class TritonReply:
    """The runner's `Reply` on a decoupled response sender."""

    def __init__(self, sender: Any, rows: Sequence[GenerationRequest], contract: int) -> None:
        self._sender = sender
        self._contract = contract
        self._outputs = {
            name
            for name, wanted in (
                ("output_log_probs", any(row.return_log_probs for row in rows)),
                ("cum_log_probs", any(row.return_log_probs for row in rows)),
                ("output_tokens", any(row.return_output_tokens for row in rows)),
                ("top_tokens", any(row.num_top_log_probs for row in rows)),
                ("top_log_probs", any(row.num_top_log_probs for row in rows)),
                ("num_input_tokens", any(row.return_num_input_tokens for row in rows)),
                ("num_output_tokens", any(row.return_num_output_tokens for row in rows)),
                ("batch_index", contract > 1 and len(rows) > 1),
                ("sequence_index", contract > 1 and len(rows) > 1),
            )
            if wanted
        }
        self._begun = self._ended = False

    def send(self, answers: Sequence[Answer], *, final: bool) -> None:
        flags = _FINAL if final else 0
        self._ended = final
        if final and self._contract == 1 and self._begun and not answers[0].text:
            self._sender.send(flags=flags)
            return
        self._begun = True
        outputs = {*self._outputs, "finish_reason"} if final and self._contract > 1 else self._outputs
        # The published clients read one row of each response, and where it belongs in `batch_index`.
        responses = [answers] if self._contract == 1 else [[answer] for answer in answers]
        for index, rows in enumerate(responses):
            encoded = encode_answers(rows, outputs, self._contract, index)
            tensors = [_triton.Tensor(name, value) for name, value in encoded.items()]
            if self._contract > 1 and len(responses) == 1:
                tensors += _indexes_of_one()
            self._sender.send(_triton.InferenceResponse(tensors), flags=flags if index == len(responses) - 1 else 0)

    def fail(self, code: FailureCode, message: str) -> None:
        self._ended = True
        said = message if self._contract == 1 else with_code(message, code)
        error = _triton.TritonError(said, getattr(_triton.TritonError, _CODES[code]))
        self._sender.send(_triton.InferenceResponse(error=error), flags=_FINAL)

    def is_cancelled(self) -> bool:
        # Triton frees what it would look at with the last response, and 2.51 dies of the question.
        return not self._ended and self._sender.is_cancelled()


def _ticket(number: int, rows: int) -> Any:
    return _triton.InferenceResponse([_triton.Tensor(TICKET, np.full((rows, 1), number, dtype=np.uint64))])


@cache
def _indexes_of_one() -> tuple[Any, ...]:
    """The indexes of an answer with one row, which are the same in each: Triton copies a tensor once, and it lasts."""
    zero = np.zeros((1, 1), dtype=np.int32)
    return (_triton.Tensor("batch_index", zero), _triton.Tensor("sequence_index", zero))


def load_traces(release: str) -> Traces | None:
    """Those of this process. Imported only where its variables name a collector, which a node passes on to Triton."""
    if not os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        return None
    from .traces import Traces

    return Traces(os.environ, release, _triton.Logger.log_warn)


def load_engine(folder: Path, settings: ServingSettings, parameters: Mapping[str, str]) -> Engine:
    """The engine that the release names. Each is imported only where it is used: its package may be missing."""
    if settings.engine == "tensorrt_llm":
        from .backend import TensorRtLlm

        return TensorRtLlm(folder, settings, parameters)
    if settings.engine == "llamacpp":
        from .llamacpp import LlamaCpp

        return LlamaCpp(folder, settings)
    if settings.engine == "llmapi":
        from .llmapi import LlmApi

        return LlmApi(folder, settings, parameters)
    if settings.engine == "transformers":
        from .transformers_engine import Transformers

        return Transformers(folder, settings, parameters)
    raise ValueError(f"serving.json names the engine '{settings.engine}', which this release does not hold")
