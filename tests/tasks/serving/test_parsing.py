"""One request of a client, parsed by the table of its contract."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import numpy as np
import pytest

from tasks.serving.contract import CONTRACT, GenerationRequest, RequestRefused, Tensor, inputs_of
from tasks.serving.guides import MAX_GUIDE_CHARACTERS, GuideRefused, check_guide
from tasks.serving.parsing import MAX_JSON_DEPTH, MAX_MESSAGES, parse_request

NUMPY: dict[str, Any] = {
    "BYTES": np.object_,
    "INT32": np.int32,
    "FP32": np.float32,
    "UINT64": np.uint64,
    "BOOL": np.bool_,
}


def tensors(**rows: list[list[Any]]) -> dict[str, Tensor]:
    """Inputs as Triton hands them over, of a prompt and a length unless `rows` say otherwise."""
    types = {entry.name: NUMPY[entry.data_type] for entry in inputs_of(CONTRACT)}
    values: dict[str, list[list[Any]]] = {"text_input": [[b"hello"]], "max_tokens": [[5]], **rows}
    return {name: np.array(value, dtype=types[name]) for name, value in values.items()}


def parse(
    given: dict[str, Tensor], parameters: dict[str, object] | None = None, contract: int = CONTRACT
) -> tuple[GenerationRequest, ...]:
    return parse_request(given, parameters or {}, contract)


def chat(messages: object, **rows: list[list[Any]]) -> dict[str, Tensor]:
    """Inputs with messages in place of a prompt."""
    given = tensors(messages=[[json.dumps(messages).encode()]], **rows)
    del given["text_input"]
    return given


def test_what_is_absent_has_its_default() -> None:
    assert parse(tensors()) == (GenerationRequest(text_input="hello", max_tokens=5),)


@pytest.mark.parametrize(
    ("name", "value", "parsed"),
    [
        ("text_input", b"caf\xc3\xa9", "café"),
        ("max_tokens", 7, 7),
        ("end_id", 2, 2),
        ("pad_id", 0, 0),
        ("top_k", 0, 0),
        ("beam_width", 2, 2),
        ("min_tokens", 3, 3),
        ("top_p", 0.5, 0.5),
        ("temperature", 0, 0.0),
        ("length_penalty", -1, -1.0),
        ("repetition_penalty", 1.5, 1.5),
        ("presence_penalty", -0.5, -0.5),
        ("frequency_penalty", 0.25, 0.25),
        ("seed", 2**64 - 1, 2**64 - 1),
        ("stream", True, True),
        ("return_log_probs", True, True),
        ("exclude_input_in_output", False, False),
    ],
)
def test_each_input_arrives(name: str, value: object, parsed: object) -> None:
    (request,) = parse(tensors(**{name: [[value]]}))
    assert getattr(request, name) == parsed


@pytest.mark.parametrize(("kind", "guide"), [("", ""), ("json", ""), ("json_schema", "{}"), ("regex", "a+")])
def test_a_guide_and_its_type(kind: str, guide: str) -> None:
    given = tensors(guided_decoding_guide_type=[[kind.encode()]], guided_decoding_guide=[[guide.encode()]])
    (request,) = parse(given)
    assert (request.guided_decoding_guide_type, request.guided_decoding_guide) == (kind, guide)


@pytest.mark.parametrize(
    ("kind", "guide", "also", "message"),
    [
        ("", "a+", {}, "needs a 'guided_decoding_guide_type'"),
        ("xml", "a", {}, "'xml'; it can be json, json_schema, regex, ebnf_grammar"),
        ("json", "{}", {}, "must be empty"),
        ("regex", "", {}, "is required with the type 'regex'"),
        ("json_schema", "{", {}, "is no JSON schema"),
        ("json_schema", "[]", {}, "is no JSON schema: not an object"),
        ("regex", "a", {"beam_width": [[2]]}, "'beam_width' must be 1"),
        ("ebnf_grammar", f"root ::= {'(' * 100_000}", {}, "has 100009 characters; the most is 65536"),
        ("ebnf_grammar", f"root ::= {'(' * 65}", {}, "nests more than 64 brackets"),
        ("regex", "(" * 65, {}, "nests more than 64 brackets"),
        ("json_schema", '{"not":' * 65, {}, "nests more than 64 brackets"),
        ("ebnf_grammar", "%llguidance {}", {}, "no grammar in GBNF"),
        ("json_schema", '{"$ref": "#"}', {}, r"'\$ref' that leads from one to the next"),
        (
            "json_schema",
            '{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}',
            {},
            "leads from one to the next",
        ),
        ("json_schema", '{"items": [{"$ref": "http://a.example/b"}]}', {}, "only parts of the same schema"),
        ("json_schema", '{"$ref": "#/nowhere"}', {}, "no such part"),
    ],
)
def test_half_a_guide_is_refused(kind: str, guide: str, also: dict[str, Any], message: str) -> None:
    given = {"guided_decoding_guide_type": [[kind.encode()]], "guided_decoding_guide": [[guide.encode()]], **also}
    with pytest.raises(RequestRefused, match=message):
        parse(tensors(**given))


@pytest.mark.parametrize(
    ("kind", "guide"),
    [
        ("ebnf_grammar", "root ::= " + '"(" [(] ' * 100 + "# " + "(" * 100),
        ("regex", r"\([(]" * 100),
        ("json_schema", '{"enum": ["' + "{" * 100 + '", {"$ref": "of an answer"}]}'),
        ("json_schema", '{"properties": {"$ref": {"$ref": "#"}, "a": {"$ref": "#/properties/b"}, "b": {}}}'),
    ],
)
def test_brackets_in_texts_and_references_within_a_schema_are_fine(kind: str, guide: str) -> None:
    check_guide(kind, guide)


@pytest.mark.parametrize("kind", ["ebnf_grammar", "regex", "json_schema"])
@pytest.mark.parametrize("part", ['\\"', "[", '"', "[\\", "(", '{"$ref":"#"},'])
def test_no_guide_takes_long_to_check(kind: str, part: str) -> None:
    started = time.process_time()
    with contextlib.suppress(GuideRefused):
        check_guide(kind, part * (MAX_GUIDE_CHARACTERS // len(part)))
    assert time.process_time() - started < 1


@pytest.mark.parametrize("name", ["stop_words", "bad_words"])
def test_words_of_too_many_characters_are_refused(name: str) -> None:
    with pytest.raises(RequestRefused, match=f"'{name}' hold 2001 characters; the most is 2000"):
        parse(tensors(**{name: [[b"a" * 1000, b"b" * 1001]]}))


def test_a_number_that_triton_wrapped_is_refused_with_what_fits() -> None:
    with pytest.raises(RequestRefused, match="'max_tokens' is 0; the least is 1, and the most 2147483647"):
        parse(tensors(max_tokens=[[0]]))


def test_words_of_any_number_without_the_empty_ones() -> None:
    (request,) = parse(tensors(stop_words=[[b"a", b"", b"b c"]], bad_words=[[b""]]))
    assert (request.stop_words, request.bad_words) == (("a", "b c"), ())


@pytest.mark.parametrize(("alias", "name"), [("min_length", "min_tokens"), ("random_seed", "seed")])
def test_older_names_are_accepted_but_not_beside_the_new_ones(alias: str, name: str) -> None:
    (request,) = parse(tensors(**{alias: [[4]]}))
    assert getattr(request, name) == 4
    with pytest.raises(RequestRefused, match=f"'{alias}' and '{name}'"):
        parse(tensors(**{alias: [[4]], name: [[4]]}))


def test_a_batch_is_as_many_requests() -> None:
    batch = tensors(
        text_input=[[b"a"], [b"b"]], max_tokens=[[1], [2]], stop_words=[[b"x", b""], [b"y", b"z"]], seed=[[1], [2]]
    )
    assert parse(batch) == (
        GenerationRequest("a", max_tokens=1, stop_words=("x",), seed=1),
        GenerationRequest("b", max_tokens=2, stop_words=("y", "z"), seed=2),
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("text_input", b"\xff"),
        ("max_tokens", 0),
        ("top_k", -1),
        ("beam_width", 0),
        ("min_tokens", -1),
        ("top_p", 1.5),
        ("top_p", -0.1),
        ("temperature", -1),
        ("temperature", float("nan")),
        ("repetition_penalty", 0),
        ("presence_penalty", float("inf")),
    ],
)
def test_what_cannot_be_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(RequestRefused, match=f"'{name}'"):
        parse(tensors(**{name: [[value]]}))


@pytest.mark.parametrize("name", ["text_input", "max_tokens"])
def test_required_inputs_of_the_first_contract_are_named(name: str) -> None:
    given = tensors()
    del given[name]
    with pytest.raises(RequestRefused, match=f"'{name}' is required"):
        parse(given, contract=1)


def test_a_prompt_or_a_chat_and_the_length_is_the_models() -> None:
    given = tensors()
    del given["max_tokens"]
    assert parse(given) == (GenerationRequest("hello"),)
    (request,) = parse(chat([{"role": "user", "content": "hello"}]))
    assert (request.text_input, request.messages) == ("", ({"role": "user", "content": "hello"},))
    with pytest.raises(RequestRefused, match="send 'text_input' or 'messages', not both"):
        parse(tensors(messages=[[b"[]"]]))
    with pytest.raises(RequestRefused, match="send 'text_input' or 'messages', one of them"):
        parse({"max_tokens": given["text_input"]})


def test_messages_are_what_chat_templates_know() -> None:
    call = [{"type": "function", "id": "1", "function": {"name": "f", "arguments": "{}"}}]
    (request,) = parse(
        chat(
            [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": None, "tool_calls": call},
                {"role": "tool", "content": "7", "tool_call_id": "1"},
            ],
            tools=[[b'[{"type": "function", "function": {"name": "f"}}]']],
            chat_template_kwargs=[[b'{"enable_thinking": false}']],
        )
    )
    assert request.messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "", "tool_calls": call},
        {"role": "tool", "content": "7", "tool_call_id": "1"},
    )
    assert request.tools == ({"type": "function", "function": {"name": "f"}},)
    assert request.chat_template_kwargs == {"enable_thinking": False}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "'messages' is empty"),
        ({}, "'messages' must be an array of objects in JSON"),
        ([1], "'messages' must be an array of objects in JSON"),
        ([{"role": "judge", "content": "a"}], r"'messages\[0\].role' is \"judge\"; it can be system"),
        ([{"content": "a"}], r"'messages\[0\].role' is null"),
        ([{"role": "user", "content": "a"}, {"role": "user"}], r"'messages\[1\].content' must be a text"),
        ([{"role": "assistant", "content": None}], r"'messages\[0\].content' must be a text"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], r"'messages\[0\].content' may hold parts of the type"),
        ([{"role": "user", "content": "a"}] * (MAX_MESSAGES + 1), f"'messages' has {MAX_MESSAGES + 1} of them"),
        ([{"role": "user", "content": "a"}, "b"], "'messages' must be an array of objects"),
    ],
)
def test_messages_that_are_none_are_refused(messages: object, message: str) -> None:
    with pytest.raises(RequestRefused, match=message):
        parse(chat(messages))


@pytest.mark.parametrize(("text", "message"), [(b"{", "is no JSON"), (b"[" * (MAX_JSON_DEPTH + 1), "nests more than")])
def test_what_is_no_json_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(RequestRefused, match=f"'chat_template_kwargs' {message}"):
        parse(chat([{"role": "user", "content": "a"}], chat_template_kwargs=[[text]]))


def test_what_is_for_the_template_needs_messages() -> None:
    for name, text in (("tools", b'[{"a": 1}]'), ("chat_template_kwargs", b'{"a": 1}')):
        with pytest.raises(RequestRefused, match=f"'{name}' needs 'messages'"):
            parse(tensors(**{name: [[text]]}))
    with pytest.raises(RequestRefused, match="'exclude_input_in_output' must be true with 'messages'"):
        parse(chat([{"role": "user", "content": "a"}], exclude_input_in_output=[[False]]))


def test_a_text_that_is_scored_is_not_generated() -> None:
    def given(**values: list[list[Any]]) -> dict[str, Tensor]:
        return {name: each for name, each in tensors(given_output=[[b"un"]], **values).items() if name != "max_tokens"}

    (request,) = parse(given(return_log_probs=[[True]]))
    assert request.given_output == "un"
    with pytest.raises(RequestRefused, match="'given_output' needs 'return_log_probs'"):
        parse(given())
    beside: dict[str, list[list[Any]]] = {
        "min_tokens": [[1]],
        "stop_words": [[b"a"]],
        "bad_words": [[b"a"]],
        "stream": [[True]],
    }
    for name, value in beside.items():
        with pytest.raises(RequestRefused, match=f"'{name}' cannot be honoured with a 'given_output'"):
            parse(given(return_log_probs=[[True]], **{name: value}))
    with pytest.raises(RequestRefused, match="'max_tokens' cannot be honoured with a 'given_output'"):
        parse(tensors(given_output=[[b"un"]], return_log_probs=[[True]]))


def test_fewer_tokens_than_the_least_are_refused() -> None:
    with pytest.raises(RequestRefused, match="'min_tokens' is 6, and 'max_tokens' 5"):
        parse(tensors(min_tokens=[[6]]))
    assert parse(tensors(min_tokens=[[6]]), contract=1) and parse(tensors(min_tokens=[[5]]))


NEUTRAL: dict[str, tuple[list[Any], Any]] = {
    "num_return_sequences": ([1], 2),
    "return_context_logits": ([False], True),
    "return_generation_logits": ([False], True),
    "return_perf_metrics": ([False], True),
    "return_kv_cache_reuse_stats": ([False], True),
    "num_draft_tokens": ([0], 5),
    "use_draft_logits": ([False], True),
    "prompt_vocab_size": ([0], 5),
    "decoder_text_input": ([b""], b"a"),
    "embedding_bias_words": ([b"", b""], b"a"),
    "embedding_bias_weights": ([0.0], 1.5),
}


def test_what_published_clients_always_send_passes_where_it_asks_for_nothing() -> None:
    assert NEUTRAL.keys() == {entry.name for entry in inputs_of(CONTRACT) if entry.neutral is not None}
    for name, (neutral, other) in NEUTRAL.items():
        assert parse(tensors(**{name: [neutral]})) == parse(tensors())
        with pytest.raises(RequestRefused, match=f"'{name}' cannot be honoured"):
            parse(tensors(**{name: [[other]]}))


def test_unknown_parameters_are_named_and_tritons_own_id_is_not_one() -> None:
    with pytest.raises(RequestRefused, match="'max_token' is not a field"):
        parse(tensors(), {"max_token": 5})
    with pytest.raises(RequestRefused, match="'top_k' came as a request parameter"):
        parse(tensors(), {"top_k": 5})
    assert parse(tensors(), {"id": "7"})


def test_shapes_and_streams_of_a_batch_are_refused() -> None:
    with pytest.raises(RequestRefused, match=r"'top_k' has shape \[1, 2\]"):
        parse(tensors(top_k=[[1, 2]]))
    with pytest.raises(RequestRefused, match=r"'seed' has shape \[2, 1\]"):
        parse(tensors(seed=[[1], [2]]))
    with pytest.raises(RequestRefused, match="'stream'"):
        parse(tensors(text_input=[[b"a"]] * 2, max_tokens=[[1]] * 2, stream=[[False], [True]]))
