"""What Triton loads: requests in, responses out, everything between is the runner's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import triton_python_backend_utils as triton  # pyright: ignore[reportMissingImports]

from .answers import encode_answers
from .contract import Answer, GenerationRequest, RequestRefused
from .engine import Engine
from .failures import FailureCode, with_code
from .parsing import parse_request
from .runner import Runner
from .settings import ServingSettings

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
        self._runner = Runner(load_engine(folder, settings, parameters), settings.request_timeout_s)

    def execute(self, requests: Sequence[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            try:
                tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
                rows = parse_request(tensors, json.loads(request.parameters()), self._contract)
            except RequestRefused as error:
                TritonReply(sender, (), self._contract).fail("invalid", str(error))
            else:
                self._runner.submit(rows, TritonReply(sender, rows, self._contract))

    def finalize(self) -> None:
        self._runner.close()


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
                ("batch_index", contract > 1),
                ("sequence_index", contract > 1),
            )
            if wanted
        }
        self._begun = False

    def send(self, answers: Sequence[Answer], *, final: bool) -> None:
        flags = _FINAL if final else 0
        if final and self._contract == 1 and self._begun and not answers[0].text:
            self._sender.send(flags=flags)
            return
        self._begun = True
        outputs = {*self._outputs, "finish_reason"} if final and self._contract > 1 else self._outputs
        encoded = encode_answers(answers, outputs, self._contract)
        tensors = [_triton.Tensor(name, value) for name, value in encoded.items()]
        self._sender.send(_triton.InferenceResponse(tensors), flags=flags)

    def fail(self, code: FailureCode, message: str) -> None:
        said = message if self._contract == 1 else with_code(message, code)
        error = _triton.TritonError(said, getattr(_triton.TritonError, _CODES[code]))
        self._sender.send(_triton.InferenceResponse(error=error), flags=_FINAL)

    def is_cancelled(self) -> bool:
        return self._sender.is_cancelled()


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

        return LlmApi(settings, parameters)
    raise ValueError(f"serving.json names the engine '{settings.engine}', which this release does not hold")
