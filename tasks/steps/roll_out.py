"""Roll out: load a candidate beside the live release, until it is ready on every live node of a target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from infra.errors import GateRefused
from tasks.kinds.protocol import LIMITS_FILE
from tasks.steps.context import Context
from tasks.steps.node_fit import must_be_alone, require_fit, require_readable
from tasks.steps.nodes import reports, require_some
from tasks.steps.plan import Plan
from tasks.store.artifact import Artifact, ArtifactRef
from tasks.store.identity import Identity
from tasks.store.lease import held
from tasks.targets.current import Current
from tasks.targets.release import Intent, Result, changes_since
from tasks.targets.target import Target
from tasks.targets.view import TargetView

CANDIDATE_LIFETIME_SECONDS = 3600.0
"""A candidate without a result this long after its number was reserved belongs to a run that died."""


@dataclass(frozen=True)
class RollOut:
    """Release `release` on `target`; `unchanged` if it was live already and nothing was done."""

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

    A repository identity equal to the live one makes no release, unless `refresh` is set and the bytes differ. If
    memory does not hold it beside the live one, `recreate` lets it take the live one's place before it is tested.
    `lost` goes into the release's record: fields that the recipe had before it was translated to this kind.

    Raises GateRefused if a node cannot load it, TritonError `no-live-node` (retryable), and EnginehouseError with code
    `memory-short`, `runtime-differs` (a node is not what the engine was built for), `leader-mode` or `node-older`.
    """
    target, model = context.target(target_name), plan.model.name
    candidate = _Candidate.of(context, plan)
    if (live := target.live(model)) is not None and candidate.equals(live, refresh):
        return RollOut(target_name, live.release, unchanged=True)
    # Two runs of one model at once share one release: the second finds what the first has begun, or made live.
    with held(target.bucket, f"roll-out-{target_name}-{model}", context.flow_run, context.lease_seconds):
        view = target.view(model)
        if view.live is not None and candidate.equals(view.live, refresh):
            return RollOut(target_name, view.live.release, unchanged=True)
        release = candidate.begin(target, view, recreate=recreate, lost=lost or {})
    _wait_until_ready(target, model, release, timeout_s)
    return RollOut(target_name, release, unchanged=False)


@dataclass(frozen=True)
class _Candidate:
    """What a roll-out brings to a target: `digest` is that of the bytes of the plan's repository and engine."""

    context: Context
    plan: Plan
    repository: Artifact
    engine: Artifact
    digest: str

    @classmethod
    def of(cls, context: Context, plan: Plan) -> _Candidate:
        repository, engine = context.store.need(plan.repository_ref), context.store.need(plan.engine_ref)
        digest = Identity({"repository": repository.manifest.digest, "engine": engine.manifest.digest}).digest
        return cls(context, plan, repository, engine, digest)

    def equals(self, live: Intent, bytes_too: bool) -> bool:
        return live.artifact == self.repository.ref and (not bytes_too or live.digest == self.digest)

    def begin(self, target: Target, view: TargetView, *, recreate: bool, lost: Mapping[str, JsonValue]) -> int:
        """Have it loaded, as the release that another run of the same bytes has begun, or as a new one."""
        require_some(target.name, view.nodes)
        require_readable(target.name, view.nodes, _version(self.repository.ref), self.repository, self.engine)
        require_fit(self.plan, self.engine, view.nodes)
        known = view.unfinished(str(self.repository.ref), self.digest)
        if known is not None and known in view.current.candidates:
            alone = view.current.alone
        else:
            limits = self.context.store.read(self.engine, LIMITS_FILE)
            alone = must_be_alone(self.plan, self.engine, limits, view.current, view.nodes, recreate=recreate)
        if known is None:
            known = target.reserve(view.model, lambda number: self._intent(number, view.live, lost)).release
        release, abandoned = known, view.abandoned(CANDIDATE_LIFETIME_SECONDS)

        def change(current: Current) -> Current:
            for each in abandoned:
                current = current.without_candidate(each)
            return current.with_candidate(release, alone=alone)

        target.move(view.model, change)
        return release

    def _intent(self, number: int, live: Intent | None, lost: Mapping[str, JsonValue]) -> Intent:
        model = self.plan.model
        recipe, serving = (part.model_dump(mode="json") for part in (model.recipe, model.serving))
        return Intent(
            schema_version=_version(self.repository.ref),
            model=model.name,
            release=number,
            repository=str(self.repository.ref),
            digest=self.digest,
            recipe=recipe,
            serving=serving,
            ranks=self.plan.kind.serving_mode().ranks,
            changes=changes_since(live, recipe, serving),
            lost=dict(lost),
            source=model.origin,
            flow_run=self.context.flow_run,
        )


def _version(repository: ArtifactRef) -> int:
    """The version of an intent: what lies in the layout of before is released by a record that all nodes read."""
    return 2 if repository.model else Intent.newest


def refuse(target: Target, model: str, result: Result, hint: str = "") -> GateRefused:
    """Record that a candidate was refused, stop wanting it, and return the error to raise, `hint` before its own."""
    counted = target.conclude(model, result)
    target.move(model, lambda current: current.without_candidate(result.release))
    evidence = f"the live release was not touched; `enginehouse releases {model}` shows the evidence"
    return GateRefused(
        f"{model} release {result.release} on '{target.name}' was refused: {counted.reason}",
        hint=f"{hint}; {evidence}" if hint else evidence,
    )


def _wait_until_ready(target: Target, model: str, release: int, timeout_s: float) -> None:
    for nodes, is_late in reports(target, timeout_s):
        states = {
            node.node: node.models[model].releases.get(release) if model in node.models else None for node in nodes
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
        if is_late:
            waiting = ", ".join(node for node, state in states.items() if state is None or state.state != "ready")
            reason = f"not ready on {waiting} within {timeout_s:g} s"
            raise refuse(target, model, Result(release=release, state="refused", reason=reason))
