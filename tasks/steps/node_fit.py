"""Whether the nodes of a target can serve an engine, and hold it beside what they serve: before any byte is copied.

All errors are EnginehouseError, with a code of its own each.
"""

from __future__ import annotations

from collections.abc import Sequence

from infra.errors import EnginehouseError
from tasks.kinds.protocol import EngineKind
from tasks.steps.plan import Plan
from tasks.store.artifact import Artifact
from tasks.targets.current import Current
from tasks.targets.node_report import NodeReport


def require_readable(target: str, nodes: Sequence[NodeReport], intent: int, *artifacts: Artifact) -> None:
    """Raises `node-older` if some node cannot read an intent of this version, or the manifest of an artifact."""
    manifest = max((artifact.manifest.schema_version for artifact in artifacts), default=0)
    older = [node.node for node in nodes if node.reads.intent < intent or node.reads.manifest < manifest]
    if older:
        raise EnginehouseError(
            f"these nodes of target '{target}' are older than the records of the new release: {', '.join(older)}",
            hint="give them this version of Enginehouse first; what they serve stays as it is until then",
            code="node-older",
        )


def require_fit(plan: Plan, engine: Artifact, nodes: Sequence[NodeReport]) -> None:
    """Raises `runtime-differs` or `leader-mode` if some node cannot serve the engine at all."""
    model = plan.model
    unfit = {node.node: plan.kind.fits(engine.manifest, node.machine) for node in nodes}
    lines = [f"node '{node}' is not what {model.name} needs: {'; '.join(why)}" for node, why in unfit.items() if why]
    if lines:
        raise EnginehouseError(
            ". ".join(lines),
            hint="rebuild for what the nodes have (recipe.runtime in the model's file), or run them in the image and "
            "on the GPUs of the recipe; a node reports its image's TensorRT-LLM if ENGINEHOUSE_TRITON is set",
            code="runtime-differs",
        )
    served = plan.kind.serving_mode()
    unable = [node.node for node in nodes if served.mode == "leader" and not node.machine.groups]
    if unable:
        raise EnginehouseError(
            f"{model.name} cannot be rolled out: {', '.join(unable)} has no mpirun, which it needs for {served.why}",
            hint="run the node in an image that has mpirun in PATH, as NVIDIA's with TensorRT-LLM do; or use "
            "TensorRT-LLM 0.9 or later, or one GPU",
            code="leader-mode",
        )


def must_be_alone(
    plan: Plan,
    engine: Artifact,
    repository: Artifact,
    limits: bytes,
    current: Current,
    nodes: Sequence[NodeReport],
    *,
    recreate: bool,
) -> bool:
    """Whether some node cannot hold the candidate beside the releases that stay. `limits` is the engine's limits file,
    and the repository has its adapters.

    Raises `memory-short` unless `recreate` allows that, or if the node cannot hold the candidate even by itself.
    """
    weights = engine.manifest.size + repository.manifest.size
    needed = plan.kind.memory_bytes(weights, limits)
    # A release that was alone has no previous one beside it. The previous one would come back too; as its size is not
    # known, it counts like the candidate.
    beside = 2 * needed if current.alone and current.previous is not None else needed
    gpus = plan.kind.gpus()
    alone = False
    for node in nodes:
        total, free = node_memory(node, gpus)
        if free >= beside:
            continue
        if not recreate or total < needed:
            settings = "serving.tensorrt_llm.kv_cache_tokens" if gpus else "serving.slots or serving.context_tokens"
            raise EnginehouseError(
                f"node '{node.node}' has {free >> 20} MiB free{' on a GPU' if gpus else ''}, and another release of "
                f"{plan.model.name} needs {beside >> 20} MiB beside the live one",
                hint=f"lower {settings}, or give the node more memory"
                + ("" if recreate else "; with --recreate the live release is unloaded before the new one is loaded"),
                code="memory-short",
            )
        alone = True
    return alone


def require_beside(
    kind: EngineKind, name: str, engine: Artifact, repository: Artifact, limits: bytes, nodes: Sequence[NodeReport]
) -> None:
    """Raises `memory-short` if some node cannot hold one more release of the engine beside all that it holds."""
    needed = kind.memory_bytes(engine.manifest.size + repository.manifest.size, limits)
    for node in nodes:
        _, free = node_memory(node, kind.gpus())
        if free < needed:
            raise EnginehouseError(
                f"node '{node.node}' has {free >> 20} MiB free, and {name} needs {needed >> 20} MiB once more",
                hint="give the node more memory; or retire the model, and rebuild it under its new name, which builds "
                "nothing: clients are not answered in between",
                code="memory-short",
            )


def node_memory(node: NodeReport, gpus: Sequence[int]) -> tuple[int, int]:
    """Bytes in all and free: of the GPU among `gpus` that has the least, or of the host without GPUs.

    The node has all of these GPUs.
    """
    taken = [node.machine.gpus[place] for place in gpus]
    if not taken or any(gpu.memory_bytes == 0 for gpu in taken):  # such a GPU has the host's memory
        return node.memory_total_bytes, node.memory_available_bytes
    return min(gpu.memory_bytes for gpu in taken), min(gpu.free_bytes for gpu in taken)
