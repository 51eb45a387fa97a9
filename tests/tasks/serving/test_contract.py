"""The table of the client contract, and one request parsed by it."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import numpy as np
import pytest

from tasks.serving.contract import (
    INPUTS,
    Answer,
    GenerationRequest,
    RequestRefused,
    Tensor,
    encode_answers,
    parse_request,
)
from tasks.serving.guides import MAX_GUIDE_CHARACTERS, GuideRefused, check_guide

NUMPY: dict[str, Any] = {
    "BYTES": np.object_,
    "INT32": np.int32,
    "FP32": np.float32,
    "UINT64": np.uint64,
    "BOOL": np.bool_,
}


def tensors(**rows: list[list[Any]]) -> dict[str, Tensor]:
    """Inputs as Triton hands them over, of a prompt and a length unless `rows` say otherwise."""
    types = {entry.name: NUMPY[entry.data_type] for entry in INPUTS}
    values: dict[str, list[list[Any]]] = {"text_input": [[b"hello"]], "max_tokens": [[5]], **rows}
    return {name: np.array(value, dtype=types[name]) for name, value in values.items()}


def test_the_table_is_the_designs() -> None:
    assert {entry.name: entry.data_type for entry in INPUTS} == {
        **dict.fromkeys(("text_input", "bad_words", "stop_words"), "BYTES"),
        **dict.fromkeys(("guided_decoding_guide_type", "guided_decoding_guide"), "BYTES"),
        **dict.fromkeys(("max_tokens", "end_id", "pad_id", "top_k", "beam_width", "min_tokens", "min_length"), "INT32"),
        **dict.fromkeys(("top_p", "temperature", "length_penalty", "repetition_penalty"), "FP32"),
        **dict.fromkeys(("presence_penalty", "frequency_penalty"), "FP32"),
        **dict.fromkeys(("seed", "random_seed"), "UINT64"),
        **dict.fromkeys(("stream", "return_log_probs", "exclude_input_in_output"), "BOOL"),
    }
    assert [entry.name for entry in INPUTS if entry.required] == ["text_input", "max_tokens"]


def test_what_is_absent_has_its_default() -> None:
    assert parse_request(tensors(), {}) == (GenerationRequest(text_input="hello", max_tokens=5),)


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
    (request,) = parse_request(tensors(**{name: [[value]]}), {})
    assert getattr(request, name) == parsed


@pytest.mark.parametrize(("kind", "guide"), [("", ""), ("json", ""), ("json_schema", "{}"), ("regex", "a+")])
def test_a_guide_and_its_type(kind: str, guide: str) -> None:
    given = tensors(guided_decoding_guide_type=[[kind.encode()]], guided_decoding_guide=[[guide.encode()]])
    (request,) = parse_request(given, {})
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
        parse_request(tensors(**given), {})


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
        parse_request(tensors(**{name: [[b"a" * 1000, b"b" * 1001]]}), {})


def test_a_number_that_triton_wrapped_is_refused_with_what_fits() -> None:
    with pytest.raises(RequestRefused, match="'max_tokens' is 0; the least is 1, and the most 2147483647"):
        parse_request(tensors(max_tokens=[[0]]), {})


def test_words_of_any_number_without_the_empty_ones() -> None:
    (request,) = parse_request(tensors(stop_words=[[b"a", b"", b"b c"]], bad_words=[[b""]]), {})
    assert (request.stop_words, request.bad_words) == (("a", "b c"), ())


@pytest.mark.parametrize(("alias", "name"), [("min_length", "min_tokens"), ("random_seed", "seed")])
def test_older_names_are_accepted_but_not_beside_the_new_ones(alias: str, name: str) -> None:
    (request,) = parse_request(tensors(**{alias: [[4]]}), {})
    assert getattr(request, name) == 4
    with pytest.raises(RequestRefused, match=f"'{alias}' and '{name}'"):
        parse_request(tensors(**{alias: [[4]], name: [[4]]}), {})


def test_a_batch_is_as_many_requests() -> None:
    batch = tensors(
        text_input=[[b"a"], [b"b"]], max_tokens=[[1], [2]], stop_words=[[b"x", b""], [b"y", b"z"]], seed=[[1], [2]]
    )
    assert parse_request(batch, {}) == (
        GenerationRequest("a", 1, stop_words=("x",), seed=1),
        GenerationRequest("b", 2, stop_words=("y", "z"), seed=2),
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
        parse_request(tensors(**{name: [[value]]}), {})


@pytest.mark.parametrize("name", ["text_input", "max_tokens"])
def test_required_inputs_are_named(name: str) -> None:
    given = tensors()
    del given[name]
    with pytest.raises(RequestRefused, match=f"'{name}' is required"):
        parse_request(given, {})


def test_unknown_parameters_are_named_and_tritons_own_id_is_not_one() -> None:
    with pytest.raises(RequestRefused, match="'max_token' is not a field"):
        parse_request(tensors(), {"max_token": 5})
    with pytest.raises(RequestRefused, match="'top_k' came as a request parameter"):
        parse_request(tensors(), {"top_k": 5})
    assert parse_request(tensors(), {"id": "7"})


def test_shapes_and_streams_of_a_batch_are_refused() -> None:
    with pytest.raises(RequestRefused, match=r"'top_k' has shape \[1, 2\]"):
        parse_request(tensors(top_k=[[1, 2]]), {})
    with pytest.raises(RequestRefused, match=r"'seed' has shape \[2, 1\]"):
        parse_request(tensors(seed=[[1], [2]]), {})
    with pytest.raises(RequestRefused, match="'stream'"):
        parse_request(tensors(text_input=[[b"a"]] * 2, max_tokens=[[1]] * 2, stream=[[False], [True]]), {})


def test_answers_become_tensors() -> None:
    plain = encode_answers([Answer("é")], log_probs=False)
    assert {name: tensor.tolist() for name, tensor in plain.items()} == {"text_output": [["é".encode()]]}
    answers = [Answer("a", (-1.0, -0.5), -1.5), Answer("", (), 0.0)]
    full = encode_answers(answers, log_probs=True)
    assert full["text_output"].shape == (2, 1)
    assert full["cum_log_probs"].tolist() == [[-1.5], [0.0]]
    assert full["output_log_probs"].tolist() == [[[-1.0, -0.5]], [[0.0, 0.0]]]
    assert {full[name].dtype for name in ("cum_log_probs", "output_log_probs")} == {np.dtype(np.float32)}
