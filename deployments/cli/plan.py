"""`enginehouse plan`: what a rebuild would run, told without a GPU, a network or TensorRT-LLM."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from infra.s3.bucket import Bucket
from infra.triton.command import Ports, Server, leader, orchestrator, single
from tasks.kinds.choice import engine_kind
from tasks.kinds.protocol import EngineKind
from tasks.models.overrides import override
from tasks.models.spec import Model
from tasks.trtllm.llmapi.translate import Translation
from tasks.trtllm.releases import LAST


@dataclass(frozen=True)
class Preview:
    """A model as it would be built; `translation` where its kind is another than its file's."""

    model: Model
    translation: Translation | None = None
    image: str = ""
    """Digest of the image whose report says the TensorRT; empty where it is assumed."""


def preview(model: Model, overrides: Mapping[str, str], tensorrt_llm: str | None) -> Preview:
    """The model as `as_asked` has it. From TensorRT-LLM 1.3 on an engine becomes kind `llmapi` without asking."""
    if tensorrt_llm is not None and (kind := model.recipe.successor(tensorrt_llm)) is not None:
        overrides = {"kind": kind, **overrides}
    overridden = override(model, recipe=overrides, tensorrt_llm=tensorrt_llm)
    return Preview(overridden.model, overridden.translation)


def with_image(shown: Preview, bucket: Bucket) -> Preview:
    """The preview with what the store knows of the recipe's image. Raises UsageError `version-mismatch`, StoreError."""
    from tasks.models.overrides import in_image
    from tasks.trtllm.images import reported_image

    report = reported_image(bucket, shown.model.recipe.planned_runtime)
    model = in_image(shown.model, report)
    return replace(shown, model=model, image=report.digest if report is not None and report.tensorrt else "")


def document(shown: Preview) -> dict[str, Any]:
    """The preview as `--json` prints it. Folders are called `model`, `checkpoint` and `engine`."""
    model, kind = shown.model, engine_kind(shown.model)
    told: dict[str, Any] = {"model": model.name, "kind": model.kind, "source": model.source.uri}
    if model.adapter is not None:
        told["adapter"] = model.adapter
    if (runtime := model.recipe.planned_runtime) is not None:
        told["runtime"] = {
            "tensorrt_llm": runtime.tensorrt_llm,
            "tensorrt": runtime.planned_tensorrt,
            "gpu": runtime.gpu,
            "architecture": runtime.arch,
            "gpus": runtime.gpus,
            # Where no toolchain was ever asked; a worker that has something else refuses.
            "assumed": not shown.image,
            "image": runtime.image,
        }
    if (release := kind.tool_release()) is not None:
        told["options"] = {"exact": release.exact, "read_in": release.read_in}
    told["serving"] = _serving(model.name, kind)
    told["pool"] = kind.pool()
    told["commands"] = [list(argv) for argv in kind.commands()]
    if shown.translation is not None:
        told["translated"] = {"from": "trt-engine", "moved": shown.translation.moved, "lost": shown.translation.lost}
    return told


def _serving(name: str, kind: EngineKind) -> dict[str, Any]:
    """How Triton serves it, and how such a Triton is started, in NVIDIA's image and with the names of `assemble`."""
    mode = kind.serving_mode()
    server = Server(
        binary=Path("/opt/tritonserver/bin/tritonserver"),
        models=Path("models"),
        backends=Path("/opt/tritonserver/backends"),
        shared_memory="enginehouse-",
        ports=Ports(8000, 8001, 8002),
        control_key="KEY",
        exit_timeout_s=5,
    )
    gpus = len(kind.gpus())
    match mode.mode:
        case "single":
            started = single(server)
        case "orchestrator":
            started = orchestrator(server, gpus, "")
        case "leader":
            from tasks.triton.config import LLM, TENSORRT_LLM  # with gRPC, which takes as long as all the rest

            others = [Ports(http, http + 1, http + 2) for http in range(8010, 8000 + 10 * gpus, 10)]
            started = leader(server, others, TENSORRT_LLM, [LLM, name])
    return {
        "mode": mode.mode,
        "why": mode.why,
        "launch": list(started.argv),
        "environment": dict(started.environment),
    }


def lines(told: dict[str, Any]) -> Iterator[str]:
    """The same for people; the commands can be pasted."""
    yield f"{told['model']}  kind {told['kind']}, built on pool {told['pool']}"
    if (runtime := told.get("runtime")) is not None:
        yield (
            f"TensorRT-LLM {runtime['tensorrt_llm']} on {runtime['gpus']} x {runtime['gpu']} "
            f"({runtime['architecture']}), TensorRT {runtime['tensorrt'] or 'unknown'}"
            f"{' (assumed)' if runtime['assumed'] else ''}"
        )
        if runtime["image"] is not None:
            yield f"in {runtime['image']}"
    serving = told["serving"]
    yield f"served in mode {serving['mode']}: {serving['why']}"
    if (options := told.get("options")) is not None and not options["exact"]:
        yield f"its options are known only from the nearest sources: {options['read_in']}"
    if (translated := told.get("translated")) is not None:
        yield f"instead of kind {translated['from']}, which ends with TensorRT-LLM {LAST}:"
        for old, new in translated["moved"].items():
            yield f"  {old} is now {new}"
        for lost in translated["lost"]:
            yield f"  {lost} has no counterpart"
    yield from (shlex.join(argv) for argv in told["commands"])
