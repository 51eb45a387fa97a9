"""The engine `llamacpp`: llama.cpp's server in this process, by `xllamacpp`.

Its continuous batching, streaming and templates are reached by its own HTTP interface on loopback, behind a key
made at every start. Only there does llama.cpp tokenize, render a template, and drop a request that still waits for
a slot (its connection closes).
"""

from __future__ import annotations

import contextlib
import http.client
import importlib
import json
import os
import secrets
import signal
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .contract import GenerationRequest, RequestRefused
from .engine import MAX_RUNNING, EngineFailed, Piece
from .settings import ServingSettings
from .words import StopWords, grammar_without

RANDOM_SEED = 2**32 - 1
"""llama.cpp's seeds have 32 bits, and this one means random (LLAMA_DEFAULT_SEED in llama.h)."""

HTTP_THREADS = MAX_RUNNING + 16
"""A running or waiting request takes one of llama.cpp's HTTP threads; a few are left for what needs no slot."""

CONTROL_TIMEOUT_S = 30.0
"""For what needs no slot: tokens, templates, properties."""


class LlamaCpp:
    """A GGUF file, loaded. Raises EngineFailed where llama.cpp cannot load it."""

    def __init__(self, folder: Path, settings: ServingSettings) -> None:
        library: Any = importlib.import_module("xllamacpp")
        parameters = library.CommonParams()
        parameters.model.path = str(folder / settings.engine_path)
        parameters.n_parallel = settings.slots
        parameters.n_ctx = settings.slots * settings.context_tokens
        threads = settings.threads or len(os.sched_getaffinity(0))
        parameters.cpuparams.n_threads = threads
        parameters.cpuparams_batch.n_threads = threads
        # The same prompt and seed must give the same text, whatever a slot held before.
        parameters.cache_prompt = False
        parameters.cache_ram_mib = 0
        parameters.slot_prompt_similarity = 0.0
        parameters.fit_params = False
        # Warnings and errors only: the level above tells of requests.
        parameters.verbosity = 2
        self._key = secrets.token_urlsafe(32)
        parameters.api_keys = [self._key]
        parameters.hostnames = ["127.0.0.1"]
        parameters.port = 0
        parameters.n_threads_http = HTTP_THREADS
        parameters.ui = False
        parameters.endpoint_slots = False
        try:
            self._server: Any = library.Server(parameters)
        except RuntimeError as error:
            raise EngineFailed(f"llama.cpp cannot load {settings.engine_path}: {error}") from error
        # llama.cpp stops at SIGTERM and SIGINT. Here Triton alone decides, also where a whole group is signalled.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._address = str(self._server.listening_address).removeprefix("http://")
        self._settings = settings
        properties = self._call("/props", None)
        self._end_of_text = self._tokens(properties["eos_token"])

    def start(self, request: GenerationRequest) -> LlamaGeneration:
        body = self._completion(request)
        return LlamaGeneration(self._send("/completion", body), request)

    def close(self) -> None:
        del self._server

    def _completion(self, request: GenerationRequest) -> dict[str, Any]:
        """The body of llama.cpp's /completion. Raises RequestRefused for what llama.cpp cannot do."""
        sampling = self._settings.sampling.of(request)
        if request.beam_width != 1:
            raise RequestRefused("'beam_width' must be 1: this engine has no beam search")
        if request.length_penalty != 1:
            raise RequestRefused("'length_penalty' must be 1: it belongs to beam search, which this engine lacks")
        if request.min_tokens:
            raise RequestRefused("'min_tokens' must be 0: this engine cannot keep an answer from ending")
        if request.end_id is not None and [request.end_id] != self._end_of_text:
            raise RequestRefused(f"'end_id' must be the model's own, {self._end_of_text[0]}")
        seed = secrets.randbelow(RANDOM_SEED) if request.seed is None else request.seed % RANDOM_SEED
        body = {
            "prompt": self._prompt(request.text_input),
            "n_predict": request.max_tokens,
            "stream": True,
            "seed": seed,
            # TensorRT-LLM's order, in which top_p sees the probabilities after the temperature.
            "samplers": ["penalties", "temperature", "top_k", "top_p"],
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "repeat_penalty": sampling.repetition_penalty,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            # Penalties look at the whole text, not at llama.cpp's last 64 tokens.
            "repeat_last_n": self._settings.context_tokens,
        }
        if request.return_log_probs:
            body["n_probs"] = 1
        return body | _grammar(request)

    def _prompt(self, text: str) -> str:
        if not self._settings.chat_template:
            if not text:
                raise RequestRefused("'text_input' is empty")
            return text
        messages = [{"role": "user", "content": text}]
        return self._call("/apply-template", {"messages": messages})["prompt"]

    def _tokens(self, text: str) -> list[int]:
        return self._call("/tokenize", {"content": text, "parse_special": True})["tokens"]

    def _call(self, path: str, body: Mapping[str, Any] | None) -> Any:
        try:
            with contextlib.closing(self._send(path, body)) as connection:
                return json.load(_checked(connection.getresponse()))
        except (OSError, http.client.HTTPException) as error:
            raise EngineFailed(f"llama.cpp did not answer {path}: {error}") from error

    def _send(self, path: str, body: Mapping[str, Any] | None) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(self._address, timeout=CONTROL_TIMEOUT_S)
        headers = {"Authorization": f"Bearer {self._key}", "Connection": "close"}
        text = None if body is None else json.dumps(body)
        connection.request("GET" if text is None else "POST", path, text, headers)
        return connection


class LlamaGeneration:
    """One completion, read from llama.cpp's event stream."""

    def __init__(self, connection: http.client.HTTPConnection, request: GenerationRequest) -> None:
        self._connection = connection
        # The response takes the connection's socket away; cancelling needs it from another thread.
        self._socket: socket.socket = connection.sock
        self._socket.settimeout(None)
        self._request = request
        self._cancelled = False
        self._tokens = 0

    def cancel(self) -> None:
        self._cancelled = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def __iter__(self) -> Iterator[Piece]:
        words = StopWords(self._request.stop_words)
        try:
            with contextlib.closing(_checked(self._connection.getresponse())) as response:
                for event in _events(response):
                    yield words.push(self._piece(event))
                    if words.stopped:
                        return
                    if event["stop"]:
                        yield words.flush()
                        return
            raise EngineFailed("llama.cpp ended its stream before the answer")
        except (OSError, http.client.HTTPException, EngineFailed) as error:
            if self._cancelled:
                return
            if isinstance(error, EngineFailed):
                raise
            raise EngineFailed(f"llama.cpp closed the connection: {error}") from error
        finally:
            self._connection.close()

    def _piece(self, event: Mapping[str, Any]) -> Piece:
        text: str = event["content"]
        tokens, self._tokens = event["tokens_predicted"] - self._tokens, event["tokens_predicted"]
        if not (text and self._request.return_log_probs):
            # The token that ends an answer has no text and does not count.
            return Piece(text)
        log_probs = tuple(entry["logprob"] for entry in event["completion_probabilities"])
        if len(log_probs) != tokens:
            raise RequestRefused(
                f"'return_log_probs' cannot be honoured: {text!r} fell into {tokens} tokens,"
                f" of which llama.cpp reports {len(log_probs)}; ask again without it"
            )
        return Piece(text, log_probs)


def _grammar(request: GenerationRequest) -> dict[str, Any]:
    """What keeps the answer to a guide, or free of bad words. llama.cpp takes one of them."""
    kind, guide = request.guided_decoding_guide_type, request.guided_decoding_guide
    if not kind:
        return {"grammar": grammar_without(request.bad_words)} if request.bad_words else {}
    if request.bad_words:
        raise RequestRefused("'bad_words' cannot be honoured beside a guide: this engine keeps to one of them")
    if kind == "regex":
        raise RequestRefused("'guided_decoding_guide_type' cannot be 'regex': this engine knows grammars and schemas")
    return {"grammar": guide} if kind == "ebnf_grammar" else {"json_schema": json.loads(guide or "{}")}


def _events(response: http.client.HTTPResponse) -> Iterator[Mapping[str, Any]]:
    for line in response:
        if not line.startswith((b"data:", b"error:")):
            continue
        event = json.loads(line.partition(b":")[2])
        if "error" in event:
            raise EngineFailed(f"llama.cpp failed: {event['error'].get('message')}")
        yield event


def _checked(response: http.client.HTTPResponse) -> http.client.HTTPResponse:
    if response.status == 200:
        return response
    with response:
        text = response.read().decode(errors="replace")
    try:
        error = json.loads(text)["error"]
    except (ValueError, KeyError, TypeError):
        raise EngineFailed(f"llama.cpp answered {response.status}: {text[:200]}") from None
    if error.get("type") == "exceed_context_size_error":
        raise RequestRefused(
            f"'text_input' has {error['n_prompt_tokens']} tokens; a prompt may have {error['n_ctx'] - 1}"
        )
    if response.status == 400:
        raise RequestRefused(error["message"])
    raise EngineFailed(f"llama.cpp answered {response.status}: {error['message']}")
