"""Values of tensors: from and to the bytes that Triton's protocol has of them, little-endian and row by row."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from deployments.gateway.messages import InferResponse
from infra.errors import GatewayError

Scalar = bool | int | float | str
Values = Mapping[str, list[Scalar]]
"""The outputs of one response by name, each as its elements in order."""

_SIGNED = {"INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q"}
_UNSIGNED = {"UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q"}
_FLOATS = {"FP16": "e", "FP32": "f", "FP64": "d"}
_FORMATS = {"BOOL": "?", **_SIGNED, **_UNSIGNED, **_FLOATS}
"""By the names of Triton's protocol, those of `struct`."""
_LENGTH = struct.Struct("<I")


def encode(name: str, datatype: str, values: Sequence[JsonValue]) -> bytes:
    """The bytes of an input. Raises GatewayError, code `request-malformed`, which names it."""
    if datatype == "BYTES":
        return b"".join(_text(name, value) for value in values)
    if datatype not in _FORMATS:
        raise malformed(f"'{name}' has the type {datatype}, for which JSON has no form")
    for value in values:
        if not _fits(datatype, value):
            raise malformed(f"'{name}' takes {_what(datatype)}, not {_kind(value)}")
    try:
        return struct.pack(f"<{len(values)}{_FORMATS[datatype]}", *values)
    except (struct.error, OverflowError):
        raise malformed(f"'{name}' has a number that does not fit into {datatype}") from None


def decode(datatype: str, raw: bytes, errors: str = "replace") -> list[Scalar]:
    """The elements of an output. `errors` is what becomes of bytes that are no text, as `bytes.decode` has it.

    Raises GatewayError, code `answer-malformed`.
    """
    if datatype == "BYTES":
        return list(_texts(raw, errors))
    if datatype not in _FORMATS:
        raise GatewayError(
            f"JSON has no form for an output of the type {datatype}",
            hint="ask by gRPC, or for binary data",
            code="answer-malformed",
        )
    return list(struct.unpack(f"<{len(raw) // size_of(datatype)}{_FORMATS[datatype]}", raw))


def size_of(datatype: str) -> int:
    """Bytes of one element; 0 where elements differ, or the type has no form here."""
    return struct.calcsize(f"<{_FORMATS[datatype]}") if datatype in _FORMATS else 0


def values_of(response: InferResponse, errors: str = "replace") -> Values:
    """The outputs of a response by name."""
    raw = response.raw_output_contents
    return {tensor.name: decode(tensor.datatype, raw[index], errors) for index, tensor in enumerate(response.outputs)}


def for_json(values: Sequence[Scalar]) -> list[JsonValue]:
    """The same values; a number that is none, or without bound, is null."""
    return [None if isinstance(value, float) and not math.isfinite(value) else value for value in values]


def malformed(message: str) -> GatewayError:
    return GatewayError(message, code="request-malformed")


def _text(name: str, value: JsonValue) -> bytes:
    if not isinstance(value, str):
        raise malformed(f"'{name}' takes text, not {_kind(value)}")
    try:
        encoded = value.encode()
    except UnicodeEncodeError:
        raise malformed(f"'{name}' has a half of a surrogate pair, which is no text") from None
    return _LENGTH.pack(len(encoded)) + encoded


def _texts(raw: bytes, errors: str) -> Sequence[str]:
    found: list[str] = []
    at = 0
    while at < len(raw):
        (length,) = _LENGTH.unpack_from(raw, at)
        at += _LENGTH.size + length
        found.append(raw[at - length : at].decode(errors=errors))
    return found


def _fits(datatype: str, value: JsonValue) -> bool:
    if datatype == "BOOL" or isinstance(value, bool):
        return datatype == "BOOL" and isinstance(value, bool)
    return isinstance(value, (int, float) if datatype in _FLOATS else int)


def _what(datatype: str) -> str:
    return "true or false" if datatype == "BOOL" else "numbers" if datatype in _FLOATS else "whole numbers"


def _kind(value: JsonValue) -> str:
    match value:
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
        case dict():
            return "an object"
        case None:
            return "null"
