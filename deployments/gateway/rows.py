"""One response for the rows of a batch, which a release answers one by one and tells apart by `batch_index`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from deployments.gateway.contract import Contract
from deployments.gateway.messages import InferRequest, InferResponse, infer_response
from deployments.gateway.tensors import decode, size_of

ROW = "batch_index"


def rows_of(request: InferRequest) -> int:
    """How many rows a request has."""
    return next((tensor.shape[0] for tensor in request.inputs if len(tensor.shape)), 1)


def ask_for_rows(request: InferRequest, contract: Contract) -> bool:
    """Have the release say of each response which row it is of. Returns whether the client had not asked for that."""
    if ROW not in contract.outputs or not len(request.outputs) or any(each.name == ROW for each in request.outputs):
        return False
    request.outputs.add(name=ROW)
    return True


def merged(responses: Sequence[InferResponse], *, without_row: bool) -> InferResponse:
    """The rows in their order. Where they have different lengths, the shorter ones are filled up with 0."""
    ordered = sorted(responses, key=_row)
    made = infer_response()
    made.model_name, made.model_version, made.id = ordered[0].model_name, ordered[0].model_version, ordered[0].id
    for index, tensor in enumerate(ordered[0].outputs):
        if without_row and tensor.name == ROW:
            continue
        longest = max(each.outputs[index].shape[-1] for each in ordered)
        raw = b"".join(_filled(each, index, longest) for each in ordered)
        shape = [sum(each.outputs[index].shape[0] for each in ordered), *tensor.shape[1:]]
        if len(shape) > 1:
            shape[-1] = longest
        made.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=shape)
        made.raw_output_contents.append(raw)
    return made


def _row(response: InferResponse) -> int:
    for index, tensor in enumerate(response.outputs):
        if tensor.name == ROW:
            return int(decode(tensor.datatype, response.raw_output_contents[index])[0])
    return 0


def _filled(response: InferResponse, index: int, longest: int) -> bytes:
    """The bytes of one output, of whose innermost dimension the end is missing."""
    tensor, raw = response.outputs[index], response.raw_output_contents[index]
    size = size_of(tensor.datatype)
    missing = longest - tensor.shape[-1] if len(tensor.shape) > 1 and size else 0
    assert missing == 0 or math.prod(tensor.shape[:-1]) == 1  # each response has one row
    return raw + bytes(missing * size)
