"""A thin client of Triton: control and requests over HTTP, cancellable streams over gRPC.

HTTP is spoken with the standard library: `tritonclient.http` would import gevent for the same few calls. gRPC is
imported only by `stream`.
"""

from __future__ import annotations

import contextlib
import copy
import http.client
import importlib
import json
import queue
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, cast
from urllib.parse import quote

from infra.errors import TritonError
from infra.traces.propagation import trace_headers
from infra.triton.command import CONTROL_HEADER

Value = str | bytes | int | float
Request = Mapping[str, Value | Sequence[Value] | Mapping[str, Value]]
"""A body of Triton's generate extension: inputs by name, and `parameters` as a table."""

LOAD_TIMEOUT_S = 900.0
"""A load returns when the model is loaded: hundreds of gigabytes from a disk of 1 GB/s, and minutes of warming up.
A rollout waits as long for its nodes.
"""
_UNLOAD_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Completion:
    """The answer of a model, or one streamed piece of it. `seconds` is the time since the request was sent.

    `log_probs` holds one natural logarithm for each token, and `tokens` is their number, if the request asked for them.
    `likeliest` has the likeliest tokens in the place of the one token of an answer, each with its log probability, if
    the request asked for one token and for them; bytes that are no text are replaced.
    """

    text: str
    log_probs: tuple[float, ...]
    seconds: float
    tokens: int | None = None
    likeliest: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Scores:
    """What a model makes of a text that it was given as its answer, one of each for every token of it.

    `log_probs` are natural logarithms, `best` the likeliest token in each place and `best_log_probs` its own. Tokens
    are text: one that is a part of a character is `\ufffd`, so `agrees` goes by the numbers.
    """

    tokens: tuple[str, ...]
    log_probs: tuple[float, ...]
    best: tuple[str, ...]
    best_log_probs: tuple[float, ...]

    @property
    def agrees(self) -> tuple[bool, ...]:
        """Whether the given token is the likeliest in its place."""
        return tuple(own >= best for own, best in zip(self.log_probs, self.best_log_probs, strict=True))


@dataclass(frozen=True)
class Counts:
    """How many requests a model has answered, and refused or lost, since it was loaded."""

    answered: int
    failed: int


@dataclass(frozen=True)
class ModelState:
    """One line of the repository index. `state` is empty for a model that was never loaded."""

    name: str
    state: str
    reason: str


class TritonClient:
    """One server. `http` and `grpc` are `host:port`; `key` opens the restricted endpoints; times in seconds.

    `request_id` is the id of every request to a model over HTTP; without it they have none.

    Every method raises TritonError, which is `retryable` if the server did not answer or was too busy.
    """

    def __init__(
        self, http: str, *, grpc: str = "", key: str = "", timeout_s: float = 120.0, request_id: str = ""
    ) -> None:
        self._named: dict[str, Value] = {"id": request_id} if request_id else {}
        self._http = http.removeprefix("http://").rstrip("/")
        self.grpc = grpc
        self._headers = {CONTROL_HEADER: key} if key else {}
        self._timeout_s = timeout_s

    def within(self, seconds: float) -> TritonClient:
        """The same client for requests that are worthless after `seconds`."""
        hurried = copy.copy(self)
        hurried._timeout_s = seconds
        return hurried

    def live(self) -> bool:
        """Whether the server answers at all."""
        return self._healthy("v2/health/live")

    def answers(self, path: str) -> bool:
        """Whether a GET of `path` succeeds."""
        return self._healthy(path)

    def metrics(self) -> str:
        """What Triton counts, in Prometheus's text form. Of a client whose address is that of Triton's metrics."""
        with self._request("GET", "metrics", None) as response:
            return response.read().decode()

    def ready(self, model: str) -> bool:
        """Whether this model answers requests now."""
        return self._healthy(f"v2/models/{quote(model, safe='')}/ready")

    def index(self) -> tuple[ModelState, ...]:
        """Every model that the server's repository holds, loaded or not."""
        with self._request("POST", "v2/repository/index", {}) as response:
            entries = json.load(response)
        return tuple(ModelState(entry["name"], entry.get("state", ""), entry.get("reason", "")) for entry in entries)

    def counts(self, model: str) -> Counts:
        """What Triton has counted of a model that is loaded. Of an ensemble, refusals count as failed."""
        with self._request("GET", f"v2/models/{quote(model, safe='')}/stats", None) as response:
            counted = json.load(response)["model_stats"][0]["inference_stats"]
        return Counts(counted["success"]["count"], counted["fail"]["count"])

    def load(self, model: str, timeout_s: float = LOAD_TIMEOUT_S) -> None:
        """Load a model, or load it again if its folder changed; returns when it answers requests.

        Raises TritonError `triton-load-timeout` if that takes longer than `timeout_s`; the server goes on loading.
        """
        try:
            self._control(model, "load", timeout_s)
        except TritonError as error:
            if isinstance(error.__cause__, TimeoutError):
                raise TritonError(
                    f"the model '{model}' was not loaded within {timeout_s:g} s",
                    hint="the node's triton.log shows what it waits for",
                    code="triton-load-timeout",
                ) from error
            raise

    def unload(self, model: str) -> None:
        """Unload a model once its running requests have ended. Returns before that."""
        self._control(model, "unload", _UNLOAD_TIMEOUT_S)

    def generate(self, model: str, request: Request) -> Completion:
        """One request, one answer."""
        started = time.monotonic()
        with self._request(
            "POST", f"v2/models/{quote(model, safe='')}/generate", {**self._named, **request}
        ) as response:
            # Of a token that is part of a character Triton writes the bytes as they are.
            return _answer(json.loads(response.read().decode(errors="replace")), started)

    def score(self, model: str, request: Request, given: str) -> Scores:
        """What the model makes of `given` as the answer to `request`, of which it generates nothing.

        Raises TritonError also for a model of a kind that cannot.
        """
        asked = {
            **self._named,
            **request,
            "given_output": given,
            "return_log_probs": True,
            "return_output_tokens": True,
            "num_top_log_probs": 1,
        }
        with self._request("POST", f"v2/models/{quote(model, safe='')}/generate", asked) as response:
            body = json.loads(response.read().decode(errors="replace"))
        if "error" in body:
            raise _refusal(400, json.dumps(body))
        return Scores(
            tuple(_listed(body["output_tokens"])),
            tuple(_listed(body["output_log_probs"])),
            tuple(_listed(body["top_tokens"])),
            tuple(_listed(body["top_log_probs"])),
        )

    def generate_stream(self, model: str, request: Request) -> Iterator[Completion]:
        """The pieces of an answer as they come, by server-sent events. `request` must have `"stream": True`."""
        started = time.monotonic()
        path = f"v2/models/{quote(model, safe='')}/generate_stream"
        with self._request("POST", path, {**self._named, **request}) as response, _reaching(self._http):
            for line in response:
                if line.startswith(b"data:"):
                    yield _answer(json.loads(line[len(b"data:") :]), started)

    def stream(self, model: str, request: Request) -> GrpcStream:
        """The same over gRPC, in a `with`: leaving it early cancels the request, and the server stops generating."""
        return GrpcStream(self.grpc, model, request, self._timeout_s)

    def _control(self, model: str, action: str, timeout_s: float) -> None:
        path = f"v2/repository/models/{quote(model, safe='')}/{action}"
        with self._request("POST", path, {}, timeout_s=timeout_s):
            pass

    def _healthy(self, path: str) -> bool:
        try:
            with self._request("GET", path, None):
                return True
        except TritonError:
            return False

    @contextlib.contextmanager
    def _request(
        self, method: str, path: str, body: Request | None, *, timeout_s: float | None = None
    ) -> Generator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection(self._http, timeout=timeout_s or self._timeout_s)
        with contextlib.closing(connection):
            with _reaching(self._http):
                headers = {**self._headers, **(trace_headers() if body else {})}
                connection.request(method, "/" + path, None if body is None else json.dumps(body), headers)
                response = connection.getresponse()
                text = "" if response.status == 200 else response.read().decode(errors="replace")
            if response.status != 200:
                raise _refusal(response.status, text)
            yield response


class GrpcStream:
    """A running gRPC stream. Iterate over its pieces; leaving the `with` ends it."""

    def __init__(self, address: str, model: str, request: Request, timeout_s: float) -> None:
        import numpy as np

        library: Any = importlib.import_module("tritonclient.grpc")
        utilities: Any = importlib.import_module("tritonclient.utils")
        self._timeout_s = timeout_s
        self._results: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
        self._started = time.monotonic()
        self._ended = False
        self._client: Any = library.InferenceServerClient(address)
        try:
            types = {entry.name: entry.datatype for entry in self._client.get_model_metadata(model).inputs}
            inputs: list[Any] = []
            for name, value in request.items():
                if name not in types:
                    raise TritonError(f"the model '{model}' has no input '{name}'", code="triton-invalid")
                values = [value] if isinstance(value, Value) else list(value)
                encoded = [item.encode() if isinstance(item, str) else item for item in values]
                tensor = library.InferInput(name, [1, len(values)], types[name])
                tensor.set_data_from_numpy(np.array([encoded], dtype=utilities.triton_to_np_dtype(types[name])))
                inputs.append(tensor)
            self._client.start_stream(callback=self._receive, headers=trace_headers())
            self._client.async_stream_infer(model, inputs, enable_empty_final_response=True)
        except utilities.InferenceServerException as error:
            self._client.close()
            raise _grpc_refusal(address, error) from error

    def _receive(self, result: Any, error: Any) -> None:
        self._results.put((result, error))

    def __enter__(self) -> GrpcStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Triton 2.51 never unloads a model if a finished request of it was cancelled over gRPC.
        self._client.stop_stream(cancel_requests=not self._ended)
        self._client.close()

    def __iter__(self) -> Iterator[Completion]:
        while True:
            try:
                result, error = self._results.get(timeout=self._timeout_s)
            except queue.Empty:
                raise _unreachable(f"no piece came within {self._timeout_s:g} s") from None
            if error is not None:
                self._ended = True
                raise _grpc_refusal("", error)
            self._ended = result.get_response().parameters["triton_final_response"].bool_param
            text = result.as_numpy("text_output")
            if text is not None:
                log_probs = result.as_numpy("output_log_probs")
                yield Completion(
                    text.flat[0].decode(),
                    () if log_probs is None else tuple(map(float, log_probs.flat)),
                    time.monotonic() - self._started,
                )
            if self._ended:
                return


def _listed(value: Any) -> list[Any]:
    """Triton writes a tensor of one element as that element."""
    return cast("list[Any]", value) if isinstance(value, list) else [value]


def _answer(body: Mapping[str, Any], started: float) -> Completion:
    if "error" in body:
        raise _refusal(400, json.dumps(body))
    log_probs = _elements(body, "output_log_probs")
    likeliest = zip(_elements(body, "top_tokens"), _elements(body, "top_log_probs"), strict=True)
    return Completion(
        text=body["text_output"],
        log_probs=log_probs,
        seconds=time.monotonic() - started,
        tokens=body.get("num_output_tokens"),
        likeliest=tuple(likeliest) if len(log_probs) == 1 else (),
    )


def _elements(body: Mapping[str, Any], name: str) -> tuple[Any, ...]:
    """The elements of a tensor. Triton writes one of a single element as a bare value."""
    value = body.get(name, [])
    return tuple(cast("list[Any]", value)) if isinstance(value, list) else (value,)


@contextlib.contextmanager
def _reaching(address: str) -> Generator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(f"Triton at {address} does not answer: {error}") from error


def _unreachable(message: str) -> TritonError:
    error = TritonError(message, hint="does it run? see: enginehouse status", code="triton-unreachable")
    error.retryable = True
    return error


def _refusal(status: int, text: str) -> TritonError:
    try:
        message = str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        message = text[:200] or f"HTTP status {status}"
    if status == 403:
        return TritonError(message, hint="this endpoint belongs to the node agent alone", code="triton-restricted")
    if status == 404 or "unknown model" in message:
        return TritonError(message, hint="see which models it serves: enginehouse status", code="triton-unknown-model")
    # /generate answers 400 to all that a model refuses, also for its deadline; 503 means that the server is ending.
    error = TritonError(message, code="triton-busy" if status == 503 else "triton-refused")
    error.retryable = status == 503
    return error


def _grpc_refusal(address: str, error: Any) -> TritonError:
    status, message = str(error.status()), str(error.message())
    if status == "StatusCode.UNAVAILABLE" and "connect" in message:
        return _unreachable(f"Triton at {address} does not answer: {message}")
    return _refusal(400, json.dumps({"error": message}))
