"""Triton's generate extension: JSON objects whose fields are inputs, and answers whose fields are outputs.

Source: `docs/protocol/extension_generate.md` of Triton's server, and `GenerateRequestClass` in its `http_server.cc`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from pydantic import JsonValue

from deployments.gateway.contract import Contract, Tensor
from deployments.gateway.messages import FINAL, InferRequest, InferResponse, infer_request, parameters_of, set_parameter
from deployments.gateway.tensors import encode, for_json, malformed, values_of

Given = JsonValue
"""A value of one input, or a list of them."""
NESTED = "parameters"
ID = "id"


def generate_request(contract: Contract, given: Mapping[str, Given]) -> InferRequest:
    """The request for inputs by name; what is no input becomes a parameter. `parameters` may hold more of both.

    Raises GatewayError, code `request-malformed`.
    """
    request = infer_request()
    seen: set[str] = set()
    for name, value in _fields(contract, given):
        if name in seen:
            raise malformed(f"'{name}' is given twice")
        seen.add(name)
        if (tensor := contract.inputs.get(name)) is not None:
            _add_input(request, tensor, value)
        elif name == ID:
            request.id = _id(value)
        else:
            _add_parameter(request, name, value)
    return request


def document(response: InferResponse) -> dict[str, JsonValue]:
    """A response as the body of `generate`, or as one event of `generate_stream`. One element stands without a list."""
    found: dict[str, JsonValue] = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id:
        found[ID] = response.id
    found |= {name: value for name, value in parameters_of(response.parameters).items() if name != FINAL}
    for name, values in values_of(response).items():
        shown = for_json(values)
        found[name] = shown[0] if len(shown) == 1 else shown
    return found


def _fields(contract: Contract, given: Mapping[str, Given]) -> Iterator[tuple[str, Given]]:
    for name, value in given.items():
        if name != NESTED or NESTED in contract.inputs:
            yield name, value
        elif isinstance(value, dict):
            yield from value.items()
        else:
            raise malformed(f"'{NESTED}' is an object")


def _id(value: Given) -> str:
    if not isinstance(value, str) or not value.isprintable():  # a half of a surrogate pair is not
        raise malformed("'id' is text")
    return value


def _add_input(request: InferRequest, tensor: Tensor, value: Given) -> None:
    values = value if isinstance(value, list) else [value]
    request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=shape_for(tensor, len(values)))
    request.raw_input_contents.append(encode(tensor.name, tensor.datatype, values))


def shape_for(tensor: Tensor, elements: int) -> list[int]:
    """The shape of so many elements: the innermost dimension of any length takes what the fixed ones leave.

    Raises GatewayError, code `request-malformed`, if they do not fit.
    """
    fixed = math.prod(size for size in tensor.shape if size >= 0)
    left, rest = divmod(elements, fixed) if fixed else (0, elements)
    if rest or (left != 1 and -1 not in tensor.shape):
        raise malformed(
            f"'{tensor.name}' has {elements} elements, which do not fit into its shape {list(tensor.shape)}"
        )
    shape: list[int] = []
    for size in reversed(tensor.shape):
        shape.append(left if size < 0 else size)
        left = 1 if size < 0 else left
    return shape[::-1]


def _add_parameter(request: InferRequest, name: str, value: Given) -> None:
    if not isinstance(value, bool | int | float | str):
        raise malformed(f"'{name}' is no input of the model, and a parameter is text, a number, or true or false")
    try:
        set_parameter(request.parameters, name, value)
    except (ValueError, TypeError) as error:
        raise malformed(f"'{name}' cannot be a parameter: {error}") from None
