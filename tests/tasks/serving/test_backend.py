"""What is asked of TensorRT-LLM's C++ backend, version by version, and what becomes of its answers.

`test_serving` does this on the real Triton; here is what it cannot bring about. Calls are scripted.
"""

from __future__ import annotations

import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from packaging.version import Version

from tasks.serving.backend import BackendTokens
from tasks.serving.backend_inputs import GUIDES, SENT, backend_inputs, input_name
from tasks.serving.called import KEPT_S, ModelHere
from tasks.serving.contract import GenerationRequest, RequestRefused, Tensor
from tasks.serving.engine import EngineFailed
from tasks.serving.settings import Sampling, ServingSettings
from tasks.serving.tokens import Prompts, Tokens
from tasks.triton.backend_config import tensorrt_llm_config
from tasks.triton.protobuf import data_type, parse_config
from tasks.trtllm.releases import MINORS
from tasks.trtllm.serving import TensorRtServing
from tests.tasks.kinds.served_kinds import write_tokenizer
from tests.tasks.serving.small_tokenizers import byte_level

SETTINGS = ServingSettings(
    "tensorrt_llm", "tokenizer", 8, 512, False, 60.0, tensorrt_llm="1.2.1", max_input_tokens=300, max_beam_width=4
)
PLAIN = GenerationRequest("How are you?", 16)
FULL = GenerationRequest(
    "How are you?",
    16,
    bad_words=("bad",),
    stop_words=("STOP", "\n\n"),
    end_id=7,
    pad_id=8,
    top_k=5,
    min_tokens=3,
    top_p=0.5,
    temperature=0.7,
    repetition_penalty=1.1,
    presence_penalty=0.2,
    frequency_penalty=0.3,
    seed=2**64 - 1,
    stream=True,
    return_log_probs=True,
)
GUIDED = GenerationRequest("How?", 16, guided_decoding_guide_type="regex", guided_decoding_guide="a+")
BEAMS = GenerationRequest("How are you?", 16, beam_width=4, length_penalty=2.0)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Prompts:
    folder = write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer", byte_level().tokenizer)
    return Prompts(folder, chat_template=False, most_tokens=300)


def asked(prompts: Prompts, request: GenerationRequest, settings: ServingSettings = SETTINGS) -> dict[str, Tensor]:
    return backend_inputs(request, prompts.ids(request.text_input), prompts, settings)


@pytest.mark.parametrize("minor", MINORS)
def test_every_version_has_what_is_sent_to_it(prompts: Prompts, minor: str) -> None:
    text = tensorrt_llm_config(
        Version(f"{minor}.0"), TensorRtServing(), engine_folder="/e", max_batch_size=8, kv_cache_tokens=2560
    )
    known = {tensor.name: tensor for tensor in parse_config(text).input}
    needed = {name for name, tensor in known.items() if not tensor.optional}
    types = {
        np.dtype("int32"): "INT32",
        np.dtype("float32"): "FP32",
        np.dtype("bool"): "BOOL",
        np.dtype("uint64"): "UINT64",
        np.dtype("object"): "BYTES",
    }
    guided = Version(f"{minor}.0") >= Version("0.19")
    settings = replace(SETTINGS, tensorrt_llm=f"{minor}.0", guided_decoding=guided)
    sent = set[str]()
    for request in (PLAIN, FULL, BEAMS, *[GUIDED] * guided):
        inputs = asked(prompts, request, settings)
        assert needed <= inputs.keys() <= known.keys()
        for name, array in inputs.items():
            assert data_type(types[array.dtype]) == known[name].data_type
            dims = tuple(known[name].dims)
            assert array.shape[0] == 1 and len(array.shape) == 1 + len(dims)
            assert all(dim in (-1, size) for dim, size in zip(dims, array.shape[1:], strict=True))
        sent |= inputs.keys()
    unsent = {"stop"} if guided else {"stop", *GUIDES}
    assert sent == {input_name(name, minor) for name in SENT} - unsent


def test_a_guide_is_refused_where_the_engine_would_not_follow_it(prompts: Prompts) -> None:
    with pytest.raises(RequestRefused, match="served without guides"):
        asked(prompts, GUIDED)


def test_a_plain_request_sends_no_more_than_it_needs(prompts: Prompts) -> None:
    inputs = asked(prompts, PLAIN)
    assert {name: array.tolist() for name, array in inputs.items() if name not in ("input_ids", "seed")} == {
        "input_lengths": [[len(prompts.ids(PLAIN.text_input))]],
        "request_output_len": [[16]],
        "runtime_top_k": [[0]],
        "runtime_top_p": [[1.0]],
        "end_id": [[prompts.end_id]],
        "pad_id": [[prompts.end_id]],
        "streaming": [[True]],
    }
    assert asked(prompts, PLAIN)["seed"] != inputs["seed"]


def test_no_temperature_is_the_best_token_and_no_temperature_of_0(prompts: Prompts) -> None:
    cold = replace(SETTINGS, sampling=Sampling(temperature=0.0, top_k=50, top_p=0.9))
    for inputs in (asked(prompts, PLAIN, cold), asked(prompts, replace(PLAIN, temperature=0.0))):
        assert "temperature" not in inputs
        assert (inputs["runtime_top_k"], inputs["runtime_top_p"]) == (1, 1.0)
    assert asked(prompts, replace(PLAIN, temperature=0.5), cold)["runtime_top_k"] == 50


def test_prompt_and_answer_stay_within_the_context(prompts: Prompts) -> None:
    inputs = asked(prompts, replace(PLAIN, max_tokens=9999))
    assert inputs["request_output_len"] + inputs["input_lengths"] == SETTINGS.context_tokens


@pytest.mark.parametrize(
    ("fields", "settings", "message"),
    [
        ({"beam_width": 5}, {}, "'beam_width' is 5; this engine is served with 4 at most"),
        ({"beam_width": 2, "stream": True}, {}, "'stream' must be false with"),
        ({"length_penalty": 0.5}, {}, "'length_penalty'"),
        ({"top_k": 1025}, {}, "'top_k' is 1025"),
        ({"stream": True}, {"decoupled": False}, "'stream' must be false: this model"),
    ],
)
def test_what_the_engine_cannot_do_is_refused(
    prompts: Prompts, fields: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestRefused, match=message):
        asked(prompts, replace(PLAIN, **fields), replace(SETTINGS, **settings))


@dataclass
class Reply:
    """One response of the scripted backend."""

    ids: Sequence[int] = ()
    log_probs: Sequence[float] | None = None
    failure: str = ""

    def has_error(self) -> bool:
        return bool(self.failure)

    def error(self) -> Any:
        return SimpleNamespace(message=lambda: self.failure)

    def output_tensors(self) -> list[Any]:
        tensors: dict[str, Any] = {"output_ids": [[[*self.ids, -1]]], "sequence_length": [[len(self.ids)]]}
        if self.log_probs is not None:
            tensors["output_log_probs"] = [[self.log_probs]]
        return [_tensor(name, np.array(value)) for name, value in tensors.items()]


def _tensor(name: str, value: Tensor) -> Any:
    return SimpleNamespace(name=lambda: name, as_numpy=lambda: value)


class Backend:
    """Answers calls with `replies`, the last only once it is told to stop where `endless`; counts what it is told."""

    def __init__(self, replies: Sequence[Reply], *, endless: bool = False) -> None:
        self.replies = replies
        self.stops: list[str] = []
        self.calls = 0
        self.read = 0
        self._stopped = threading.Event()
        if not endless:
            self._stopped.set()

    def __call__(self, *, request_id: str, inputs: Sequence[Any], **_: Any) -> Any:
        def execute(**_: object) -> Iterator[Reply]:
            return self._exec(request_id, inputs)

        return SimpleNamespace(exec=execute)

    def _exec(self, request_id: str, inputs: Sequence[Any]) -> Iterator[Reply]:
        if any(tensor.name() == "stop" for tensor in inputs):
            self.stops.append(request_id)
            # The first is lost.
            if len(self.stops) > 1:
                self._stopped.set()
            return iter(())
        self.calls += 1
        return self.answers()

    def answers(self) -> Iterator[Reply]:
        for index, reply in enumerate(self.replies):
            if index == len(self.replies) - 1:
                assert self._stopped.wait(5)
            self.read += 1
            yield reply


Call = Callable[..., tuple[BackendTokens, Backend]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Call:
    def make(
        *replies: Reply,
        endless: bool = False,
        places: threading.Semaphore | None = None,
        model: ModelHere | None = None,
    ) -> tuple[BackendTokens, Backend]:
        backend = Backend(replies, endless=endless)
        library = SimpleNamespace(InferenceRequest=backend, Tensor=_tensor, TritonModelException=RuntimeError)
        monkeypatch.setitem(sys.modules, "triton_python_backend_utils", library)
        return BackendTokens(
            places or threading.Semaphore(), model or ModelHere("backend"), {}, ["output_ids"]
        ), backend

    return make


def test_log_probabilities_go_with_their_tokens_however_they_come(call: Call) -> None:
    """0.10 and later give those of all tokens so far, 0.8 may give only the new ones; an end token's comes alone."""
    wanted = [Tokens((5,), (-1.0,)), Tokens((6, 7), (-2.0, -3.0)), Tokens((), ())]
    for last in ([-1.0, -2.0, -3.0], [-1.0, -2.0, -3.0, -4.0]):
        so_far, _ = call(Reply([5], [-1.0]), Reply([6, 7], [-1.0, -2.0, -3.0]), Reply([], last))
        assert list(so_far) == wanted
    only_new, _ = call(Reply([5], [-1.0]), Reply([6, 7], [-2.0, -3.0]), Reply([], []))
    assert list(only_new) == wanted
    with pytest.raises(EngineFailed, match="1 log probabilities for 2 tokens"):
        list(call(Reply([5, 6], [-1.0]))[0])


def test_what_was_read_stays_until_the_python_backend_has_let_go_of_it(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, model = [100.0], ModelHere("backend")
    monkeypatch.setattr("tasks.serving.called.time.monotonic", lambda: clock[0])
    made: list[weakref.ref[Any]] = []
    answers = Backend.answers

    def noted(backend: Backend) -> Iterator[Reply]:
        responses = answers(backend)
        made.append(weakref.ref(responses))
        return responses

    monkeypatch.setattr(Backend, "answers", noted)
    for seconds, alive in ((0, [True]), (KEPT_S, [True, True]), (1, [False, True, True])):
        clock[0] += seconds
        assert list(call(Reply([5]), model=model)[0]) == [Tokens((5,))]
        assert [responses() is not None for responses in made] == alive


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Prompt length (9) exceeds maximum input length (8).", RequestRefused),
        ("Assertion failed: Incorrect sampling config", RequestRefused),
        ("CUDA error: out of memory", EngineFailed),
    ],
)
def test_failures_blame_whom_they_concern_and_are_read_to_the_end(call: Call, text: str, kind: type[Exception]) -> None:
    tokens, backend = call(Reply([5]), Reply(failure=text), Reply([6]))
    with pytest.raises(kind, match=r"length|config|memory"):
        list(tokens)
    assert backend.read == 3


def test_a_cancelled_request_is_told_to_stop_until_it_ends(call: Call) -> None:
    tokens, backend = call(Reply([5]), Reply([6]), endless=True)
    found = iter(tokens)
    assert next(found).ids == (5,)
    for _ in range(3):
        tokens.cancel()
    assert list(found) == []
    assert len(backend.stops) == 2 and len(set(backend.stops)) == 1
    assert backend.stops[0].isdigit()
    tokens.cancel()
    time.sleep(0.2)
    assert len(backend.stops) == 2


def test_whoever_stops_reading_frees_the_place(call: Call) -> None:
    tokens, backend = call(Reply([5]), Reply([6]), Reply([7]), endless=True)
    for _ in tokens:
        break
    assert backend.stops and backend.read == 3


def test_what_is_cancelled_before_its_turn_is_never_asked(call: Call) -> None:
    places = threading.Semaphore(0)
    tokens, backend = call(Reply([5]), places=places)
    thread = threading.Thread(target=lambda: list(tokens))
    thread.start()
    tokens.cancel()
    places.release()
    thread.join(5)
    assert not thread.is_alive()
    assert (backend.calls, backend.stops) == (0, [])


def test_what_triton_does_not_take_is_a_failure(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, backend = call()

    def refuse(*_: object) -> Iterator[Reply]:
        raise RuntimeError("no such model")

    monkeypatch.setattr(backend, "_exec", refuse)
    with pytest.raises(EngineFailed, match="'backend': no such model"):
        list(tokens)
