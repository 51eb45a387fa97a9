"""A candidate: what a roll-out brings to a target, and how it becomes a release there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from infra.errors import UsageError
from infra.traces.propagation import current_traceparent
from tasks.kinds.protocol import LIMITS_FILE
from tasks.models.spec import Model
from tasks.steps.approve import needs_person
from tasks.steps.context import Context
from tasks.steps.node_fit import must_be_alone, require_fit, require_readable
from tasks.steps.nodes import require_some
from tasks.steps.plan import Plan
from tasks.store.artifact import Artifact, ArtifactRef
from tasks.store.identity import Identity
from tasks.targets.aliases import claim, require_free
from tasks.targets.approvals import Approvals
from tasks.targets.gate_records import GateRecords
from tasks.targets.release import Intent, Result, changes_since
from tasks.targets.target import Target
from tasks.targets.view import TargetView


@dataclass(frozen=True)
class Candidate:
    """What a roll-out brings to a target: `digest` is that of the bytes of the plan's repository and engine."""

    context: Context
    plan: Plan
    repository: Artifact
    engine: Artifact
    digest: str

    @classmethod
    def of(cls, context: Context, plan: Plan) -> Candidate:
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
