"""The messages of Triton's gRPC protocol with types, and the service that carries them.

`tritonclient` brings them as generated code without types. The protocols name the fields that the gateway uses, as
`grpc_service.proto` of Triton's `common` repository defines them.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, MutableMapping, MutableSequence
from typing import Any, Protocol, TypeVar, cast

_generated: Any = importlib.import_module("tritonclient.grpc.service_pb2")
_config: Any = importlib.import_module("tritonclient.grpc.model_config_pb2")

SERVICE = "inference.GRPCInferenceService"

FINAL = "triton_final_response"
"""Parameter of a response: whether it is the last of its request."""
EMPTY_FINAL = "triton_enable_empty_final_response"
"""Parameter of a request: whether its end may be told by a response of its own, which has no outputs."""

MessageT = TypeVar("MessageT", covariant=True)
ParameterValue = bool | int | float | str


class Repeated(Protocol[MessageT]):
    """A repeated field of messages; `add` appends one made of these fields and returns it."""

    def __iter__(self) -> Iterator[MessageT]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> MessageT: ...
    def add(self, **fields: object) -> MessageT: ...


class Parameter(Protocol):
    bool_param: bool
    int64_param: int
    uint64_param: int
    double_param: float
    string_param: str

    def WhichOneof(self, oneof_group: str) -> str | None: ...


class Parameters(Protocol):
    """Reading a key adds it, as in every map of messages; ask `in` first."""

    def __contains__(self, name: str) -> bool: ...
    def __iter__(self) -> Iterator[str]: ...
    def __getitem__(self, name: str) -> Parameter: ...
    def pop(self, name: str, default: object = ...) -> object: ...


class Message(Protocol):
    def SerializeToString(self) -> bytes: ...
    def ByteSize(self) -> int: ...


class InferTensor(Message, Protocol):
    name: str
    datatype: str
    shape: MutableSequence[int]
    parameters: Parameters


class RequestedOutput(Protocol):
    name: str
    parameters: Parameters


class InferRequest(Message, Protocol):
    model_name: str
    model_version: str
    id: str
    parameters: Parameters
    inputs: Repeated[InferTensor]
    outputs: Repeated[RequestedOutput]
    raw_input_contents: MutableSequence[bytes]


class InferResponse(Message, Protocol):
    model_name: str
    model_version: str
    id: str
    parameters: Parameters
    outputs: Repeated[InferTensor]
    raw_output_contents: MutableSequence[bytes]


class StreamResponse(Message, Protocol):
    error_message: str
    infer_response: InferResponse


class TensorMetadata(Protocol):
    name: str
    datatype: str
    shape: MutableSequence[int]


class ModelMetadata(Message, Protocol):
    name: str
    versions: MutableSequence[str]
    platform: str
    inputs: Repeated[TensorMetadata]
    outputs: Repeated[TensorMetadata]


class ModelNamed(Message, Protocol):
    """A request that names a model: for its metadata, its configuration, or whether it is ready."""

    name: str
    version: str


def parse_type(message: str) -> Any:
    """The generated class of a message, for the (de)serializers of gRPC."""
    return getattr(_generated, message)


def infer_request() -> InferRequest:
    return cast(InferRequest, _generated.ModelInferRequest())


def infer_response() -> InferResponse:
    return cast(InferResponse, _generated.ModelInferResponse())


def stream_response(response: InferResponse) -> StreamResponse:
    return cast(StreamResponse, _generated.ModelStreamInferResponse(infer_response=response))


def stream_error(message: str, id: str) -> StreamResponse:
    made = cast(StreamResponse, _generated.ModelStreamInferResponse(error_message=message))
    made.infer_response.id = id
    return made


def model_named(kind: str, name: str) -> ModelNamed:
    """A request of this kind (`ModelMetadataRequest`) for the model `name`."""
    return cast(ModelNamed, getattr(_generated, kind)(name=name))


def model_metadata() -> ModelMetadata:
    return cast(ModelMetadata, _generated.ModelMetadataResponse())


def answer(kind: str, **fields: object) -> Message:
    """A message of this kind with these fields, such as `ServerLiveResponse` with `live`."""
    return cast(Message, getattr(_generated, kind)(**fields))


def config_answer(
    name: str, platform: str, max_batch_size: int, tensors: Mapping[str, list[tuple[str, str, list[int]]]]
) -> Message:
    """The configuration of a model of which these are known; `tensors` has those of `input` and `output`."""
    config = _config.ModelConfig(name=name, platform=platform, max_batch_size=max_batch_size)
    config.model_transaction_policy.decoupled = True
    for direction, each in tensors.items():
        for tensor, datatype, dims in each:
            number = _config.DataType.Value("TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}")
            getattr(config, direction).add(name=tensor, data_type=number, dims=dims)
    return cast(Message, _generated.ModelConfigResponse(config=config))


def value_of(parameter: Parameter) -> ParameterValue | None:
    """None if it has none."""
    field = parameter.WhichOneof("parameter_choice")
    return None if field is None else cast(ParameterValue, getattr(parameter, field))


def set_parameter(parameters: Parameters, name: str, value: ParameterValue) -> None:
    """Raises ValueError for a number that does not fit into 64 bits, or a text that is not Unicode."""
    match value:
        case bool():
            parameters[name].bool_param = value
        case int():
            parameters[name].int64_param = value
        case float():
            parameters[name].double_param = value
        case str():
            parameters[name].string_param = value


def parameters_of(parameters: Parameters) -> MutableMapping[str, ParameterValue]:
    """Those that have a value, by name."""
    found = {name: value_of(parameters[name]) for name in parameters}
    return {name: value for name, value in found.items() if value is not None}
