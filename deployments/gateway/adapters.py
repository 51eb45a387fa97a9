"""The adapter that a client names behind its model, as the input that a release has for it."""

from __future__ import annotations

from deployments.gateway.contract import Contract
from deployments.gateway.messages import InferRequest
from deployments.gateway.names import Name, unknown
from deployments.gateway.rows import rows_of
from deployments.gateway.tensors import encode, malformed

LORA_NAME = "lora_name"


def choose_adapter(request: InferRequest, contract: Contract, name: Name) -> None:
    """Add the adapter of `name` to each row of the request.

    Raises GatewayError, code `model-unknown` for a release whose contract has none, `request-malformed` for a request
    that names one itself.
    """
    if LORA_NAME not in contract.inputs:
        raise unknown(str(name), ": it has no adapters")
    if any(tensor.name == LORA_NAME for tensor in request.inputs):
        raise malformed(f"'{LORA_NAME}' is named by the model already: {name}")
    rows = rows_of(request)
    if len(request.inputs) and not len(request.raw_input_contents):
        contents = {"bytes_contents": [name.adapter.encode()] * rows}
        request.inputs.add(name=LORA_NAME, datatype="BYTES", shape=[rows, 1], contents=contents)
        return
    request.inputs.add(name=LORA_NAME, datatype="BYTES", shape=[rows, 1])
    request.raw_input_contents.append(encode(LORA_NAME, "BYTES", [name.adapter] * rows))
