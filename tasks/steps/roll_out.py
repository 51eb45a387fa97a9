"""Roll out: a candidate beside the live release, loaded and ready on every live node of a target."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from infra.errors import EnginehouseError, GateRefused, TritonError
from tasks.kinds.protocol import LIMITS_FILE
from tasks.steps.context import Context
from tasks.steps.plan import Plan
from tasks.store.artifact import Artifact
from tasks.store.identity import Identity
from tasks.store.lease import held
from tasks.targets.current import Current
from tasks.targets.node_report import NodeReport
from tasks.targets.release import Intent, Result, changes_since
from tasks.targets.target import Target

CANDIDATE_LIFETIME_SECONDS = 3600.0
"""A candidate without a result this long after its number was reserved belongs to a run that died."""

_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class RollOut:
    """Release `release` on `target`; `unchanged` where it is live already and nothing was done."""

    target: str
    release: int
    unchanged: bool


def roll_out(
    context: Context,
    plan: Plan,
    target_name: str,
    *,
    refresh: bool = False,
    recreate: bool = False,
    lost: Mapping[str, JsonValue] | None = None,
    timeout_s: float = 900.0,
) -> RollOut:
    """Make a release of the plan's repository, or go on with one that a killed run left half way.

    A repository identity equal to the live one makes no release, unless `refresh` and the bytes differ. Where memory
    does not hold it beside the live one, `recreate` lets it take the live one's place before it is tested. `lost` are
    fields that the recipe had before it was translated to this kind, for the record.
    Raises GateRefused where a node cannot load it; TritonError where no node is alive (retryable); EnginehouseError,
    code `memory-short`, `runtime-differs` where a node is not what the engine was built for, and `leader-mode`.
    """
    target = context.target(target_name)
    model = plan.model.name
    repository, engine = context.store.need(plan.repository_ref), context.store.need(plan.engine_ref)
    digest = Identity({"repository": repository.manifest.digest, "engine": engine.manifest.digest}).digest
    if (live := _live(target, plan, digest, refresh)) is not None:
        return RollOut(target_name, live, unchanged=True)
    # Two runs of one model at once share one release: the second finds what the first has begun, or made live.
    with held(target.bucket, f"roll-out-{target_name}-{model}", context.flow_run, context.lease_seconds):
        if (live := _live(target, plan, digest, refresh)) is not None:
            return RollOut(target_name, live, unchanged=True)
        release = _begin(context, plan, target, engine, digest, recreate, lost or {})
    _wait_until_ready(target, model, release, timeout_s)
    return RollOut(target_name, release, unchanged=False)


def _live(target: Target, plan: Plan, digest: str, refresh: bool) -> int | None:
    """The public release, where it is of the plan's repository, and with `refresh` of the very bytes too."""
    current, _ = target.current(plan.model.name)
    if current.public is None:
        return None
    intent = target.intent(plan.model.name, current.public)
    same = intent.repository == str(plan.repository_ref) and (not refresh or intent.digest == digest)
    return current.public if same else None


def _begin(
    context: Context,
    plan: Plan,
    target: Target,
    engine: Artifact,
    digest: str,
    recreate: bool,
    lost: Mapping[str, JsonValue],
) -> int:
    """Make the release a candidate: the one that another run of the same bytes has begun, or a new one."""
    model = plan.model.name
    nodes = live_nodes(target)
    _require_nodes_that_fit(plan, engine, nodes)
    current, _ = target.current(model)
    release = _unfinished(target, model, current, str(plan.repository_ref), digest)
    if release is not None and release in current.candidates:
        alone = current.alone
    else:
        alone = _must_be_alone(context, plan, engine, current, nodes, recreate)
    if release is None:
        recipe, serving = (part.model_dump(mode="json") for part in (plan.model.recipe, plan.model.serving))
        live = target.intent(model, current.public) if current.public is not None else None
        release = target.reserve(
            model,
            lambda number: Intent(
                model=model,
                release=number,
                repository=str(plan.repository_ref),
                digest=digest,
                recipe=recipe,
                serving=serving,
                ranks=plan.kind.serving_mode().ranks,
                changes=changes_since(live, recipe, serving),
                lost=dict(lost),
                source=plan.model.origin,
                flow_run=context.flow_run,
            ),
        ).release
    wanted = release
    target.move(model, lambda current: _without_abandoned(target, model, current).with_candidate(wanted, alone=alone))
    return release


def live_nodes(target: Target) -> list[NodeReport]:
    """Reports of the live nodes, at least one. Raises TritonError (retryable) where there is none."""
    nodes = target.nodes()
    if not nodes:
        raise TritonError(
            f"target '{target.name}' has no live node",
            hint="start one: `enginehouse up` for the embedded stack, `enginehouse node` elsewhere",
            code="no-live-node",
            retryable=True,
        )
    return nodes


def refuse(target: Target, model: str, result: Result, hint: str = "") -> GateRefused:
    """Record that a candidate was refused, stop wanting it, and return the error to raise, `hint` before its own."""
    counted = target.conclude(model, result)
    target.move(model, lambda current: current.without_candidate(result.release))
    evidence = f"the live release was not touched; `enginehouse releases {model}` shows the evidence"
    return GateRefused(
        f"{model} release {result.release} on '{target.name}' was refused: {counted.reason}",
        hint=f"{hint}; {evidence}" if hint else evidence,
    )


def _unfinished(target: Target, model: str, current: Current, repository: str, digest: str) -> int | None:
    """A release of the same bytes that a run which died, or one beside us, has begun: the newest."""
    passed = {
        candidate
        for candidate in current.candidates
        if (result := target.result(model, candidate)) is not None and result.state == "passed"
    }
    for release in sorted(passed.union(target.inconclusive(model)), reverse=True):
        intent = target.intent(model, release)
        if (intent.repository, intent.digest) == (repository, digest):
            return release
    return None


def _without_abandoned(target: Target, model: str, current: Current) -> Current:
    for candidate in current.candidates:
        result = target.result(model, candidate)
        refused = result is not None and result.state == "refused"
        if refused or target.intent_age(model, candidate) > CANDIDATE_LIFETIME_SECONDS:
            current = current.without_candidate(candidate)
    return current


def _require_nodes_that_fit(plan: Plan, engine: Artifact, nodes: list[NodeReport]) -> None:
    """Raise where some node cannot serve the engine at all: before a number is spent, or a byte is copied."""
    model = plan.model
    unfit = {node.node: plan.kind.fits(engine.manifest, node.machine) for node in nodes}
    told = [f"node '{node}' is not what {model.name} needs: {'; '.join(why)}" for node, why in unfit.items() if why]
    if told:
        raise EnginehouseError(
            ". ".join(told),
            hint="rebuild for what the nodes have (recipe.runtime in the model's file), or run them in the image and "
            "on the GPUs of the recipe; a node tells of its image's TensorRT-LLM where ENGINEHOUSE_TRITON is set",
            code="runtime-differs",
        )
    served = plan.kind.serving_mode()
    unable = [node.node for node in nodes if served.mode == "leader" and not node.machine.groups]
    if unable:
        raise EnginehouseError(
            f"{model.name} cannot be rolled out: no mpirun on {', '.join(unable)}, and it is for {served.why}",
            hint="run the node in an image that has mpirun in PATH, as NVIDIA's with TensorRT-LLM do; or use "
            "TensorRT-LLM 0.9 or later, or one GPU",
            code="leader-mode",
        )


def _must_be_alone(
    context: Context, plan: Plan, engine: Artifact, current: Current, nodes: list[NodeReport], recreate: bool
) -> bool:
    """Whether some node cannot hold the candidate beside what is to stay. Raises where that was not asked for."""
    limits = context.store.read(engine, LIMITS_FILE)
    weights = sum(file.size for file in engine.manifest.files)
    needed = plan.kind.memory_bytes(weights, limits)
    # A release that was alone has no previous one beside it. That one would come back too, and is taken for as large.
    beside = 2 * needed if current.alone and current.previous is not None else needed
    gpus = plan.kind.gpus()
    alone = False
    for node in nodes:
        total, available = _memory(node, gpus)
        if available >= beside:
            continue
        if not recreate or total < needed:
            settings = "serving.tensorrt_llm.kv_cache_tokens" if gpus else "serving.slots or serving.context_tokens"
            raise EnginehouseError(
                f"node '{node.node}' has {available >> 20} MiB free{' on a GPU' if gpus else ''}, and another release "
                f"of {plan.model.name} needs {beside >> 20} MiB beside the live one",
                hint=f"lower {settings}, or give the node more memory"
                + ("" if recreate else "; with --recreate the live release goes before the new one comes"),
                code="memory-short",
            )
        alone = True
    return alone


def _memory(node: NodeReport, gpus: tuple[int, ...]) -> tuple[int, int]:
    """Bytes in all and free: of the host, or of the GPU among `gpus` that has the least."""
    taken = [node.machine.gpus[place] for place in gpus]
    if not taken or any(gpu.memory_bytes == 0 for gpu in taken):  # such a GPU has the host's memory
        return node.memory_total_bytes, node.memory_available_bytes
    return min(gpu.memory_bytes for gpu in taken), min(gpu.free_bytes for gpu in taken)


def _wait_until_ready(target: Target, model: str, release: int, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        states = {
            node.node: node.models[model].releases.get(release) if model in node.models else None
            for node in live_nodes(target)
        }
        for node, state in states.items():
            if state is not None and state.state == "failed":
                reason = f"node '{node}' could not load it: {state.error}"
                raise refuse(target, model, Result(release=release, state="refused", reason=reason), state.hint)
        if all(state is not None and state.state == "ready" for state in states.values()):
            return
        # Another run of the same release may have had it refused, and then no node holds it any more.
        known = target.result(model, release) if None in states.values() else None
        if known is not None and known.state == "refused":
            raise refuse(target, model, known)
        if time.monotonic() > deadline:
            waiting = ", ".join(node for node, state in states.items() if state is None or state.state != "ready")
            reason = f"not ready on {waiting} within {timeout_s:g} s"
            raise refuse(target, model, Result(release=release, state="refused", reason=reason))
        time.sleep(_POLL_SECONDS)
