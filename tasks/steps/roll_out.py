"""Roll out: load a candidate beside the live release, until it is ready on every live node of a target."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

from pydantic import JsonValue

from infra.errors import EnginehouseError, GateRefused, GateUndecided, TritonError, UsageError
from infra.s3.bucket import Bucket
from infra.traces.propagation import current_traceparent
from tasks.kinds.protocol import LIMITS_FILE
from tasks.models.spec import Model
from tasks.steps.approve import needs_person
from tasks.steps.context import Context
from tasks.steps.node_fit import must_be_alone, require_fit, require_readable
from tasks.steps.nodes import reports, require_some, wait_until_public
from tasks.steps.opening import require_open
from tasks.steps.plan import Plan
from tasks.steps.returned import require_not_returned
from tasks.store.artifact import Artifact, ArtifactRef
from tasks.store.identity import Identity
from tasks.store.lease import held
from tasks.targets.aliases import claim, require_free
from tasks.targets.approvals import Approvals
from tasks.targets.gate_records import GateRecords
from tasks.targets.proof import keep_proof
from tasks.targets.release import Intent, Result, changes_since
from tasks.targets.target import Target
from tasks.targets.traffic import withdraw_traffic
from tasks.targets.view import TargetView

ABANDONED = "its run ended before the gates had decided"
"""The reason in the result of a release whose run died."""

_PUBLIC_SECONDS = 120.0
"""How long nodes may take to answer with a release that they have had, or that they load again."""


@dataclass(frozen=True)
class RollOut:
    """Release `release` on `target`; `unchanged` if its nodes answer with it, and no release was made."""

    target: str
    release: int
    unchanged: bool


def turn(bucket: Bucket, target: str, model: str, flow_run: str, seconds: float) -> AbstractContextManager[None]:
    """The turn of one run to roll a model out to a target, from its candidate to its promotion.

    Others wait for it, as long as the run renews its lease of `seconds`. So all candidates that the one who has the
    turn finds are of runs that died.
    """
    return held(bucket, turn_key(target, model), flow_run, seconds)


def turn_key(target: str, model: str) -> str:
    """The identity of the lease of `turn`."""
    return f"roll-out-{target}-{model}"


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

    The caller has the `turn` of this model on this target.

    A repository identity equal to the live one makes no release, unless other aliases are asked for, or `refresh` is
    set and the bytes differ. If memory does not hold it beside the live one, `recreate` lets it take the live one's
    place before it is tested. `lost` goes into the release's record: fields that the recipe had before it was
    translated to this kind.

    A strategy `recreate` of the model's file is as `recreate`. Nothing begins while the file keeps it from that.

    Raises GateRefused if a node cannot load it, or `watch-returned` if its watch gave these bytes back, TritonError
    `no-live-node` or `node-behind` (both retryable), UsageError `alias-taken` if another model has an alias that it
    asks for, and EnginehouseError `frozen`, `outside-hours`, `approval-alone`, `memory-short`, `runtime-differs` (a
    node is not what the engine was built for), `leader-mode`, `node-older`, or `release-withdrawn` (a rollback took the
    place it was tested in).
    """
    target, model = context.target(target_name), plan.model.name
    candidate = _Candidate.of(context, plan)
    view = target.view(model)
    known = candidate.begun(target, view)
    if give_up(target, view, known) and view.current.alone:
        view = _with_the_live_one_back(target, view, min(timeout_s, _PUBLIC_SECONDS))
    # A candidate may wait for a person that a refresh has made: beside a live one of the same identity, of other bytes.
    waits = known is not None and Approvals(target, model, known).is_open
    if view.live is not None and not waits and candidate.equals(view.live, refresh):
        wait_until_public(target, model, view.live.release, min(timeout_s, _PUBLIC_SECONDS))
        return RollOut(target_name, view.live.release, unchanged=True)
    require_not_returned(target, plan.model, candidate.repository.ref, candidate.digest)
    if known is None:
        require_open(plan.model, target_name)
    recreate = recreate or plan.model.rollout.strategy == "recreate"
    release = candidate.begin(target, view, known, recreate=recreate, lost=lost or {})
    _wait_until_ready(target, model, release, timeout_s)
    return RollOut(target_name, release, unchanged=False)


def give_up(target: Target, view: TargetView, *keep: int | None) -> tuple[int, ...]:
    """End what runs that died have begun, but for the releases `keep`. The caller has `turn`.

    Nodes unload these candidates, and the numbers without a result get one. Returns the candidates.
    """
    left = tuple(release for release in view.current.candidates if release not in keep)
    for release in left:
        Approvals(target, view.model, release).supersede()
    if left:
        withdraw_traffic(target, view.model, *left)
        target.move(view.model, lambda current: current.without_candidates(*left))
    for release in view.without_result:
        if release not in keep:
            target.conclude(view.model, Result(release=release, state="refused", reason=ABANDONED))
    return left


def _with_the_live_one_back(target: Target, view: TargetView, timeout_s: float) -> TargetView:
    """What there is once a candidate that had taken the live release's place is gone.

    Memory counts as it is then. A live release that does not come back is no reason not to replace it.
    """
    if view.live is not None:
        try:
            wait_until_public(target, view.model, view.live.release, timeout_s)
        except TritonError as error:
            if error.code != "node-behind":
                raise
    return target.view(view.model)


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
        same = live.artifact == self.repository.ref and {*live.aliases} == {*self.plan.model.serving.aliases}
        return same and (not bytes_too or live.digest == self.digest)

    def begun(self, target: Target, view: TargetView) -> int | None:
        """The release that an earlier run has begun with the same bytes, and against the same live one.

        None also if the model's file asks something else now of gates that have measured it, or could not decide.
        """
        known = view.unfinished(str(self.repository.ref), self.digest)
        if known is None:
            return None
        begun, result = view.intents[known], view.results.get(known)
        if begun.changes != self._intent(known, view.live, {}).changes:
            return None
        if "live" in begun.model_fields_set and begun.live != view.current.public:
            return None
        if result is not None:
            is_known = result.state != "undecided" or result.asked == gates_digest(self.plan.model)
            return known if is_known and self._asks_as_before(target, known, result) else None
        if not self.plan.model.approval.asks and Approvals(target, view.model, known).request() is not None:
            return None
        asked = self.plan.model.asked_of_gates
        measured = GateRecords(target, view.model, known).all()
        return known if all(asked.get(record.gate, record.asked) == record.asked for record in measured) else None

    def _asks_as_before(self, target: Target, release: int, result: Result) -> bool:
        """Whether the model's file has a person asked about a release with this verdict exactly if one was asked."""
        was_asked = Approvals(target, self.plan.model.name, release).request() is not None
        return needs_person(self.plan.model, result) == was_asked

    def begin(
        self, target: Target, view: TargetView, known: int | None, *, recreate: bool, lost: Mapping[str, JsonValue]
    ) -> int:
        """Have it loaded, as the release `known` or as a new one."""
        aliases = self.plan.model.serving.aliases
        require_some(target.name, view.nodes)
        require_free(target, view.model, aliases)
        require_readable(target.name, view.nodes, _version(self.repository.ref), self.repository, self.engine)
        require_fit(self.plan, self.engine, view.nodes)
        if known is not None and known in view.current.candidates:
            alone = view.current.alone
        else:
            limits = self.context.store.read(self.engine, LIMITS_FILE)
            alone = must_be_alone(
                self.plan, self.engine, self.repository, limits, view.current, view.nodes, recreate=recreate
            )
        if alone and self.plan.model.approval.when == "always":
            raise UsageError(
                f"{view.model} would wait for approval in the live release's place, and its name answer nobody",
                hint="give the node more memory, or say `when: undecided` or `when: never` in `approval` of its file",
                code="approval-alone",
            )
        if known is None:
            known = target.reserve(view.model, lambda number: self._intent(number, view.live, lost)).release
        release = known
        target.move(view.model, lambda current: current.with_candidate(release, alone=alone))
        try:
            claim(target, view.model, aliases)
        except UsageError as error:  # another model was quicker
            target.move(view.model, lambda current: current.without_candidates(release))
            target.conclude(view.model, Result(release=release, state="refused", reason=error.message))
            raise
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
            live=None if live is None else live.release,
            source=model.origin,
            adapters=dict(model.adapters),
            flow_run=self.context.flow_run,
            traceparent=current_traceparent(),
        )


def _version(repository: ArtifactRef) -> int:
    """The version of an intent: what lies in the layout of before is released by a record that all nodes read."""
    return 2 if repository.model else Intent.newest


def gates_digest(model: Model) -> str:
    """The digest of what the model's file asks of gates; empty if it asks nothing."""
    return "" if model.gates is None else Identity(model.gates.model_dump(mode="json")).digest


def conclude(target: Target, model: str, result: Result, hint: str = "") -> Result:
    """Record the verdict on a candidate, and return the one that counts: the first.

    Raises GateRefused, `hint` before its own, if that is a refusal. The candidate is no longer wanted then. Raises
    GateUndecided if somebody has to decide, and nobody was asked to: it stays a candidate.
    """
    counted = target.conclude(model, result)
    keep_proof(target, model, counted)
    if counted.may_be_public:
        return counted
    if counted.undecided == "ask" and Approvals(target, model, result.release).request() is not None:
        return counted
    what = f"{model} release {result.release} on '{target.name}'"
    if counted.state == "undecided":
        raise GateUndecided(
            f"{what} is undecided: {counted.reason}",
            hint="it stays a candidate, and the live release was not touched. Ask its gates for more samples, or say "
            "`undecided: promote` or `undecided: refuse` in the model's file: the next rebuild gates it again. "
            f"`enginehouse releases {model}` shows the figures",
        )
    target.move(model, lambda current: current.without_candidates(result.release))
    evidence = f"the live release was not touched; `enginehouse releases {model}` shows the evidence"
    raise GateRefused(f"{what} was refused: {counted.reason}", hint=f"{hint}; {evidence}" if hint else evidence)


def _wait_until_ready(target: Target, model: str, release: int, timeout_s: float) -> None:
    for nodes, is_late in reports(target, timeout_s):
        states = {
            node.node: node.models[model].releases.get(release) if model in node.models else None for node in nodes
        }
        for node, state in states.items():
            if state is not None and state.state == "failed":
                reason = f"node '{node}' could not load it: {state.error}"
                conclude(target, model, Result(release=release, state="refused", reason=reason), state.hint)
        if all(state is not None and state.state == "ready" for state in states.values()):
            return
        if None in states.values():
            require_wanted(target, model, release)
        if is_late:
            waiting = ", ".join(node for node, state in states.items() if state is None or state.state != "ready")
            reason = f"not ready on {waiting} within {timeout_s:g} s"
            conclude(target, model, Result(release=release, state="refused", reason=reason))
            return


def require_wanted(target: Target, model: str, release: int) -> None:
    """Raises GateRefused if another run had it refused, and `release-withdrawn` if nobody wants it loaded any more."""
    if (known := target.result(model, release)) is not None:
        conclude(target, model, known)
    current, _ = target.current(model)
    if release not in (*current.candidates, current.public):
        reason = "withdrawn: another release was made public in the place that it was tested in"
        target.conclude(model, Result(release=release, state="refused", reason=reason))
        raise EnginehouseError(
            f"{model} release {release} on '{target.name}' was {reason}",
            hint=f"`enginehouse releases {model}` shows what is live; rebuild if this one is still wanted",
            code="release-withdrawn",
        )
