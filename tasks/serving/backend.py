"""The engine `tensorrt_llm`: the model of TensorRT-LLM's C++ backend, called.

What comes before and after that model cannot be steps of an ensemble around it. Triton does not load one whose step
takes tensors of a decoupled model beside others ("receives inputs originated from different decoupled models", 2.51):
what streams out of the engine can be joined with nothing that tells whose it is.
"""

from __future__ import annotations

import importlib
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .backend_inputs import ALWAYS_SENT, READ, as_input, backend_inputs, end_id_of
from .called import CalledModel, Response, called_model
from .contract import GenerationRequest, RequestRefused, Tensor
from .engine import EngineFailed
from .settings import ServingSettings
from .tokens import Prompts, TokenGeneration, Tokens

_TOKENS = ("output_ids", "sequence_length")
"""Outputs without which the backend answers nothing."""

STOP_INTERVAL_S = 0.1
"""What a cancelled request gets to end by itself before it is told to, and to obey before it is told again.

Again, since an instance of the backend knows only the requests that it got itself. And not at once, since most end
anyway, and 0.8 and 0.9 never release a request that tells of a stop.
"""

MAX_STARTING = 24
"""Requests of one process that may wait for their first answer in the backend; further ones wait here.

In this same Triton each takes one of the 32 threads that the Python backend has for the calls of an instance (2.51:
`thread-pool-size`), and what tells the backend to stop must always find one.
"""

_CLIENT_IS_TO_BLAME = ("exceeds maximum input length", "Incorrect sampling config")
"""In what the backend answers to a request that `llm` lets pass and it does not (llmRequest.h of 0.8 to 1.2)."""


class TensorRtLlm:
    """The backend's model; `parameters` are those of the model that calls it. Nothing is loaded but the tokenizer."""

    def __init__(self, folder: Path, settings: ServingSettings, parameters: Mapping[str, str]) -> None:
        self._settings = settings
        self._model = called_model(parameters)
        self._calls = threading.Semaphore(MAX_STARTING)
        self._prompts = Prompts(
            folder / settings.engine_path,
            chat_template=settings.chat_template,
            most_tokens=settings.most_prompt_tokens,
        )

    def start(self, request: GenerationRequest) -> TokenGeneration:
        prompts = self._prompts
        inputs = backend_inputs(request, prompts.ids(request.text_input), prompts, self._settings)
        end_id = end_id_of(request, prompts)
        return TokenGeneration(
            BackendTokens(self._calls, self._model, inputs, READ if request.return_log_probs else _TOKENS),
            prompts.tokenizer,
            stop_words=request.stop_words,
            end_ids=() if end_id is None else (end_id,),
        )

    def close(self) -> None:
        self._model.close()


class BackendTokens:
    """One request to the backend, whose answers are read to the end in any case: only then its place is free."""

    def __init__(
        self,
        calls: threading.Semaphore,
        model: CalledModel,
        inputs: Mapping[str, Tensor],
        outputs: Iterable[str],
    ) -> None:
        self._calls = calls
        self._model = model
        self._inputs = inputs
        self._outputs = outputs
        # A number: until 0.9 the backend takes the leading digits of other names for one.
        self._id = str(1 + secrets.randbits(63))
        self._lock = threading.Lock()
        self._running = False
        self._cancelled = False
        self._ended = threading.Event()
        self._stopper = threading.Thread(target=self._stop, daemon=True)
        self._tokens = 0

    def __iter__(self) -> Iterator[Tokens]:
        try:
            with self._calls:
                with self._lock:
                    self._running = not self._cancelled
                if not self._running:
                    return
                responses = self._model.call(self._id, self._inputs, self._outputs)
            yield from self._read_all(responses)
        finally:
            self._end()

    def cancel(self) -> None:
        with self._lock:
            if self._running and not self._cancelled:
                self._stopper.start()
            self._cancelled = True

    def _end(self) -> None:
        with self._lock:
            stopping = self._running and self._cancelled
            self._running = False
        self._ended.set()
        if stopping:
            self._stopper.join()

    def _stop(self) -> None:
        # Triton wants the others, the backend looks at none of them.
        inputs = {name: as_input(name, 1) for name in (*ALWAYS_SENT, "stop")}
        while not self._ended.wait(STOP_INTERVAL_S):
            try:
                failures = [response.failure for response in self._model.call(self._id, inputs, _TOKENS)]
            except EngineFailed as error:
                failures = [str(error)]
            # Until 0.9 there is one where the request has ended meanwhile.
            for failure in filter(None, failures if not self._ended.is_set() else ()):
                triton: Any = importlib.import_module("triton_python_backend_utils")
                triton.Logger.log_warn(f"the engine does not stop {self._id}: {failure}")

    def _read_all(self, responses: Iterable[Response]) -> Iterator[Tokens]:
        failure: Exception | None = None
        for response in responses:
            if failure is not None or self._cancelled:
                continue
            try:
                if tokens := self._read(response):
                    yield tokens
            except GeneratorExit:
                # Whoever read has enough; the generator ends once the backend has.
                self.cancel()
            except (RequestRefused, EngineFailed) as error:
                failure = error
        if failure is not None:
            raise failure

    def _read(self, response: Response) -> Tokens | None:
        """The best beam's new tokens; the beams come sorted."""
        if message := response.failure:
            if any(text in message for text in _CLIENT_IS_TO_BLAME):
                raise RequestRefused(f"the engine refuses the request: {message}")
            raise EngineFailed(f"the engine failed: {message}")
        tensors = response.tensors
        if "output_ids" not in tensors:
            return None
        length = int(tensors["sequence_length"][0, 0])
        ids = tuple(map(int, tensors["output_ids"][0, 0, :length]))
        before, self._tokens = self._tokens, self._tokens + length
        if "output_log_probs" not in tensors:
            return Tokens(ids)
        log_probs = tuple(map(float, tensors["output_log_probs"][0, 0]))
        # A streamed response has those of all tokens so far, from 0.10 on at least.
        new = log_probs[before : self._tokens] if len(log_probs) >= self._tokens else log_probs[:length]
        if len(new) < length:
            raise EngineFailed(f"the engine gave {len(log_probs)} log probabilities for {self._tokens} tokens")
        return Tokens(ids, new)
