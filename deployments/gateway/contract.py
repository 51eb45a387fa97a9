"""What a release takes and gives, as its node's Triton says. It never changes, so it is asked once for each release."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from deployments.gateway.messages import (
    InferRequest,
    Message,
    ModelMetadata,
    Parameters,
    TensorMetadata,
    config_answer,
    model_metadata,
)
from deployments.gateway.tensors import malformed, size_of
from tasks.serving.cancellation import CANCELLATION_ID
from tasks.serving.contract import MAX_BATCH_SIZE
from tasks.serving.tickets import HANDED_ON, TICKET

_OURS = (TICKET, HANDED_ON, CANCELLATION_ID)
"""Tensors of `llm` that are for Enginehouse alone."""

VERSION = "1"
"""Of every model of a release: a release that differs is another release."""


@dataclass(frozen=True)
class Tensor:
    """`datatype` as in Triton's protocol (`INT32`, `BYTES`); `shape` with the batch, -1 for any length."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Contract:
    """Inputs and outputs of one release by name; `model` is what Triton calls the model that has them.

    `cancels` says whether a request of it can be cancelled by its id.
    """

    model: str
    platform: str
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    cancels: bool = False

    @classmethod
    def of(cls, metadata: ModelMetadata) -> Contract:
        inputs, outputs = _tensors(metadata.inputs), _tensors(metadata.outputs)
        cancels = any(each.name == CANCELLATION_ID for each in metadata.inputs)
        return cls(metadata.name, metadata.platform, inputs, outputs, cancels)

    @property
    def max_batch_size(self) -> int:
        """0 if requests have no batch. Triton's metadata says only whether they have one."""
        tensors = [*self.inputs.values(), *self.outputs.values()]
        return MAX_BATCH_SIZE if tensors and all(tensor.shape[:1] == (-1,) for tensor in tensors) else 0

    def check(self, request: InferRequest) -> None:
        """Raise GatewayError, code `request-malformed`, for a request whose tensors are not those of the release.

        What is wrong in itself never reaches a Triton, nor does what names a piece of its memory.
        """
        raw = request.raw_input_contents
        if raw and len(raw) != len(request.inputs):
            raise malformed(f"{len(raw)} raw contents came for {len(request.inputs)} inputs")
        for index, tensor in enumerate(request.inputs):
            known = self.inputs.get(tensor.name)
            if known is None:
                raise malformed(f"'{tensor.name[:200]}' is no input; there are: {', '.join(self.inputs)}")
            if tensor.datatype != known.datatype:
                raise malformed(f"'{known.name}' is {known.datatype}, not {tensor.datatype[:20]}")
            if len(tensor.shape) != len(known.shape) or any(size < 0 for size in tensor.shape):
                raise malformed(f"'{known.name}' has the shape {list(tensor.shape)[:8]}, not {list(known.shape)}")
            size = size_of(known.datatype)
            if raw and size and len(raw[index]) != math.prod(tensor.shape) * size:
                raise malformed(f"'{known.name}' has {len(raw[index])} bytes, which its shape does not")
            _refuse_shared_memory(tensor.name, tensor.parameters)
        for output in request.outputs:
            if output.name not in self.outputs:
                raise malformed(f"'{output.name[:200]}' is no output; there are: {', '.join(self.outputs)}")
            _refuse_shared_memory(output.name, output.parameters)

    def metadata(self, name: str) -> ModelMetadata:
        """The message that describes it under a name."""
        made = model_metadata()
        made.name, made.platform = name, self.platform
        made.versions.append(VERSION)
        for tensors, field in ((self.inputs, made.inputs), (self.outputs, made.outputs)):
            for tensor in tensors.values():
                field.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        return made

    def config(self, name: str) -> Message:
        """The same as a configuration. A node keeps the real one to itself, since it reveals the machine."""
        batched = 1 if self.max_batch_size else 0
        tensors = {
            direction: [(each.name, each.datatype, list(each.shape[batched:])) for each in found.values()]
            for direction, found in (("input", self.inputs), ("output", self.outputs))
        }
        return config_answer(name, self.platform, self.max_batch_size, tensors)


def _refuse_shared_memory(tensor: str, parameters: Parameters) -> None:
    if any(name.startswith("shared_memory") for name in parameters):
        raise malformed(f"'{tensor}' lies in shared memory, which a gateway does not have")


def _tensors(found: Iterable[TensorMetadata]) -> dict[str, Tensor]:
    return {each.name: Tensor(each.name, each.datatype, tuple(each.shape)) for each in found if each.name not in _OURS}
