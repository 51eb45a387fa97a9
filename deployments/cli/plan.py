"""`enginehouse plan`: what a rebuild would run. It needs no GPU, no network and no TensorRT-LLM."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from pydantic import JsonValue

from infra.s3.bucket import Bucket
from infra.triton.command import EXIT_TIMEOUT_S, Ports, Server, ServerCommand, leader, orchestrator, single
from tasks.kinds.choice import engine_kind
from tasks.kinds.protocol import EngineKind
from tasks.models.overrides import in_image, override
from tasks.models.spec import Model
from tasks.trtllm.images import reported_image
from tasks.trtllm.llmapi.translate import Translation
from tasks.trtllm.releases import LAST


@dataclass(frozen=True)
class Preview:
    """A model as it would be built. `translation` is set where its kind is another than its file's."""

    model: Model
    translation: Translation | None = None
    image: str = ""
    """Digest of the image that was reported to hold the TensorRT; empty where the TensorRT is assumed."""

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


def document(shown: Preview) -> dict[str, JsonValue]:
    """The preview as `--json` prints it. Folders are called `model`, `checkpoint` and `engine`."""
    model, kind = shown.model, shown.kind
    mode, command = kind.serving_mode(), _server_command(model.name, kind)
    found: dict[str, JsonValue] = {"model": model.name, "kind": model.kind, "source": model.source.uri}
    if model.adapter is not None:
        found["adapter"] = model.adapter
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
    if (release := kind.tool_release()) is not None:
        found["options"] = {"exact": release.exact, "read_in": release.read_in}
    found["serving"] = {
        "mode": mode.mode,
        "why": mode.why,
        "launch": list(command.argv),
        "environment": dict(command.environment),
    }
    found["pool"] = kind.pool()
    found["commands"] = [list(argv) for argv in kind.commands()]
    if (translation := shown.translation) is not None:
        found["translated"] = {"from": "trt-engine", "moved": dict(translation.moved), "lost": translation.lost}
    return found


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
    if (release := kind.tool_release()) is not None and not release.exact:
        yield f"its options are known only from the nearest sources: {release.read_in}"
    if (translation := shown.translation) is not None:
        yield f"instead of kind trt-engine, which ends with TensorRT-LLM {LAST}:"
        for old, new in translation.moved.items():
            yield f"  {old} is now {new}"
        for lost in translation.lost:
            yield f"  {lost} has no counterpart"
    yield from (shlex.join(argv) for argv in kind.commands())
