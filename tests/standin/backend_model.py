"""A stand-in for the model of TensorRT-LLM's C++ backend: a Python model with the very same inputs and outputs.

It refuses what the real one refuses, in the same words as far as they are known (tensorrtllm_backend 0.8 to 0.19,
`inflight_batcher_llm/src`; TensorRT-LLM's `llmRequest.h` and `samplingConfig.cpp`). It runs requests in flight, up to
the engine's batch size at once, and obeys the stop request. Only its answers are made up: see `backend_sampler`.

Its "engine" is a folder with the real `config.json`. `standin.json`, in that folder or beside this file, holds
`corpus` (texts as tokens), `pieces` (the texts of the tokens) and `token_seconds` (the time of one step of the batch).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import triton_python_backend_utils as triton  # pyright: ignore[reportMissingImports]

from .backend_lora import LoraCache, LoraRefused
from .backend_sampler import Beam, NGrams, Wanted, adapter_logits, generate
from .guide import Guide

_triton: Any = triton
_FINAL = _triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class Refused(Exception):
    """A request that the real backend answers with an error."""


@dataclass
class Running:
    """A request in the batch, or waiting for a place in it."""

    number: str
    sender: Any
    streaming: bool
    log_probs: bool
    wanted: Wanted
    beams: Iterator[list[Beam]]
    adapter: int | None = None
    """The id of its adapter."""
    guessed: list[int] = field(default_factory=list[int])
    sent: int = 0
    last: Sequence[Beam] = (Beam(),)
    stopped: bool = False


class TritonPythonModel:
    """Triton's interface to a decoupled Python model."""

    def initialize(self, args: dict[str, str]) -> None:
        _abort_if_asked()
        config = json.loads(args["model_config"])
        self._decoupled: bool = config["model_transaction_policy"]["decoupled"]
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        folder = Path(parameters["gpt_model_path"])
        engine = json.loads((folder / "config.json").read_text())
        own_file = folder / "standin.json"
        own = json.loads((own_file if own_file.is_file() else Path(__file__).with_name(own_file.name)).read_text())
        self._world = _join_world(engine["pretrained_config"].get("mapping", {}), folder)
        build = engine["build_config"]
        self._minor = tuple(map(int, engine["version"].split(".")[:2]))
        self._max_sequence = build.get("max_seq_len") or build["max_input_len"] + build["max_output_len"]
        self._max_input = _max_input(build, self._minor, self._max_sequence, parameters)
        self._max_batch, self._max_beams = build["max_batch_size"], int(parameters["max_beam_width"])
        if self._max_beams > build["max_beam_width"]:
            raise ValueError(f"max_beam_width {self._max_beams}, and the engine has {build['max_beam_width']}")
        self._exclude_input = parameters["exclude_input_in_output"].lower() == "true"
        _check_decoding(parameters, engine, self._minor)
        external = build.get("speculative_decoding_mode") == _DRAFT_TOKENS_EXTERNAL
        self._drafts: int = build["max_draft_len"] if external else 0
        self._guided = parameters.get("guided_decoding_backend") == "xgrammar"
        self._pieces: list[str] = own["pieces"]
        self._seconds: float = own["token_seconds"]
        self._model = NGrams(own["corpus"], engine["pretrained_config"]["vocab_size"])
        self._vocabulary: int = engine["pretrained_config"]["vocab_size"]
        self._adapters = LoraCache(self._minor, engine, int(parameters.get("lora_cache_host_memory_bytes") or 2**30))
        self._lock = threading.Condition()
        self._waiting: deque[Running] = deque()
        self._batch: list[Running] = []
        self._closed = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def execute(self, requests: Sequence[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._enqueue(request, sender)
            except Refused as error:
                _fail(sender, str(error))

    def finalize(self) -> None:
        with self._lock:
            self._closed = True
            self._lock.notify()
        self._thread.join()

    def _enqueue(self, request: Any, sender: Any) -> None:
        tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        types = {tensor.name(): _type_name(tensor) for tensor in request.inputs()}
        number = request.request_id()
        if "stop" in tensors and tensors["stop"].item():
            self._stop(number)
            sender.send(flags=_FINAL)
            return
        if not {"output_ids", "sequence_length"} <= set(request.requested_output_names()):
            raise Refused("output_ids tensor must be present in list of output tensors")
        streaming = "streaming" in tensors and bool(tensors["streaming"].item())
        if streaming and not self._decoupled:
            raise Refused("Streaming is only supported if model is deployed using decoupled mode.")
        wanted = self._wanted(tensors, streaming)
        log_probs = "return_log_probs" in tensors and bool(tensors["return_log_probs"].item())
        with self._lock:
            # Later versions have numbers of their own.
            if self._minor < (0, 10) and any(one.number == number for one in (*self._batch, *self._waiting)):
                raise Refused(f"requestId {number} is already in progress, request is ignored.")
            running = {one.adapter for one in (*self._batch, *self._waiting) if one.adapter is not None}
            try:
                adapter = self._adapters.of(tensors, types, running)
            except LoraRefused as error:
                raise Refused(str(error)) from error
            if adapter is not None:
                wanted.adapter = adapter_logits(adapter, self._vocabulary)
            beams = generate(self._model, wanted)
            guessed = self._guessed(tensors, wanted)
            self._waiting.append(
                Running(
                    number,
                    sender,
                    streaming,
                    log_probs,
                    wanted,
                    beams,
                    None if adapter is None else int(tensors["lora_task_id"].item()),
                    guessed,
                )
            )
            self._lock.notify()

    def _guessed(self, tensors: dict[str, Any], wanted: Wanted) -> list[int]:
        """The guesses of a draft model, cut to what the engine takes, as llmRequest.h cuts them."""
        if "draft_input_ids" not in tensors:
            return []
        guessed: list[int] = tensors["draft_input_ids"][0].tolist()
        if len(guessed) > self._drafts:
            raise Refused(f"Draft tokens length ({len(guessed)}) exceeds maximum draft length ({self._drafts}).")
        if wanted.beam_width > 1:
            raise Refused("[TensorRT-LLM][ERROR] Assertion failed: draft tokens do not go with beam search")
        return guessed[: max(0, self._max_input - len(wanted.prompt))]

    def _stop(self, number: str) -> None:
        if not number:
            raise Refused("Trying to stop a request but request ID is not provided")
        with self._lock:
            known = [one for one in (*self._batch, *self._waiting) if one.number == number]
        for one in known:
            one.stopped = True
        if not known and self._minor < (0, 10):
            raise Refused(
                f"Received stop request for requestId {number} but it's not active (might be completed already)."
            )

    def _wanted(self, tensors: dict[str, Any], streaming: bool) -> Wanted:
        for name in ("input_ids", "input_lengths", "request_output_len"):
            if name not in tensors:
                raise Refused(f"{name} is not present in the request.")
        if len(tensors["input_ids"]) != 1:
            raise Refused("the stand-in takes a batch of 1")
        prompt = tensors["input_ids"][0].tolist()
        if tensors["input_lengths"].item() != len(prompt):
            raise Refused(f"input_lengths is {tensors['input_lengths'].item()} for {len(prompt)} input_ids")
        if len(prompt) > self._max_input:
            raise Refused(f"Prompt length ({len(prompt)}) exceeds maximum input length ({self._max_input}).")
        early = self._minor < (0, 20)
        names = {
            "end_id": "end_id",
            "runtime_top_k": "top_k",
            "runtime_top_p": "top_p",
            "temperature": "temperature",
            "repetition_penalty": "repetition_penalty",
            "presence_penalty": "presence_penalty",
            "frequency_penalty": "frequency_penalty",
            "min_length" if early else "min_tokens": "min_tokens",
            "random_seed" if early else "seed": "seed",
            "beam_width": "beam_width",
            "len_penalty": "length_penalty",
        }
        given: dict[str, Any] = {ours: tensors[name].item() for name, ours in names.items() if name in tensors}
        for name, words in (("stop_words_list", "stop_words"), ("bad_words_list", "bad_words")):
            if name in tensors:
                given[words] = _word_lists(tensors[name].reshape(-1).tolist())
        room = self._max_sequence - len(prompt)
        wanted = Wanted(prompt, min(tensors["request_output_len"].item(), room), **given)
        self._check(wanted, streaming)
        if "guided_decoding_guide_type" in tensors:
            wanted.guide = self._guide(tensors, wanted)
        return wanted

    def _guide(self, tensors: dict[str, Any], wanted: Wanted) -> Guide:
        # Without a backend for guides the real one answers without a guide, which a test would not notice.
        if not self._guided:
            raise Refused("a guide for a model that has no guided decoding")
        kind, guide = (
            tensors[name].item().decode() if name in tensors else ""
            for name in ("guided_decoding_guide_type", "guided_decoding_guide")
        )
        try:
            return Guide(kind, guide, self._pieces, wanted.end_id)
        except ValueError as error:
            raise Refused(str(error)) from error

    def _check(self, wanted: Wanted, streaming: bool) -> None:
        for holds, text in (
            (0 <= wanted.top_p <= 1, "topP.value() <= 1.f"),
            (wanted.top_k >= 0, "topK.value() >= 0"),
            # Stricter than most versions, which divide by it.
            (wanted.temperature > 0, "temperature.value() > 0.f"),
            (wanted.repetition_penalty > 0, "penalty.value() > 0.f"),
            (wanted.min_tokens >= 0, "minTokens.value() >= 0"),
            (1 <= wanted.beam_width <= self._max_beams, f"beamWidth <= maxBeamWidth ({self._max_beams})"),
            (wanted.beam_width == 1 or not streaming, "streaming does not go with beam search"),
        ):
            if not holds:
                raise Refused(f"[TensorRT-LLM][ERROR] Assertion failed: {text}")

    def _run(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._closed or self._waiting or self._batch)
                if self._closed:
                    return
                while self._waiting and len(self._batch) < self._max_batch:
                    self._batch.append(self._waiting.popleft())
                batch = list(self._batch)
            for one in batch:
                if self._step(one):
                    with self._lock:
                        self._batch.remove(one)
            time.sleep(self._seconds)

    def _step(self, one: Running) -> bool:
        """Give a request one more token. Returns whether it was the last."""
        beams = None if one.stopped else next(one.beams, None)
        if beams is not None:
            one.last = beams
            # What was guessed right is said in one step, and one token more.
            while one.guessed and not beams[0].ended and beams[0].ids[-1] == one.guessed[len(beams[0].ids) - 1]:
                if len(beams[0].ids) == len(one.guessed):
                    one.guessed = []
                if (further := next(one.beams, None)) is None:
                    break
                one.last = beams = further
            if one.guessed:
                self._send(one, final=True)
                return True
            ended = all(beam.ended for beam in beams) or len(beams[0].ids) == one.wanted.max_tokens
            if not ended and not one.streaming:
                return False
        else:
            ended = True
        self._send(one, final=ended)
        return ended

    def _send(self, one: Running, *, final: bool) -> None:
        ids = [list(beam.ids) for beam in one.last]
        log_probs = [list(beam.log_probs) for beam in one.last]
        if self._minor >= (0, 10):
            # Up to 0.9 an answer holds the token that ends it; later it does not.
            ids = [beam[:-1] if beam[-1:] == [one.wanted.end_id] else beam for beam in ids]
        total = max(map(len, ids))
        if one.streaming:
            ids = [beam[one.sent :] for beam in ids]
            if self._minor < (0, 10):
                log_probs = [beam[one.sent :] for beam in log_probs]
            one.sent = total
        elif not self._exclude_input:
            ids = [one.wanted.prompt + beam for beam in ids]
        tensors = [
            ("output_ids", _padded(ids, -1, np.int32)),
            ("sequence_length", np.array([[len(beam) for beam in ids]], dtype=np.int32)),
        ]
        if one.log_probs:
            tensors.append(("output_log_probs", _padded(log_probs, 0, np.float32)))
            sums = [sum(beam.log_probs) for beam in one.last]
            tensors.append(("cum_log_probs", np.array([sums], dtype=np.float32)))
        one.sender.send(
            _triton.InferenceResponse([_triton.Tensor(name, value) for name, value in tensors]),
            flags=_FINAL if final else 0,
        )


def _max_input(build: dict[str, Any], minor: tuple[int, ...], max_sequence: int, parameters: dict[str, str]) -> int:
    """As `TrtGptModel` logs it at its start; a prompt that is not cut into chunks goes through one pass."""
    tokens: int = build.get("max_num_tokens") or build["max_input_len"]
    if parameters.get("enable_chunked_context", "").lower() == "true":
        return max_sequence - 1
    return min(max_sequence - 1, tokens) if minor >= (0, 12) else min(build["max_input_len"], tokens)


def _type_name(tensor: Any) -> str:
    """Triton's name of a tensor's type, as far as adapters are concerned."""
    return {"float16": "FP16", "float32": "FP32", "int32": "INT32"}.get(tensor.as_numpy().dtype.name, "")


_DRAFT_TOKENS_EXTERNAL = 2
_DECODING_MODES = {
    (0, 0): (),
    (0, 9): ("top_k", "top_p", "top_k_top_p", "beam_search"),
    (0, 10): ("top_k", "top_p", "top_k_top_p", "beam_search", "medusa"),
    (0, 16): ("top_k", "top_p", "top_k_top_p", "beam_search", "medusa", "redrafter", "lookahead", "eagle"),
}
_MODES = {4: "medusa", 8: "lookahead", 16: "redrafter", 32: "eagle"}


def _check_decoding(parameters: dict[str, str], engine: dict[str, Any], minor: tuple[int, ...]) -> None:
    """Whether the decoding mode is one of the version, and that of the engine.

    Stricter than the real one, which warns of an unknown mode, and of heads that nobody asked for.
    """
    mode = parameters.get("decoding_mode", "")
    known = _DECODING_MODES[max(first for first in _DECODING_MODES if first <= minor)]
    if mode and mode not in known:
        raise ValueError(f"Decoding mode string is invalid (must be one of the {{{', '.join(known)}}}).")
    needed = _MODES.get(engine["build_config"].get("speculative_decoding_mode", 1), "")
    if needed and minor >= (0, 10) and mode != needed:
        raise ValueError(f"[TensorRT-LLM][ERROR] the engine was built for {needed}, and decoding_mode is '{mode}'")
    if mode == "lookahead":
        sizes = [parameters.get(f"lookahead_{name}", "") for name in ("window_size", "ngram_size")]
        if not all(sizes) or not parameters.get("lookahead_verification_set_size"):
            raise ValueError("[TensorRT-LLM][ERROR] lookahead parameters are not specified")


def _abort_if_asked() -> None:
    """If a file `abort` lies beside this one, write its text to the log, remove it and end Triton."""
    abort = Path(__file__).with_name("abort")
    if abort.is_file():
        print(f"[TensorRT-LLM][ERROR] {abort.read_text()}", file=sys.stderr, flush=True)
        abort.unlink()
        os.kill(os.getppid(), signal.SIGKILL)


def _join_world(mapping: dict[str, int], engine: Path) -> list[socket.socket]:
    """Become a rank of the engine's world. Each rank must have its file, but a test's engine may have no ranks at all.

    In ranks above the first it does not return, and they end when the first does. With an orchestrator only the first
    exists: nothing stands in for its workers.
    """
    tensor, pipeline, parts = (mapping.get(name, 1) for name in ("tp_size", "pp_size", "cp_size"))
    ranks = tensor * pipeline * parts
    for path in (engine / f"rank{rank}.engine" for rank in range(ranks if mapping else 0)):
        if not path.is_file():
            raise ValueError(f"[TensorRT-LLM][ERROR] Assertion failed: Error opening engine file: {path}")
    if os.environ.get("TRTLLM_ORCHESTRATOR") == "1":
        return []
    # The real backend runs in Triton's process. Interpreters of models do not get its variables of ranks.
    lines = Path(f"/proc/{os.getppid()}/environ").read_text().split("\0")
    variables = dict(line.split("=", 1) for line in lines if "=" in line)
    size, rank = int(variables.get("OMPI_COMM_WORLD_SIZE", "1")), int(variables.get("OMPI_COMM_WORLD_RANK", "0"))
    if size != ranks:
        raise ValueError(
            f"[TensorRT-LLM][ERROR] Assertion failed: MPI size {size} != TP size {tensor} * PP size {pipeline} * CP "
            f"Size {parts}"
        )
    if rank > 0:
        _follow(f"\0{variables['PMIX_NAMESPACE']}-{rank}")
    return [_reach(f"\0{variables['PMIX_NAMESPACE']}-{other}") for other in range(1, ranks)]


def _follow(name: str) -> NoReturn:
    """Wait for the first rank's first load, and then for its end."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()
        leader, _ = listener.accept()
    leader.recv(1)
    raise RuntimeError("the first rank has gone")


def _reach(name: str) -> socket.socket:
    until = time.monotonic() + 20
    while True:
        rank = socket.socket(socket.AF_UNIX)
        try:
            rank.connect(name)
            return rank
        except OSError as error:
            rank.close()
            if time.monotonic() > until:
                raise ValueError(f"[TensorRT-LLM][ERROR] a rank does not answer: {name[1:]}") from error
            time.sleep(0.05)


def _word_lists(sparse: list[int]) -> list[list[int]]:
    """The words of a sparse list: their tokens one after the other, then the end of each, and -1 after the last end."""
    if len(sparse) % 2:
        raise Refused(f"Sparse list must not have odd length: {sparse}")
    tokens, ends = sparse[: len(sparse) // 2], sparse[len(sparse) // 2 :]
    words: list[list[int]] = []
    start = 0
    for index, end in enumerate(ends):
        if end == -1:
            if any(other != -1 for other in ends[index:]):
                raise Refused(f"Sparse list must not have additional -1s: {sparse}")
            break
        if end > len(tokens):
            raise Refused(f"Sparse list must not have out-of-bound offsets: {sparse}")
        if end <= start:
            raise Refused(f"Sparse list must not have non-increasing offsets: {sparse}")
        words.append(tokens[start:end])
        start = end
    return words


def _padded(rows: Sequence[Sequence[float]], filler: float, dtype: Any) -> Any:
    array = np.full((1, len(rows), max(map(len, rows))), filler, dtype=dtype)
    for target, row in zip(array[0], rows, strict=True):
        target[: len(row)] = row
    return array


def _fail(sender: Any, message: str) -> None:
    error = _triton.TritonError(message, _triton.TritonError.INTERNAL)
    sender.send(_triton.InferenceResponse(error=error), flags=_FINAL)
