"""A plan as `--json` prints it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from pydantic import JsonValue

from deployments.cli.plan import Preview
from infra.triton.command import EXIT_TIMEOUT_S, Ports, Server, ServerCommand, leader, orchestrator, single
from tasks.explain.expected_time import Expected, Forecast
from tasks.explain.outlook import OnTarget, Outlook
from tasks.explain.planned_steps import PlannedStep
from tasks.kinds.answers import planned_sampling
from tasks.kinds.protocol import EngineKind
from tasks.models.spec import Model
from tasks.serving.generation import GenerationConfig
from tasks.weights.facts import WeightsFacts


def document(shown: Preview, prices: Mapping[str, float]) -> dict[str, JsonValue]:
    """The preview as `--json` prints it. Folders are called `model`, `checkpoint` and `engine`.

    `prices` of a GPU for an hour are by its architecture.
    """
    model, kind = shown.model, shown.kind
    mode, command = kind.serving_mode(), _server_command(model.name, kind)
    found: dict[str, JsonValue] = {"model": model.name, "kind": model.kind, "source": model.source.uri}
    if model.adapter is not None:
        found["adapter"] = model.adapter
    if model.adapters:
        found["adapters"] = dict(model.adapters)
    if model.draft is not None:
        found["draft"] = model.draft.uri
    if (runtime := model.recipe.planned_runtime) is not None:
        found["runtime"] = {
            "tensorrt_llm": runtime.tensorrt_llm,
            "tensorrt": runtime.planned_tensorrt,
            "gpu": runtime.gpu,
            "architecture": runtime.arch,
            "gpus": runtime.gpus,
            # No toolchain was asked. A worker with another TensorRT refuses.
            "assumed": not shown.image,
            "image": runtime.image,
        }
        found["architecture"] = model.recipe.planned_architecture
    if (release := kind.tool_release()) is not None:
        found["options"] = {"exact": release.exact, "read_in": release.read_in}
    found["serving"] = {
        "mode": mode.mode,
        "why": mode.why,
        "launch": list(command.argv),
        "environment": dict(command.environment),
    }
    if shown.facts is not None:
        found["weights"] = _facts_document(shown.facts)
        planned = kind.planned_cache(shown.facts)
        found["kv_cache"] = {**asdict(planned), "notes": [*planned.notes], "unclear": shown.facts.unclear}
    found["answers"] = _answers_document(model, shown.facts)
    found["pool"] = kind.pool()
    if waves := model.rollout.waves:
        found["waves"] = [{"targets": [*wave.targets], "soak": wave.soak} for wave in waves]
        found["on_refusal"] = model.rollout.on_refusal
    found["commands"] = [list(argv) for argv in kind.commands(shown.facts)]
    if shown.memory is not None:
        found["memory"] = {**asdict(shown.memory), "total": shown.memory.total}
    if shown.weights is not None:
        source = shown.weights.source
        found["pinned"] = {
            "pin": {name: value for name, value in source.pin.items() if name != "files"},
            "files": len(source.files),
            "bytes": source.known_bytes or None,
            "licence": source.licence or None,
            "gated": source.gated,
        }
    if shown.outlook is not None:
        found |= _outlook_document(shown, shown.outlook, prices)
    found["unknown"] = [*shown.unknown]
    if (translation := shown.translation) is not None:
        found["translated"] = {"from": "trt-engine", "moved": dict(translation.moved), "lost": translation.lost}
    return found


def _outlook_document(shown: Preview, outlook: Outlook, prices: Mapping[str, float]) -> dict[str, JsonValue]:
    compared, time = outlook.compared, outlook.time
    found: dict[str, JsonValue] = {
        "compared_with": None
        if compared is None
        else {"target": compared.target, "release": compared.release, "live": compared.live},
        "built_bytes": outlook.built_bytes,
        "targets": [_target_document(each) for each in outlook.targets],
    }
    if outlook.steps is not None and time is not None:
        found["steps"] = [
            _step_document(step, expected) for step, expected in zip(outlook.steps, time.steps, strict=True)
        ]
        found["time"] = {**_expected_document(time.total), "whole": time.whole}
        found["cost"] = _cost_document(shown, time, prices)
    return found


def _target_document(target: OnTarget) -> JsonValue:
    refusal = target.refusal
    return {
        "target": target.name,
        "live": target.live,
        "same": target.same,
        "nodes": [asdict(room) for room in target.rooms],
        "silent": target.silent,
        "refused": None
        if refusal is None
        else {"code": refusal.code, "message": refusal.message, "hint": refusal.hint},
    }


def _step_document(step: PlannedStep, expected: Expected | None) -> JsonValue:
    return {
        "step": step.step,
        "part": step.part,
        "state": step.state,
        "why": step.why,
        "artifact": str(step.ref),
        "bytes": step.artifact.manifest.size if step.artifact is not None else None,
        "download_bytes": step.download_bytes if step.state == "to make" else 0,
        "seconds": _expected_document(expected) if expected is not None and step.state == "to make" else None,
    }


def _expected_document(expected: Expected) -> dict[str, JsonValue]:
    return {
        "expected": round(expected.seconds, 1),
        "low": round(expected.low, 1),
        "high": round(expected.high, 1),
        "by": "prior" if expected.runs == 0 else "earlier runs",
    }


def _cost_document(shown: Preview, time: Forecast, prices: Mapping[str, float]) -> JsonValue:
    cost = cost_of(shown, time, prices)
    return None if cost is None else {"low": cost[0], "expected": cost[1], "high": cost[2]}


def cost_of(shown: Preview, time: Forecast, prices: Mapping[str, float]) -> tuple[float, float, float] | None:
    """What the GPUs that convert and build cost: at least, likely and at most. None without a price of theirs."""
    price = prices.get(shown.kind.pool().removeprefix("build-"))
    if price is None or (busy := time.gpu_seconds) is None:
        return None
    low, likely, high = (round(seconds / 3600 * price, 2) for seconds in (busy.low, busy.seconds, busy.high))
    return low, likely, high


def _answers_document(model: Model, facts: WeightsFacts | None) -> dict[str, JsonValue]:
    """How answers are sampled, and by whose word; what ends them beside the end token of the tokenizer.

    Without the facts of the weights it is what the model's file says. What lies in the artifact decides.
    """
    generation = None if facts is None else facts.generation
    return {
        "sampling": asdict(planned_sampling(model.serving, generation or GenerationConfig())),
        "of_weights": None if generation is None else dict(generation.sampling),
        "end_ids": None if generation is None else [*generation.end_ids],
    }


def _facts_document(facts: WeightsFacts) -> dict[str, JsonValue]:
    document = asdict(facts)
    for name in ("cache", "unclear", "files", "generation"):
        del document[name]
    document["draft"] = None if facts.draft is None else _facts_document(facts.draft)
    quantization = None if facts.quantization is None else str(facts.quantization)
    return {
        **document,
        "key_value_heads": [*facts.key_value_heads],
        "windows": [*facts.windows],
        "quantization": quantization,
    }


def _server_command(name: str, kind: EngineKind) -> ServerCommand:
    """How a Triton for the model is started, in NVIDIA's image and with the names of `assemble`."""
    server = Server(
        binary=Path("/opt/tritonserver/bin/tritonserver"),
        models=Path("models"),
        backends=Path("/opt/tritonserver/backends"),
        shared_memory="enginehouse-",
        ports=Ports(8000, 8001, 8002),
        control_key="KEY",
        exit_timeout_s=EXIT_TIMEOUT_S,
    )
    gpus = len(kind.gpus())
    match kind.serving_mode().mode:
        case "single":
            return single(server)
        case "orchestrator":
            return orchestrator(server, gpus, "")
        case "leader":
            from tasks.triton.config import LLM, TENSORRT_LLM  # imports gRPC, which takes as long as all the rest

            others = [Ports(http, http + 1, http + 2) for http in range(8010, 8000 + 10 * gpus, 10)]
            return leader(server, others, TENSORRT_LLM, [LLM, name])
