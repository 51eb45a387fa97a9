"""KServe's infer protocol over HTTP: requests and answers as JSON, with tensors in it or as bytes behind it.

Source: `docs/protocol` of Triton's server: the inference protocol, and `extension_binary_data.md`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from deployments.gateway.json_body import parse_json
from deployments.gateway.messages import (
    FINAL,
    InferRequest,
    InferResponse,
    Parameters,
    infer_request,
    parameters_of,
    set_parameter,
)
from deployments.gateway.tensors import decode, encode, for_json, malformed

HEADER_LENGTH = "inference-header-content-length"
_BINARY_SIZE, _BINARY, _BINARY_OUTPUT = "binary_data_size", "binary_data", "binary_data_output"

_Name = Annotated[str, Field(min_length=1, max_length=256)]
_Scalar = bool | int | float | str


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    parameters: dict[str, _Scalar] = {}


class _Input(_Part):
    name: _Name
    datatype: _Name
    shape: Annotated[list[Annotated[int, Field(ge=0, lt=2**63)]], Field(max_length=32)]
    data: list[JsonValue] | None = None


class _Output(_Part):
    name: _Name


class _Request(_Part):
    id: str = ""
    inputs: Annotated[list[_Input], Field(max_length=1000)]
    outputs: Annotated[list[_Output], Field(max_length=1000)] = []


class Wanted(BaseModel):
    """Which outputs an answer has as bytes: those `named`, or all others if `all`."""

    model_config = ConfigDict(frozen=True)

    all: bool
    named: dict[str, bool]

    def is_binary(self, output: str) -> bool:
        return self.named.get(output, self.all)


def parse_infer(body: bytes, header_length: str | None) -> tuple[InferRequest, Wanted]:
    """The request in a body; the first `header_length` bytes are its JSON if it has bytes behind it.

    Raises GatewayError, code `request-malformed`.
    """
    size = len(body) if header_length is None else _size(header_length, len(body))
    try:
        found = _Request.model_validate(parse_json(body[:size]))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise malformed(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    request, at = infer_request(), size
    request.id = found.id
    for each in found.inputs:
        raw = _raw(each, body, at)
        if _BINARY_SIZE in each.parameters:
            at += len(raw)
        tensor = request.inputs.add(name=each.name, datatype=each.datatype, shape=each.shape)
        request.raw_input_contents.append(raw)
        _copy(each.parameters, tensor.parameters, without=_BINARY_SIZE)
    if at != len(body):
        raise malformed(f"{len(body) - at} bytes are left behind the inputs")
    for each in found.outputs:
        _copy(each.parameters, request.outputs.add(name=each.name).parameters, without=_BINARY)
    _copy(found.parameters, request.parameters, without=_BINARY_OUTPUT)
    named = {each.name: bool(each.parameters[_BINARY]) for each in found.outputs if _BINARY in each.parameters}
    return request, Wanted(all=bool(found.parameters.get(_BINARY_OUTPUT, False)), named=named)


def answer_infer(response: InferResponse, wanted: Wanted) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON if bytes are behind it."""
    behind: list[bytes] = []
    outputs: list[JsonValue] = []
    for index, tensor in enumerate(response.outputs):
        raw = response.raw_output_contents[index]
        shown: dict[str, JsonValue] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if wanted.is_binary(tensor.name):
            behind.append(raw)
            shown["parameters"] = {_BINARY_SIZE: len(raw)}
        else:
            shown["data"] = for_json(decode(tensor.datatype, raw))
        outputs.append(shown)
    document: dict[str, JsonValue] = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id:
        document["id"] = response.id
    parameters = {name: value for name, value in parameters_of(response.parameters).items() if name != FINAL}
    if parameters:
        document["parameters"] = dict(parameters)
    head = json.dumps({**document, "outputs": outputs}, ensure_ascii=False).encode(errors="replace")
    return b"".join([head, *behind]), len(head) if behind else None


def _raw(tensor: _Input, body: bytes, at: int) -> bytes:
    """The bytes of an input, which lie at `at` or are its JSON."""
    size = tensor.parameters.get(_BINARY_SIZE)
    if size is None:
        values = list(_flat(tensor.name, tensor.data or [], len(tensor.shape)))
        if len(values) != math.prod(tensor.shape):
            raise malformed(f"'{tensor.name}' has {len(values)} elements, and its shape {tensor.shape} other ones")
        return encode(tensor.name, tensor.datatype, values)
    if tensor.data is not None:
        raise malformed(f"'{tensor.name}' has data and binary data")
    if not isinstance(size, int) or not 0 <= size <= len(body) - at:
        raise malformed(f"'{tensor.name}' has {size} bytes of binary data, and {len(body) - at} are there")
    return body[at : at + size]


def _flat(name: str, values: list[JsonValue], depth: int) -> Iterator[JsonValue]:
    """The elements of nested lists, which are nested at most as deep as the shape."""
    for value in values:
        if not isinstance(value, list):
            yield value
        elif depth > 1:
            yield from _flat(name, value, depth - 1)
        else:
            raise malformed(f"the lists of '{name}' are nested deeper than its shape")


def _copy(given: dict[str, _Scalar], to: Parameters, without: str) -> None:
    for name, value in given.items():
        if name != without:
            try:
                set_parameter(to, name, value)
            except (ValueError, TypeError) as error:
                raise malformed(f"the parameter '{name}' cannot be sent: {error}") from None


def _size(text: str, most: int) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) > most:
        raise malformed(f"{HEADER_LENGTH} is {text[:20]!r}; the body has {most} bytes")
    return int(text)
