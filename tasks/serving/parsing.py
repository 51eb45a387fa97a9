"""One request of a client, parsed by the table of its contract."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from .contract import (
    GUIDE_TYPES,
    MAX_WORD_CHARACTERS,
    GenerationRequest,
    Input,
    Json,
    RequestRefused,
    Scalar,
    Tensor,
    inputs_of,
)
from .guides import GuideRefused, check_guide

MAX_JSON_DEPTH = 64
"""Brackets within brackets of a text that holds JSON: what reads it calls itself for each."""

MAX_MESSAGES = 4096
"""Of one chat. Each is rendered by the model's template."""

_ROLES = ("system", "developer", "user", "assistant", "tool")


def parse_request(
    tensors: Mapping[str, Tensor], parameters: Mapping[str, object], contract: int
) -> tuple[GenerationRequest, ...]:
    """The rows of one Triton request.

    `tensors` maps input names to arrays of shape `[batch, n]`, absent inputs left out. `parameters` are Triton's
    request parameters: a field of a `/generate` body that is no input arrives there, so nearly all of them are unknown.
    Raises RequestRefused, which names the field.
    """
    known = {entry.name: entry for entry in inputs_of(contract)}
    _check_names(tensors, parameters, known, contract)
    rows = len(next(iter(tensors.values())))
    fields: list[dict[str, Any]] = [{} for _ in range(rows)]
    for name, tensor in tensors.items():
        entry = known[name]
        if tensor.ndim != 2 or len(tensor) != rows or not (entry.many or tensor.shape[1] == 1):
            wanted = f"[{rows}, {'n' if entry.many else 1}]"
            raise RequestRefused(f"'{name}' has shape {list(tensor.shape)} where {wanted} is expected")
        for row, values in zip(fields, tensor, strict=True):
            if entry.neutral is not None:
                _require_neutral(entry, values)
            else:
                row[entry.alias_of or name] = _words(entry, values) if entry.many else _value(entry, values[0])
    requests = tuple(GenerationRequest(**row) for row in fields)
    for request in requests:
        _check(request, contract)
    if rows > 1 and any(request.stream for request in requests):
        raise RequestRefused(f"'stream' works on a batch of 1, not {rows}: pieces of several rows would mix")
    return requests


def _check_names(
    tensors: Mapping[str, Tensor], parameters: Mapping[str, object], known: Mapping[str, Input], contract: int
) -> None:
    for name in parameters:
        if name == "id":
            # Triton's own name of the request, which /generate passes on as a parameter too.
            continue
        if name in known:
            raise RequestRefused(f"'{name}' came as a request parameter; send it as an input tensor")
        raise RequestRefused(f"'{name}' is not a field that this model knows; it takes {', '.join(known)}")
    for entry in known.values():
        if entry.required_until >= contract and entry.name not in tensors:
            raise RequestRefused(f"'{entry.name}' is required")
        if entry.alias_of and entry.name in tensors and entry.alias_of in tensors:
            raise RequestRefused(f"'{entry.name}' and '{entry.alias_of}' are the same; send one of them")
    prompts = [name for name in ("text_input", "messages") if name in tensors]
    if len(prompts) != 1:
        raise RequestRefused(f"send 'text_input' or 'messages', {'not both' if prompts else 'one of them'}")


def _check(request: GenerationRequest, contract: int) -> None:
    _check_guide(request)
    if contract == 1:
        return
    for name in ("return_output_tokens", "num_top_log_probs"):
        if getattr(request, name) and not request.return_log_probs:
            raise RequestRefused(f"'{name}' needs 'return_log_probs'")
    if request.given_output:
        _check_given(request)
    if request.max_tokens is not None and request.min_tokens > request.max_tokens:
        raise RequestRefused(f"'min_tokens' is {request.min_tokens}, and 'max_tokens' {request.max_tokens}")
    if not request.messages:
        for name in ("tools", "chat_template_kwargs"):
            if getattr(request, name):
                raise RequestRefused(f"'{name}' needs 'messages': it is for the chat template")
    elif not request.exclude_input_in_output:
        raise RequestRefused("'exclude_input_in_output' must be true with 'messages'")


def _check_given(request: GenerationRequest) -> None:
    """A text that is scored is not generated: what bounds or shapes an answer has no meaning beside it."""
    if not request.return_log_probs:
        raise RequestRefused("'given_output' needs 'return_log_probs': nothing else is told of it")
    for name in ("max_tokens", "min_tokens", "stop_words", "bad_words", "stream", "guided_decoding_guide_type"):
        if getattr(request, name):
            raise RequestRefused(f"'{name}' cannot be honoured with a 'given_output': nothing is generated")


def _check_guide(request: GenerationRequest) -> None:
    kind, guide = request.guided_decoding_guide_type, request.guided_decoding_guide
    if not kind and guide:
        raise RequestRefused("'guided_decoding_guide' needs a 'guided_decoding_guide_type'")
    if kind and kind not in GUIDE_TYPES:
        raise RequestRefused(f"'guided_decoding_guide_type' is '{kind}'; it can be {', '.join(GUIDE_TYPES)}")
    if kind == "json" and guide:
        raise RequestRefused("'guided_decoding_guide' must be empty with the type 'json'; a schema is 'json_schema'")
    if kind not in ("", "json") and not guide:
        raise RequestRefused(f"'guided_decoding_guide' is required with the type '{kind}'")
    if guide:
        try:
            check_guide(kind, guide)
        except GuideRefused as error:
            raise RequestRefused(f"'guided_decoding_guide' {error}") from error
    if kind and request.beam_width > 1:
        raise RequestRefused("'beam_width' must be 1 with a guide: it follows one answer")


def _words(entry: Input, values: Tensor) -> tuple[str, ...]:
    # Published clients send [""] where they mean no words.
    words = tuple(word for word in (_text(entry, value) for value in values) if word)
    if (characters := sum(map(len, words))) > MAX_WORD_CHARACTERS:
        raise RequestRefused(f"'{entry.name}' hold {characters} characters; the most is {MAX_WORD_CHARACTERS}")
    return words


def _require_neutral(entry: Input, values: Tensor) -> None:
    for value in values:
        if _scalar(entry, value) != entry.neutral:
            shown = json.dumps(entry.neutral)
            raise RequestRefused(f"'{entry.name}' cannot be honoured by this model; it may be {shown}, or left out")


def _value(entry: Input, value: Any) -> object:
    if not entry.json:
        return _scalar(entry, value)
    document = _document(entry, _text(entry, value))
    return _messages(document) if entry.name == "messages" and isinstance(document, tuple) else document


def _document(entry: Input, text: str) -> Json | tuple[Json, ...]:
    """The JSON in a text: an object, or a tuple of objects."""
    depth = deepest = 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        deepest = max(deepest, depth)
    if deepest > MAX_JSON_DEPTH:
        raise RequestRefused(f"'{entry.name}' nests more than {MAX_JSON_DEPTH} brackets")
    try:
        document: object = json.loads(text)
    except ValueError as error:
        raise RequestRefused(f"'{entry.name}' is no JSON: {error}") from error
    if entry.json == "object" and isinstance(document, dict):
        return cast(Json, document)
    if entry.json == "array" and isinstance(document, list):
        entries = cast(list[object], document)
        if all(isinstance(each, dict) for each in entries):
            return tuple(cast(list[Json], entries))
    wanted = "an object" if entry.json == "object" else "an array of objects"
    raise RequestRefused(f"'{entry.name}' must be {wanted} in JSON")


def _messages(messages: Sequence[Json]) -> tuple[Json, ...]:
    """The messages as chat templates know them: the content of each is a text."""
    if not messages:
        raise RequestRefused("'messages' is empty")
    if len(messages) > MAX_MESSAGES:
        raise RequestRefused(f"'messages' has {len(messages)} of them; the most is {MAX_MESSAGES}")
    return tuple(_message(index, message) for index, message in enumerate(messages))


def _message(index: int, message: Json) -> Json:
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        raise RequestRefused(f"'messages[{index}].role' is {json.dumps(role)}; it can be {', '.join(_ROLES)}")
    if isinstance(content, list):
        content = "\n".join(_part(index, part) for part in cast(list[object], content))
    if content is None and role == "assistant" and message.get("tool_calls"):
        content = ""
    if not isinstance(content, str):
        raise RequestRefused(f"'messages[{index}].content' must be a text, or a list of texts")
    # Templates know the older name of the role alone.
    return {**message, "role": "system" if role == "developer" else role, "content": content}


def _part(index: int, part: object) -> str:
    fields: Json = cast(Json, part) if isinstance(part, dict) else {}
    text = fields.get("text")
    if fields.get("type") != "text" or not isinstance(text, str):
        raise RequestRefused(f"'messages[{index}].content' may hold parts of the type 'text' alone")
    return text


def _scalar(entry: Input, value: Any) -> Scalar:
    if entry.data_type == "BYTES":
        return _text(entry, value)
    if entry.data_type == "BOOL":
        return bool(value)
    number = float(value) if entry.data_type == "FP32" else int(value)
    if not math.isfinite(number):
        raise RequestRefused(f"'{entry.name}' is {number}, not a number")
    if number < entry.minimum:
        # Triton wraps a number of a JSON body that does not fit into 32 bits.
        wrapped = ", and the most 2147483647" if entry.data_type == "INT32" else ""
        raise RequestRefused(f"'{entry.name}' is {number}; the least is {entry.minimum:g}{wrapped}")
    if number <= entry.above:
        raise RequestRefused(f"'{entry.name}' is {number}; it must be above {entry.above:g}")
    if number > entry.maximum:
        raise RequestRefused(f"'{entry.name}' is {number}; the most is {entry.maximum:g}")
    return number


def _text(entry: Input, value: Any) -> str:
    try:
        return bytes(value).decode()
    except UnicodeDecodeError as error:
        raise RequestRefused(f"'{entry.name}' is not UTF-8: {error}") from error
