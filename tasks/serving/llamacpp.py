"""The engine `llamacpp`: llama.cpp's server in a child process, by `xllamacpp`.

Its continuous batching, streaming and templates are reached by its own HTTP interface on loopback, behind a key
made at every start. Only there does llama.cpp tokenize, render a template, and drop a request that still waits for
a slot (its connection closes). And only its process can be ended where a request holds it for ever.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import socket
import threading
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from .contract import GenerationRequest, RequestRefused, check_length
from .engine import EngineFailed, EngineUnavailable, Piece
from .llama_server import LlamaServer, LlamaServers, checked
from .settings import ServingSettings
from .words import StopWords, grammar_without

RANDOM_SEED = 2**32 - 1
"""llama.cpp's seeds have 32 bits, and this one means random (LLAMA_DEFAULT_SEED in llama.h)."""

MAX_FOLLOWED = 100
"""Schemas that are remembered as ones that this model's engine follows; others cost a token more."""

_NO_JSON = "A"
"""Text that no JSON begins with, and a token of nearly every vocabulary."""


class LlamaCpp:
    """A GGUF file, loaded. Raises EngineFailed where llama.cpp cannot load it."""

    def __init__(self, folder: Path, settings: ServingSettings) -> None:
        self._settings = settings
        self._servers = LlamaServers(
            {
                "model": str(folder / settings.engine_path),
                "slots": settings.slots,
                "context_tokens": settings.context_tokens,
                "threads": settings.threads or len(os.sched_getaffinity(0)),
            }
        )
        server = self._servers.get()
        end_of_text = server.call("/props", None)["eos_token"]
        self._end_of_text = server.call("/tokenize", {"content": end_of_text, "parse_special": True})["tokens"]
        pieces = server.call("/tokenize", {"content": _NO_JSON, "add_special": False, "with_pieces": True})["tokens"]
        self._no_json: int = pieces[-1]["id"]
        self._check_followed = lru_cache(MAX_FOLLOWED)(self._check_schema)

    def start(self, request: GenerationRequest) -> LlamaGeneration:
        body = self._completion(request)
        body["prompt"] = self._prompt(request.text_input)
        if request.guided_decoding_guide_type == "json_schema":
            self._check_followed(request.guided_decoding_guide)
        return LlamaGeneration(self._servers, body, request)

    def close(self) -> None:
        self._servers.close()

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

    def _check_schema(self, schema: str) -> None:
        """Raise RequestRefused for a schema that llama.cpp drops with a line in its log, and answers without.

        So it does with each that it does not know in full. The likeliest token here is one that no JSON begins with:
        where the schema is followed, it does not come.
        """
        body = {
            "prompt": _NO_JSON,
            "n_predict": 1,
            "stream": True,
            "temperature": 0,
            "logit_bias": [[self._no_json, 1000.0]],
            "json_schema": json.loads(schema),
        }
        asked = GenerationRequest("", 1, guided_decoding_guide_type="json_schema", guided_decoding_guide=schema)
        if "".join(piece.text for piece in LlamaGeneration(self._servers, body, asked)).strip() == _NO_JSON:
            raise RequestRefused(
                "'guided_decoding_guide' cannot be honoured: this engine does not know every keyword or format of the"
                " schema, or nothing is valid by it"
            )

    def _prompt(self, text: str) -> str:
        check_length(text, self._settings.most_prompt_tokens)
        if not self._settings.chat_template:
            if not text:
                raise RequestRefused("'text_input' is empty")
            return text
        messages = {"messages": [{"role": "user", "content": text}]}
        try:
            return self._servers.get().call("/apply-template", messages)["prompt"]
        except EngineUnavailable:
            # It ended of another request.
            return self._servers.get().call("/apply-template", messages)["prompt"]


class LlamaGeneration:
    """One completion, read from llama.cpp's event stream; from the next server's, where the first one ended before."""

    def __init__(self, servers: LlamaServers, body: Mapping[str, Any], request: GenerationRequest) -> None:
        self._servers = servers
        self._body = body
        self._request = request
        self._lock = threading.Lock()
        self._cancelled = False
        self._socket: socket.socket | None = None
        self._tokens = 0
        self._guided = "grammar" in body or "json_schema" in body

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def __iter__(self) -> Iterator[Piece]:
        begun = False
        for last in (False, True):
            server = self._servers.get()
            try:
                pieces = self._read(server)
                # Who wants no stream hears nothing of an answer that was begun in vain.
                for piece in pieces if self._request.stream else list(pieces):
                    begun = True
                    yield piece
                return
            except EngineUnavailable:
                if self._cancelled:
                    return
                # Schemas are followed within bounds of their own (llguidance's), so grammars are blamed first.
                suspect = "grammar" in self._body or (last and self._guided)
                if suspect and server.stuck:
                    raise RequestRefused(_stuck(self._request)) from None
                # Whoever may have ended one server does not get to end the next.
                if begun or last or suspect:
                    raise

    def _read(self, server: LlamaServer) -> Iterator[Piece]:
        words, self._tokens = StopWords(self._request.stop_words), 0
        with contextlib.ExitStack() as open_until_read:
            if self._guided:
                open_until_read.enter_context(server.guided())
            try:
                connection = open_until_read.enter_context(contextlib.closing(server.send("/completion", self._body)))
                if not self._watch(connection):
                    return
                response = open_until_read.enter_context(contextlib.closing(checked(connection.getresponse())))
                for event in _events(response):
                    yield words.push(self._piece(event))
                    if words.stopped:
                        return
                    if event["stop"]:
                        yield words.flush()
                        return
                raise OSError("the stream ended before the answer")
            except (OSError, http.client.HTTPException) as error:
                if not self._cancelled:
                    raise server.failed(f"llama.cpp closed the connection: {error}") from error

    def _watch(self, connection: http.client.HTTPConnection) -> bool:
        """Let `cancel` reach the connection, whose socket the response takes away. False where it came before."""
        with self._lock:
            self._socket = taken = cast(socket.socket, connection.sock)
            taken.settimeout(None)
            return not self._cancelled

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


def _stuck(request: GenerationRequest) -> str:
    named = "guided_decoding_guide" if request.guided_decoding_guide_type else "bad_words"
    return (
        f"'{named}' cannot be honoured: for one token it, or the guide of another request at that moment, took"
        f" seconds, so the engine was started again; a grammar must not go on in too many ways at once"
    )


def _events(response: http.client.HTTPResponse) -> Iterator[Mapping[str, Any]]:
    for line in response:
        if not line.startswith((b"data:", b"error:")):
            continue
        event = json.loads(line.partition(b":")[2])
        if "error" in event:
            raise EngineFailed(f"llama.cpp failed: {event['error'].get('message')}")
        yield event
