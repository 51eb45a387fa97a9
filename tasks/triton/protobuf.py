"""Triton's protobuf message `inference.ModelConfig` with types: made, read from a `config.pbtxt`, and written as one.

`tritonclient` brings the message as generated code without types. The protocols name the fields that Enginehouse uses,
as `model_config.proto` of Triton's `common` repository defines them.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, MutableMapping, MutableSequence
from typing import Any, Protocol, TypeVar, cast

from google.protobuf import text_format

from infra.errors import UsageError

_generated: Any = importlib.import_module("tritonclient.grpc.model_config_pb2")

KIND_CPU: int = _generated.ModelInstanceGroup.KIND_CPU

Message = TypeVar("Message", covariant=True)


class Repeated(Protocol[Message]):
    """A repeated field of messages; `add` appends one made of these fields and returns it."""

    def __iter__(self) -> Iterator[Message]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Message: ...
    def add(self, **fields: object) -> Message: ...


class Marker(Protocol):
    """A message that says something by being present."""

    def SetInParent(self) -> None: ...


class OutputTensor(Protocol):
    """`data_type` is a number (see `data_type`); `dims` are without the batch, -1 for any length."""

    name: str
    data_type: int
    dims: MutableSequence[int]


class InputTensor(OutputTensor, Protocol):
    optional: bool
    allow_ragged_batch: bool
    reshape: Marker


class InstanceGroup(Protocol):
    count: int
    kind: int


class TransactionPolicy(Protocol):
    decoupled: bool


class QueuePolicy(Protocol):
    max_queue_size: int


class DynamicBatching(Protocol):
    preferred_batch_size: MutableSequence[int]
    max_queue_delay_microseconds: int
    default_queue_policy: QueuePolicy


class EnsembleStep(Protocol):
    """`input_map`: the ensemble's name by the model's; `output_map`: the same for outputs."""

    model_name: str
    input_map: MutableMapping[str, str]
    output_map: MutableMapping[str, str]


class EnsembleScheduling(Protocol):
    step: Repeated[EnsembleStep]


class Parameter(Protocol):
    string_value: str


class ModelConfig(Protocol):
    """Reading `parameters[key]` adds the key, as in every map of messages; ask `in` first."""

    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: Repeated[InputTensor]
    output: Repeated[OutputTensor]
    instance_group: Repeated[InstanceGroup]
    model_transaction_policy: TransactionPolicy
    dynamic_batching: DynamicBatching
    ensemble_scheduling: EnsembleScheduling
    parameters: MutableMapping[str, Parameter]

    def HasField(self, field_name: str) -> bool: ...


def new_config(name: str, *, backend: str = "", max_batch_size: int) -> ModelConfig:
    """A configuration with these fields and nothing else."""
    return cast(ModelConfig, _generated.ModelConfig(name=name, backend=backend, max_batch_size=max_batch_size))


def parse_config(text: str) -> ModelConfig:
    """The message in a `config.pbtxt`. Raises UsageError `triton-config` if the text is none."""
    try:
        return cast(ModelConfig, text_format.Parse(text, _generated.ModelConfig()))
    except text_format.ParseError as error:
        raise UsageError(f"this is no Triton model configuration: {error}", code="triton-config") from error


def render(config: ModelConfig) -> str:
    """The text form of a message. Raises UsageError `triton-config` unless it reads back as the same message."""
    text = text_format.MessageToString(cast(Any, config))
    if parse_config(text) != config:
        raise UsageError(f"the configuration of '{config.name}' does not survive its text form", code="triton-config")
    return text


def data_type(name: str) -> int:
    """The number of a tensor's type, from its name in Triton's protocol (`INT32`, `BYTES`)."""
    # The configuration says STRING where the protocol says BYTES.
    return _generated.DataType.Value("TYPE_STRING" if name == "BYTES" else f"TYPE_{name}")


def type_name(number: int) -> str:
    """The name of a tensor's type in a configuration (`INT32`, `STRING`), from its number."""
    return _generated.DataType.Name(number).removeprefix("TYPE_")
