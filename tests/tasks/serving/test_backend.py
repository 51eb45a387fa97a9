"""What is asked of TensorRT-LLM's C++ backend, version by version, and what becomes of its answers.

`test_serving` does this on the real Triton; here is what it cannot bring about. Calls are scripted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.version import Version

from tasks.serving.backend import TensorRtLlm, tokens_of
from tasks.serving.backend_inputs import (
    ADAPTERS,
    ALWAYS_SENT,
    DRAFTS,
    GUIDES,
    SENT,
    adapter_inputs,
    as_input,
    backend_inputs,
    input_name,
    save_adapter,
)
from tasks.serving.called import CALLED_MODEL, Response
from tasks.serving.contract import GenerationRequest, RequestRefused, Tensor
from tasks.serving.engine import EngineFailed, Piece
from tasks.serving.mailbox import Mailbox
from tasks.serving.settings import Sampling, ServingSettings
from tasks.serving.tokens import Prompts, Tokens
from tasks.triton.backend_config import tensorrt_llm_config
from tasks.triton.protobuf import data_type, parse_config
from tasks.trtllm.releases import MINORS
from tasks.trtllm.serving import TensorRtServing
from tests.tasks.kinds.served_kinds import write_tokenizer
from tests.tasks.serving.small_tokenizers import byte_level
from tests.tasks.serving.turns import ANSWER, GEMMA, QUESTION, TURNS, Family

SETTINGS = ServingSettings(
    "tensorrt_llm", "tokenizer", 8, 512, False, 60.0, tensorrt_llm="1.2.1", max_input_tokens=300, max_beam_width=4
)
PLAIN = GenerationRequest("How are you?", max_tokens=16)
FULL = GenerationRequest(
    "How are you?",
    max_tokens=16,
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
GUIDED = GenerationRequest("How?", max_tokens=16, guided_decoding_guide_type="regex", guided_decoding_guide="a+")
BEAMS = GenerationRequest("How are you?", max_tokens=16, beam_width=4, length_penalty=2.0)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Prompts:
    folder = write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer", byte_level().tokenizer)
    return Prompts(folder, chat_template=False, most_tokens=300)


def asked(prompts: Prompts, request: GenerationRequest, settings: ServingSettings = SETTINGS) -> dict[str, Tensor]:
    return backend_inputs(request, prompts.ids(request), prompts, settings)


@pytest.mark.parametrize("minor", MINORS)
def test_every_version_has_what_is_sent_to_it(prompts: Prompts, minor: str, tmp_path: Path) -> None:
    text = tensorrt_llm_config(
        Version(f"{minor}.0"), TensorRtServing(), engine_folder="/e", max_batch_size=8, kv_cache_tokens=2560
    )
    known = {tensor.name: tensor for tensor in parse_config(text).input}
    needed = {name for name, tensor in known.items() if not tensor.optional}
    types = {
        np.dtype("int32"): "INT32",
        np.dtype("float16"): "FP16",
        np.dtype("float32"): "FP32",
        np.dtype("bool"): "BOOL",
        np.dtype("uint64"): "UINT64",
        np.dtype("object"): "BYTES",
    }
    guided = Version(f"{minor}.0") >= Version("0.19")
    settings = replace(SETTINGS, tensorrt_llm=f"{minor}.0", guided_decoding=guided)
    sent = set[str]()
    adapted = minor != "0.8"
    save_adapter(tmp_path, np.zeros((3, 8), np.float16), np.zeros((3, 3), np.int32))
    adapter = {"lora_task_id": as_input("lora_task_id", 1), **adapter_inputs(tmp_path)} if adapted else {}
    for request in (PLAIN, FULL, BEAMS, *[GUIDED] * guided):
        inputs = asked(prompts, request, settings) | adapter
        assert needed <= inputs.keys() <= known.keys()
        for name, array in inputs.items():
            assert data_type(types[array.dtype]) == known[name].data_type
            dims = tuple(known[name].dims)
            assert array.shape[0] == 1 and len(array.shape) == 1 + len(dims)
            assert all(dim in (-1, size) for dim, size in zip(dims, array.shape[1:], strict=True))
        sent |= inputs.keys()
    unsent = {"stop", *DRAFTS, *(() if guided else GUIDES), *(() if adapted else ADAPTERS)}
    assert sent == {input_name(name, minor) for name in SENT} - unsent


def test_a_guide_is_refused_where_the_engine_would_not_follow_it(prompts: Prompts) -> None:
    with pytest.raises(RequestRefused, match="served without guides"):
        asked(prompts, GUIDED)


def test_a_plain_request_sends_no_more_than_it_needs(prompts: Prompts) -> None:
    inputs = asked(prompts, PLAIN)
    assert {name: array.tolist() for name, array in inputs.items() if name not in ("input_ids", "seed")} == {
        "input_lengths": [[len(prompts.ids(PLAIN))]],
        "request_output_len": [[16]],
        "runtime_top_k": [[0]],
        "runtime_top_p": [[1.0]],
        "end_id": [[*prompts.end_ids]],
        "pad_id": [[*prompts.end_ids]],
        "streaming": [[True]],
    }
    assert asked(prompts, PLAIN)["seed"] != inputs["seed"]


def test_no_temperature_is_the_best_token_and_no_temperature_of_0(prompts: Prompts) -> None:
    cold = replace(SETTINGS, sampling=Sampling(temperature=0.0, top_k=50, top_p=0.9))
    for inputs in (asked(prompts, PLAIN, cold), asked(prompts, replace(PLAIN, temperature=0.0))):
        assert "temperature" not in inputs
        assert (inputs["runtime_top_k"], inputs["runtime_top_p"]) == (1, 1.0)
    assert asked(prompts, replace(PLAIN, temperature=0.5), cold)["runtime_top_k"] == 50


@pytest.fixture(scope="module", params=TURNS)
def family(request: pytest.FixtureRequest) -> Family:
    return TURNS[request.param]


@pytest.fixture(scope="module")
def engine(family: Family, tmp_path_factory: pytest.TempPathFactory) -> TensorRtLlm:
    """An engine of a family, without its model."""
    family.write(folder := tmp_path_factory.mktemp(family.name) / "tokenizer")
    return TensorRtLlm(folder.parent, replace(SETTINGS, chat_template=True), {CALLED_MODEL: "backend"})


def test_every_end_of_the_model_is_told_to_the_engine(engine: TensorRtLlm, family: Family) -> None:
    prompts = engine._prompts  # pyright: ignore[reportPrivateUsage]
    eos, *others = family.end_ids
    inputs = asked(prompts, PLAIN)
    assert inputs["end_id"] == eos
    assert inputs["stop_words_list"].tolist() == [[others, [*range(1, len(others) + 1)]]]
    # Clients that always send an end_id send the tokenizer's.
    assert asked(prompts, replace(PLAIN, end_id=eos))["stop_words_list"].tolist() == inputs["stop_words_list"].tolist()
    own = asked(prompts, replace(PLAIN, end_id=7))
    assert own["end_id"] == 7 and "stop_words_list" not in own
    tokens, ends = asked(prompts, replace(PLAIN, stop_words=("STOP",)))["stop_words_list"][0].tolist()
    assert tokens[-len(others) :] == others and len([end for end in ends if end >= 0]) > len(others)


def test_a_tokenizer_without_an_end_takes_that_of_the_generation_config(tmp_path: Path) -> None:
    folder = GEMMA.write(tmp_path / "tokenizer", eos_token=None)
    prompts = Prompts(folder, chat_template=True, most_tokens=300)
    assert asked(prompts, PLAIN)["end_id"] == asked(prompts, PLAIN)["pad_id"] == 1
    (folder / "generation_config.json").write_text("{}")
    endless = Prompts(folder, chat_template=True, most_tokens=300)
    assert not {"end_id", "pad_id", "stop_words_list"} & asked(endless, PLAIN).keys()


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


def response(ids: Sequence[int], log_probs: Sequence[float] | None = None) -> Response:
    """As the backend gives it: `output_ids` may be longer than what counts."""
    tensors = {"output_ids": np.array([[[*ids, -1]]]), "sequence_length": np.array([[len(ids)]])}
    if log_probs is not None:
        tensors["output_log_probs"] = np.array([[log_probs]])
    return Response("", tensors)


def read(*responses: Response) -> list[Tokens]:
    """The tokens of responses that came one after the other."""

    async def reading() -> list[Tokens]:
        mailbox: Mailbox[Response] = Mailbox()
        for each in responses:
            mailbox.put(each)
        mailbox.end()
        return [tokens async for batch in tokens_of(mailbox) for tokens in batch]

    return asyncio.run(reading())


def test_log_probabilities_go_with_their_tokens_however_they_come() -> None:
    """0.10 and later give those of all tokens so far, 0.8 may give only the new ones; an end token's comes alone."""
    wanted = [Tokens((5,), (-1.0,)), Tokens((6, 7), (-2.0, -3.0)), Tokens((), ())]
    for last in ([-1.0, -2.0, -3.0], [-1.0, -2.0, -3.0, -4.0]):
        assert read(response([5], [-1.0]), response([6, 7], [-1.0, -2.0, -3.0]), response([], last)) == wanted
    assert read(response([5], [-1.0]), response([6, 7], [-2.0, -3.0]), response([], [])) == wanted
    with pytest.raises(EngineFailed, match="1 log probabilities for 2 tokens"):
        read(response([5, 6], [-1.0]))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Prompt length (9) exceeds maximum input length (8).", RequestRefused),
        ("Assertion failed: Incorrect sampling config", RequestRefused),
        ("CUDA error: out of memory", EngineFailed),
    ],
)
def test_failures_blame_whom_they_concern(text: str, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"length|config|memory"):
        read(response([5]), Response(text, {}))


class Endless:
    """A model whose answer ends once it was told to stop twice: the first time is lost."""

    def __init__(self, *responses: Response) -> None:
        self.mailbox: Mailbox[Response] = Mailbox()
        self.ids: list[str] = []
        self._responses = responses

    def call(self, request_id: str, inputs: object, outputs: object) -> Mailbox[Response]:
        self.ids.append(request_id)
        for each in self._responses:
            self.mailbox.put(each)
        return self.mailbox

    async def call_alone(self, request_id: str, inputs: dict[str, Tensor], outputs: object) -> AsyncGenerator[Response]:
        assert inputs.keys() == {*ALWAYS_SENT, "stop"}
        self.ids.append(request_id)
        if len(self.ids) > 2:
            self.mailbox.end()
        return
        yield Response("", {})

    async def close(self) -> None: ...


@pytest.mark.parametrize("leaves", ["reads no more", "is cancelled"])
def test_who_leaves_has_the_backend_told_until_it_ends(prompts: Prompts, tmp_path: Path, leaves: str) -> None:
    write_tokenizer(tmp_path / "tokenizer", byte_level().tokenizer)
    engine = TensorRtLlm(tmp_path, SETTINGS, {CALLED_MODEL: "backend"})
    model = Endless(response(prompts.tokenizer.encode("un", add_special_tokens=False)))
    engine._model = model  # pyright: ignore

    async def asking() -> None:
        answer = engine.generate(replace(PLAIN, stream=True))
        assert (await anext(answer)).text == "un"
        if leaves == "reads no more":
            await answer.aclose()
        else:
            waiting = asyncio.ensure_future(anext(answer))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
        await engine.close()

    asyncio.run(asking())
    assert len(model.ids) == 3 and len(set(model.ids)) == 1 and model.ids[0].isdigit()


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"return_log_probs": True}, {"stop_words": ("never",)}])
def test_an_answer_ends_at_the_turn(engine: TensorRtLlm, family: Family, fields: dict[str, Any]) -> None:
    """Also where the engine itself goes on: 0.8 and 0.9 give the token that ends an answer, and a batch holds more."""
    said = family.tokenizer().encode(f"{ANSWER}{family.turn}Human: how are you", add_special_tokens=False).ids
    count, scored = said.index(family.special[family.turn]), "return_log_probs" in fields

    async def asking(pieces: Sequence[Sequence[int]]) -> list[Piece]:
        responses = [response(ids, [-1.0] * len(ids) if scored else None) for ids in pieces]
        engine._model = Endless(*responses)  # pyright: ignore
        return [piece async for piece in engine.generate(replace(PLAIN, text_input=QUESTION, **fields))]

    for at_once in (1, 3, 100):
        found = asyncio.run(asking([said[start : start + at_once] for start in range(0, len(said), at_once)]))
        assert "".join(piece.text for piece in found) == ANSWER
        assert found[-1].finish_reason == "stop" and not any(piece.finish_reason for piece in found[:-1])
        assert sum(piece.output_tokens for piece in found) == count
        assert sum(len(piece.log_probs) for piece in found) == (count if scored else 0)
