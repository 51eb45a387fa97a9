"""`enginehouse plan`: what a rebuild would run. It needs no GPU, no TensorRT-LLM, and of a network only small files."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from pydantic import JsonValue

from infra.s3.bucket import Bucket
from infra.triton.command import EXIT_TIMEOUT_S, Ports, Server, ServerCommand, leader, orchestrator, single
from tasks.kinds.answers import planned_sampling
from tasks.kinds.choice import engine_kind
from tasks.kinds.protocol import EngineKind, PlannedCache
from tasks.models.overrides import in_image, of_architecture, override
from tasks.models.rollout import Rollout
from tasks.models.spec import Model
from tasks.serving.generation import FILE, GenerationConfig
from tasks.sources.resolved import Access
from tasks.sources.survey import survey_source
from tasks.trtllm.architectures import LLAMA
from tasks.trtllm.images import reported_image
from tasks.trtllm.llmapi.translate import Translation
from tasks.trtllm.releases import LAST
from tasks.weights.facts import WeightsFacts


@dataclass(frozen=True)
class Preview:
    """A model as it would be built. `translation` is set where its kind is another than its file's."""

    model: Model
    translation: Translation | None = None
    image: str = ""
    """Digest of the image that was reported to hold the TensorRT; empty where the TensorRT is assumed."""
    facts: WeightsFacts | None = None
    """What the weights say of themselves, where they could be asked."""

    @cached_property
    def kind(self) -> EngineKind:
        return engine_kind(self.model)


def preview(model: Model, overrides: Mapping[str, str], tensorrt_llm: str | None) -> Preview:
    """The model as `override` gives it. From TensorRT-LLM 1.3 on, an engine becomes kind `llmapi` without asking."""
    if tensorrt_llm is not None and (kind := model.recipe.successor(tensorrt_llm)) is not None:
        overrides = {"kind": kind, **overrides}
    overridden = override(model, recipe=overrides, tensorrt_llm=tensorrt_llm)
    return Preview(overridden.model, overridden.translation)


def with_image(shown: Preview, bucket: Bucket) -> Preview:
    """The preview with what the store knows of the recipe's image. Raises UsageError `version-mismatch`, StoreError."""
    report = reported_image(bucket, shown.model.recipe.planned_runtime)
    model = in_image(shown.model, report)
    return replace(shown, model=model, image=report.digest if report is not None and report.tensorrt else "")


def with_weights(shown: Preview, access: Access) -> Preview:
    """The preview with the facts of the weights, for a kind that goes by them.

    Raises UsageError `weights-unfit` if the recipe cannot be made of them, and as `survey_source` does.
    """
    if not shown.kind.reads_config:
        return shown
    facts = survey_source(shown.model.source, access)
    if facts is None:
        return shown
    source, draft = shown.model.draft, shown.model.recipe.draft
    if source is not None and draft is not None and draft.is_model:
        facts = replace(facts, draft=survey_source(source, access))
    shown.kind.require_weights(facts)
    return replace(shown, model=of_architecture(shown.model, facts.architecture), facts=facts)


def document(shown: Preview) -> dict[str, JsonValue]:
    """The preview as `--json` prints it. Folders are called `model`, `checkpoint` and `engine`."""
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
    if (translation := shown.translation) is not None:
        found["translated"] = {"from": "trt-engine", "moved": dict(translation.moved), "lost": translation.lost}
    return found


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


def _answers_line(shown: Preview) -> str:
    own: dict[str, float] = shown.model.serving.defaults.model_dump(exclude_none=True)
    generation = None if shown.facts is None else shown.facts.generation
    known: Mapping[str, float] = {} if generation is None else generation.sampling
    weights = {name: value for name, value in known.items() if name not in own}
    said = [
        f"{', '.join(f'{name} {value:g}' for name, value in values.items())} by {whom}"
        for values, whom in ((own, "the model's file"), (weights, FILE))
        if values
    ]
    sampled = f"answers: {', '.join(said) or 'sampled as the engine does by itself'}"
    if not shown.kind.reads_config:
        return sampled
    if generation is None:
        return f"{sampled}; what {FILE} of the weights says is known once it is read"
    ends = ", ".join(map(str, generation.end_ids))
    return f"{sampled}; they end at the tokenizer's own end{f' and at {ends}' if ends else ''}"


def _waves_lines(rollout: Rollout) -> Iterator[str]:
    for number, wave in enumerate(rollout.waves, 1):
        soak = f", then {wave.soak:g} s until the next" if wave.soak else ""
        yield f"wave {number} of {len(rollout.waves)}: {', '.join(wave.targets)}{soak}"
    if rollout.waves:
        back = (
            "gives the previous release back on all of them" if rollout.on_refusal == "all_back" else "stops it there"
        )
        yield f"a target that refuses the release {back}"


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


def _facts_lines(facts: WeightsFacts, planned: PlannedCache) -> Iterator[str]:
    yield f"weights: {facts}"
    if facts.draft is not None:
        yield f"draft: {facts.draft}"
    if planned.bytes_per_token is None:
        yield f"KV cache: a share of the memory, as it is not understood: {facts.unclear}"
    else:
        tokens = "" if planned.tokens is None else f", {planned.tokens} tokens planned"
        yield f"KV cache: {planned.bytes_per_token} bytes a token on each GPU{tokens}"
    yield from planned.notes


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


def lines(shown: Preview) -> Iterator[str]:
    """The preview for people. The commands can be pasted."""
    kind, mode = shown.kind, shown.kind.serving_mode()
    yield f"{shown.model.name}  kind {shown.model.kind}, built on pool {kind.pool()}"
    if (runtime := shown.model.recipe.planned_runtime) is not None:
        assumed = "" if shown.image else " (assumed)"
        yield (
            f"TensorRT-LLM {runtime.tensorrt_llm} on {runtime.gpus} x {runtime.gpu} ({runtime.arch}), "
            f"TensorRT {runtime.planned_tensorrt or 'unknown'}{assumed}"
        )
        if runtime.image is not None:
            yield f"in {runtime.image}"
    yield f"served in mode {mode.mode}: {mode.why}"
    yield _answers_line(shown)
    yield from _waves_lines(shown.model.rollout)
    if shown.facts is not None:
        yield from _facts_lines(shown.facts, kind.planned_cache(shown.facts))
    elif (architecture := shown.model.recipe.planned_architecture) is not None:
        yield f"architecture: {architecture}, by the recipe"
    elif kind.tool_release() is not None:
        yield f"architecture: not named in the recipe, so {LLAMA} is shown; a rebuild goes by the weights' config.json"
    if (release := kind.tool_release()) is not None and not release.exact:
        yield f"its options are known only from the nearest sources: {release.read_in}"
    if (translation := shown.translation) is not None:
        yield f"instead of kind trt-engine, which ends with TensorRT-LLM {LAST}:"
        for old, new in translation.moved.items():
            yield f"  {old} is now {new}"
        for lost in translation.lost:
            yield f"  {lost} has no counterpart"
    yield from (shlex.join(argv) for argv in kind.commands(shown.facts))
