"""The `config.pbtxt` of a release's `llm` and `release`, and of the public name.

A repository artifact uses relative model names (`tensorrt_llm`, `llm`, `release`) and a relative engine folder; on a
node, `instantiate` replaces them by the names of the release and the node's own folder. Clients speak to the public
name, an ensemble with the steps of the release's.
"""

from __future__ import annotations

from collections.abc import Mapping

from infra.errors import UsageError
from tasks.serving.called import CALLED_MODEL, CALLED_SERVER, DRAFT_MODEL
from tasks.serving.cancellation import CANCELLATION_ID
from tasks.serving.contract import CONTRACT, MAX_BATCH_SIZE, inputs_of, outputs_of
from tasks.serving.llmapi import ENGINE_PATH
from tasks.serving.tickets import HANDED_ON, TICKET
from tasks.triton.protobuf import KIND_CPU, ModelConfig, data_type, new_config, parse_config, render

TENSORRT_LLM = "tensorrt_llm"
TENSORRT_LLM_DRAFT = "tensorrt_llm_draft"
"""The engine of the draft model, if the release has one."""
LLM = "llm"
RELEASE = "release"

ENGINE_FOLDER = "engine"
"""The engine's files: in an artifact's configuration, and in the version folder of an `llm` that has an engine."""


def llm_config(
    *,
    contract: int = CONTRACT,
    instances: int = 1,
    calls: str = "",
    drafts: str = "",
    engine_in_place: bool = False,
    tickets: bool = False,
    hands_on: bool = False,
) -> str:
    """The model `llm`: the Python backend, decoupled. With `calls` it has no engine and calls the model of that name.

    With `drafts` it has the model of that name guess what the other then checks.

    The engine lies in the model's own folder, or with `engine_in_place` where the node keeps it. Each instance is a
    process that batches by itself; if the engine runs in it, each has its own copy of the weights. With `tickets` it
    gives out and takes those of `tasks/serving/tickets.py`, and if it `hands_on` what is beside them, so that another
    instance may take them.
    """
    config = _with_contract(LLM, contract)
    for tensor in config.input:
        # A request that cancels another, or brings a ticket, has none of them. `llm` itself refuses one that lacks what
        # its contract requires.
        tensor.optional = True
    config.input.add(name=CANCELLATION_ID, data_type=data_type("BYTES"), dims=[1], optional=True)
    if tickets:
        config.input.add(name=TICKET, data_type=data_type("UINT64"), dims=[1], optional=True)
        config.output.add(name=TICKET, data_type=data_type("UINT64"), dims=[1])
    if hands_on:
        config.input.add(name=HANDED_ON, data_type=data_type("BYTES"), dims=[1], optional=True)
        config.output.add(name=HANDED_ON, data_type=data_type("BYTES"), dims=[1])
    config.backend = "python"
    config.model_transaction_policy.decoupled = True
    # Its engine decides on devices, so Triton need not.
    config.instance_group.add(count=instances, kind=KIND_CPU)
    if calls:
        config.parameters[CALLED_MODEL].string_value = calls
    if drafts:
        config.parameters[DRAFT_MODEL].string_value = drafts
    if engine_in_place:
        config.parameters[ENGINE_PATH].string_value = ENGINE_FOLDER
    return render(config)


def release_config(contract: int = CONTRACT, *, tickets: bool = False, hands_on: bool = False) -> str:
    """The ensemble `release`, which passes the whole contract to `llm`, optional inputs included.

    With `tickets` its two steps are one request, and a client that leaves ends it. If it `hands_on`, they may run in
    different instances of `llm`.
    """
    config = _with_contract(RELEASE, contract)
    config.platform = "ensemble"
    taking = carrying = config.ensemble_scheduling.step.add(model_name=LLM, model_version=-1)
    if tickets:
        carrying = config.ensemble_scheduling.step.add(model_name=LLM, model_version=-1)
        for tensor in (TICKET, HANDED_ON) if hands_on else (TICKET,):
            taking.output_map[tensor] = carrying.input_map[tensor] = tensor
    for tensor in inputs_of(contract):
        taking.input_map[tensor.name] = tensor.name
    for tensor in outputs_of(contract):
        carrying.output_map[tensor.name] = tensor.name
    return render(config)


def public_config(name: str, release_config_text: str) -> str:
    """The public ensemble `name`, with the steps of the ensemble of that configuration (such as `NAME--r7`).

    It has the contract of the release: a release of an earlier Enginehouse may have fewer fields.
    """
    config = parse_config(release_config_text)
    config.name = name
    return render(config)


def instantiate(config_text: str, names: Mapping[str, str], engine_folder: str = "", engine_server: str = "") -> str:
    """The same configuration with all relative model names replaced by those of a release.

    `engine_folder` is the absolute folder in which the node keeps the engine. `engine_server` is the gRPC address, as
    `host:port`, of the server that runs the engine, if it has its own. Raises UsageError `triton-config` if the text is
    no model configuration, or names a model that `names` lacks.
    """
    config = parse_config(config_text)
    try:
        config.name = names[config.name]
        for step in config.ensemble_scheduling.step:
            step.model_name = names[step.model_name]
        for parameter in (CALLED_MODEL, DRAFT_MODEL):
            if parameter in config.parameters:
                called = config.parameters[parameter]
                called.string_value = names[called.string_value]
                if engine_server:
                    config.parameters[CALLED_SERVER].string_value = engine_server
    except KeyError as error:
        raise UsageError(
            f"the configuration of '{config.name}' names the model {error}, which its release does not have",
            hint=f"its models are: {', '.join(names)}",
            code="triton-config",
        ) from error
    if ENGINE_PATH in config.parameters:
        path = config.parameters[ENGINE_PATH]
        path.string_value = engine_folder + path.string_value.removeprefix(ENGINE_FOLDER)
    return render(config)


def _with_contract(name: str, contract: int) -> ModelConfig:
    config = new_config(name, max_batch_size=MAX_BATCH_SIZE)
    for tensor in inputs_of(contract):
        config.input.add(
            name=tensor.name,
            data_type=data_type(tensor.data_type),
            dims=[-1 if tensor.many else 1],
            optional=tensor.required_until < contract,
        )
    for tensor in outputs_of(contract):
        config.output.add(name=tensor.name, data_type=data_type(tensor.data_type), dims=tensor.dims)
    return config
