"""Whether the models of a release fit together, checked before anything is written and not when a request fails."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from infra.errors import UsageError
from tasks.serving.called import CALLED_MODEL
from tasks.triton.protobuf import EnsembleStep, ModelConfig, OutputTensor, data_type, type_name

AnyTensor = TypeVar("AnyTensor", bound=OutputTensor)


@dataclass(frozen=True)
class CalledTensor:
    """A tensor as a calling model sends or reads it: Triton's name of its type, dims without the batch (-1: any)."""

    name: str
    data_type: str
    dims: tuple[int, ...]
    always: bool = False


@dataclass(frozen=True)
class Calls:
    """What `llm` sends to the model it calls, and what it reads of the answers."""

    sends: tuple[CalledTensor, ...]
    reads: tuple[CalledTensor, ...]


def check_compatibility(configs: Mapping[str, ModelConfig], calls: Calls | None = None) -> None:
    """Raise UsageError `models-disagree`, naming both models and the tensor, unless the models fit together.

    `configs` are by the names that the models use for each other. The steps of ensembles are checked, and with `calls`
    the call of a model that has the parameter `tensorrt_llm_model_name`.
    """
    for name, config in configs.items():
        if config.HasField("ensemble_scheduling"):
            _check_ensemble(name, config, configs)
        if CALLED_MODEL in config.parameters:
            called = config.parameters[CALLED_MODEL].string_value
            if called not in configs:
                raise _disagree(f"{name} calls the model '{called}'", "the release has no such model")
            if calls is not None:
                _check_call(name, called, configs[called], calls)


def _check_ensemble(name: str, ensemble: ModelConfig, configs: Mapping[str, ModelConfig]) -> None:
    """Check step by step. Tensors pass from one to the next under the ensemble's own names."""
    made: dict[str, tuple[str, OutputTensor]] = {tensor.name: (name, tensor) for tensor in ensemble.input}
    for step in ensemble.ensemble_scheduling.step:
        if step.model_name not in configs:
            raise _disagree(f"{name} has a step '{step.model_name}'", "the release has no such model")
        model = configs[step.model_name]
        if ensemble.max_batch_size > model.max_batch_size:
            raise _disagree(
                f"{name} takes batches of {ensemble.max_batch_size}",
                f"its step {step.model_name} takes {model.max_batch_size}",
            )
        _check_inputs(name, ensemble, step, model, made)
        outputs = _by_name(model.output)
        for source, target in step.output_map.items():
            if source not in outputs:
                raise _disagree(f"{name} takes '{target}' from '{source}'", f"{step.model_name} has no such output")
            made[target] = (step.model_name, outputs[source])
    for tensor in ensemble.output:
        if tensor.name not in made:
            raise _disagree(f"{name} has an output '{tensor.name}'", "none of its steps makes it")
        _check_pair(*made[tensor.name], name, tensor)


def _check_inputs(
    name: str,
    ensemble: ModelConfig,
    step: EnsembleStep,
    model: ModelConfig,
    made: Mapping[str, tuple[str, OutputTensor]],
) -> None:
    """Check what a step gets: `made` are the tensors so far, each with the model that gives it."""
    inputs, optional = _by_name(model.input), {tensor.name for tensor in ensemble.input if tensor.optional}
    for target, source in step.input_map.items():
        if target not in inputs:
            raise _disagree(f"{name} gives '{source}' as '{target}'", f"{step.model_name} has no such input")
        if source not in made:
            raise _disagree(f"{step.model_name} is to get '{source}' as '{target}'", f"nothing in {name} makes it")
        giver, given = made[source]
        _check_pair(giver, given, step.model_name, inputs[target])
        if giver == name and source in optional and not inputs[target].optional:
            raise _disagree(f"{name} has an optional input '{source}'", f"{step.model_name} needs its '{target}'")
    if missing := [key for key, tensor in inputs.items() if not tensor.optional and key not in step.input_map]:
        raise _disagree(f"{step.model_name} needs {', '.join(missing)}", f"{name} does not give it")


def _check_call(caller: str, called: str, config: ModelConfig, calls: Calls) -> None:
    inputs = _by_name(config.input)
    for verb, tensors, existing in (("sends", calls.sends, inputs), ("reads", calls.reads, _by_name(config.output))):
        for tensor in tensors:
            if tensor.name not in existing:
                raise _disagree(f"{caller} {verb} '{tensor.name}'", f"{called} has no such tensor")
            known = existing[tensor.name]
            if known.data_type != data_type(tensor.data_type) or not _fit(tensor.dims, known.dims):
                raise _disagree(
                    f"{caller} {verb} '{tensor.name}' as {tensor.data_type} {list(tensor.dims)}",
                    f"{called} has {_described(known)}",
                )
    always = {tensor.name for tensor in calls.sends if tensor.always}
    if missing := [key for key, tensor in inputs.items() if not tensor.optional and key not in always]:
        raise _disagree(f"{called} needs {', '.join(missing)}", f"{caller} does not always send it")


def _check_pair(giver: str, given: OutputTensor, taker: str, taken: OutputTensor) -> None:
    if given.data_type != taken.data_type or not _fit(given.dims, taken.dims):
        raise _disagree(
            f"{giver} has '{given.name}' of {_described(given)}", f"{taker} '{taken.name}' of {_described(taken)}"
        )


def _fit(some: Sequence[int], others: Sequence[int]) -> bool:
    return len(some) == len(others) and all(-1 in pair or pair[0] == pair[1] for pair in zip(some, others, strict=True))


def _by_name(tensors: Iterable[AnyTensor]) -> dict[str, AnyTensor]:
    return {tensor.name: tensor for tensor in tensors}


def _described(tensor: OutputTensor) -> str:
    return f"{type_name(tensor.data_type)} {list(tensor.dims)}"


def _disagree(one: str, other: str) -> UsageError:
    return UsageError(f"{one}, and {other}", hint="the models of one release have to fit", code="models-disagree")
