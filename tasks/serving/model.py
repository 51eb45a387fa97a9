"""What Triton loads: requests in, responses out, everything between is the runner's."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as triton  # pyright: ignore[reportMissingImports]

from .answers import encode_answers
from .cancellation import CANCELLATION_ID
from .contract import Answer, GenerationRequest, RequestRefused, Tensor
from .engine import Engine
from .failures import FailureCode, with_code
from .figures import UNCOUNTED, Figures, share_of
from .handing_on import WITNESS_WANTED, Handed, HandingOn, key_of
from .metrics import Metrics
from .packing import pack, unpack
from .parsing import parse_request
from .peers import Peers, scope_of
from .runner import Reply, Runner
from .settings import ServingSettings
from .tickets import HANDED_ON, TICKET, Tickets

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

_LOST = "a process of this model is not healthy"
"""As Triton says it of one that a request would have gone to."""


class TritonPythonModel:
    """Triton's interface to a decoupled Python model."""

    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"]) / args["model_version"]
        settings = ServingSettings.read(folder)
        config: dict[str, Any] = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        instances, instance = config["instance_group"][0]["count"], int(args["model_instance_name"].rpartition("_")[2])
        self._contract = settings.contract
        self._tickets = Tickets(_ticket)
        engine = load_engine(folder, settings, parameters)
        self._figures = Figures(share_of(settings.slots, instance, instances))
        self._metrics = Metrics(_triton, args, self._figures, engine.cache_usage)
        self._traces = load_traces(args["model_name"])
        if self._traces is not None:
            engine = self._traces.traced_engine(engine)
        self._runner = Runner(engine, settings.request_timeout_s)
        self._peers: Peers | None = None
        self._handing_on: HandingOn | None = None
        if instances > 1:
            self._peers = Peers(scope_of(args["model_repository"]), instance)
            self._handing_on = HandingOn(
                self._runner,
                self._peers,
                given=_ticket,
                failed=partial(_error, self._contract, "unavailable"),
                final=_FINAL,
                patience_s=settings.request_timeout_s,
            )
            self._runner.wait_for(self._peers.open(self._handing_on))

    def execute(self, requests: Sequence[Any]) -> None:
        for request in requests:
            self._execute(request, request.get_response_sender())

    def finalize(self) -> None:
        self._runner.close(self._tickets.close if self._handing_on is None else self._handing_on.close)
        self._metrics.close()
        if self._traces is not None:
            self._traces.close()

    def _execute(self, request: Any, sender: Any) -> None:
        tensors: dict[str, Tensor] = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        if CANCELLATION_ID in tensors:
            self._runner.call(self._cancel, _text(tensors[CANCELLATION_ID]).decode(errors="replace"), sender)
            return
        if TICKET in tensors:
            self._bring(request, sender, int(tensors[TICKET].flat[0]), tensors.get(HANDED_ON))
            return
        if self._peers is not None and self._peers.lost:
            # Triton takes such a model for ready. So its node hears it, when it asks, and everybody else.
            sender.send(_error(self._contract, "unavailable", _LOST), flags=_FINAL)
            return
        parameters: dict[str, object] = json.loads(request.parameters())
        key = parameters.pop(CANCELLATION_ID, None)
        takes = set(request.requested_output_names()) <= {TICKET, HANDED_ON}
        if takes and self._handing_on is not None:
            rows = len(next(iter(tensors.values()), "1"))
            self._runner.call(self._handing_on.take, sender, rows, pack(tensors, parameters))
            return
        try:
            rows = parse_request(tensors, parameters, self._contract)
        except RequestRefused as error:
            self._refusal(request, sender, error)()
            return
        if takes:
            sender = ticketed = self._tickets.take(sender, len(rows))
            key = secrets.token_hex()
            ticketed.when_cancelled = partial(self._runner.cancel, key)
            self._runner.call(ticketed.give)
        reply = self._traced(request, TritonReply(sender, rows, self._contract))
        self._runner.submit(rows, reply, self._figures_of(request), key if isinstance(key, str) else None)

    def _bring(self, request: Any, sender: Any, number: int, handed_on: Tensor | None) -> None:
        """A second step, that of a request or one that only looks."""
        if self._handing_on is None:
            self._runner.call(self._tickets.bring, number, sender, request.is_cancelled(), _FINAL)
        elif handed_on is None:
            self._runner.call(self._handing_on.look, number, sender, request.is_cancelled())
        elif (packed := _text(handed_on)) == WITNESS_WANTED:
            self._runner.call(self._handing_on.keep, number, sender, request.is_cancelled())
        else:
            handed = Handed(self._handing_on, number, sender)
            try:
                rows = parse_request(*unpack(packed), self._contract)
            except RequestRefused as error:
                start = self._refusal(request, handed, error)
            else:
                reply = self._traced(request, TritonReply(handed, rows, self._contract))
                start = partial(self._runner.start, rows, reply, self._figures_of(request), key_of(number))
            self._runner.call(self._handing_on.bring, number, start)

    def _refusal(self, request: Any, sender: Any, error: RequestRefused) -> Callable[[], None]:
        self._figures_of(request).refused("invalid")
        return partial(self._traced(request, TritonReply(sender, (), self._contract)).fail, "invalid", str(error))

    def _figures_of(self, request: Any) -> Figures:
        return Figures() if request.request_id() == UNCOUNTED else self._figures

    def _cancel(self, key: str, sender: Any) -> None:
        if self._handing_on is None:
            self._runner.cancel(key)
        else:
            self._handing_on.cancel(key)
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
        self._sender.send(_error(self._contract, code, message), flags=_FINAL)

    def is_cancelled(self) -> bool:
        # Triton frees what it would look at with the last response, and 2.51 dies of the question.
        return not self._ended and self._sender.is_cancelled()


def _error(contract: int, code: FailureCode, message: str) -> Any:
    said = message if contract == 1 else with_code(message, code)
    return _triton.InferenceResponse(error=_triton.TritonError(said, getattr(_triton.TritonError, _CODES[code])))


def _ticket(number: int, rows: int, handed_on: bytes = b"") -> Any:
    tensors = [_triton.Tensor(TICKET, np.full((rows, 1), number, dtype=np.uint64))]
    if handed_on:
        # The step that it is for takes it as optional: what only looks has none.
        tensors.append(_triton.Tensor(HANDED_ON, np.array([[handed_on], *[[b""]] * (rows - 1)], dtype=object)))
    return _triton.InferenceResponse(tensors)


def _text(tensor: Tensor) -> bytes:
    return bytes(tensor.flat[0])


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
