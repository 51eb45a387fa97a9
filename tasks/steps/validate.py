"""Validate a candidate: its gates measure, and what they found is judged together. Each record is created once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

from pydantic import JsonValue

from infra.errors import UsageError
from tasks.gates.choice import gate_of
from tasks.gates.judge import judge, overall
from tasks.gates.protocol import Gate, Served, Trial
from tasks.gates.smoke import SmokeGate
from tasks.models.gates import SMOKE, Gates, kind_of
from tasks.models.spec import Model
from tasks.steps.approve import ask, needs_person
from tasks.steps.candidate import gates_digest
from tasks.steps.context import Context
from tasks.steps.nodes import live_nodes
from tasks.steps.plan import Plan
from tasks.steps.reference import find_reference
from tasks.steps.roll_out import conclude, require_wanted
from tasks.targets.gate_record import Evidence, GateRecord, Verdict
from tasks.targets.gate_records import GateRecords
from tasks.targets.release import Result
from tasks.targets.target import Target

_AS_IN_NO_FILE = Gates.model_validate({})
_NO_PARAMETERS: Mapping[str, JsonValue] = {}


def validate(
    context: Context,
    plan: Plan,
    target_name: str,
    release: int,
    parameters: Mapping[str, JsonValue] = _NO_PARAMETERS,
) -> Result:
    """Have every gate measure the candidate, on the live nodes of the target, and record the result.

    The test prompts come first. A gate that finds what the candidate cannot be excused for is the last one to run. What
    has a record is not measured again: a run may have died after it wrote that. Where the model's file wants a person
    to decide, one is asked, and `parameters` are those of the rebuild that goes on then.

    Raises GateRefused if a gate refuses: the candidate is then no longer wanted, and the live release was never
    touched. Raises GateUndecided if one cannot decide, and the model's file says `ask`, but asks no
    person to approve it: it stays a candidate. Raises UsageError `release-moved` if another release is live than when
    its gates began, and EnginehouseError `release-withdrawn` if the candidate was taken away meanwhile.
    """
    target, model = context.target(target_name), plan.model
    if (known := target.result(model.name, release)) is not None:
        return conclude(target, model.name, known)
    gating = _Gating.of(context, plan, target, release)
    records: list[GateRecord] = []
    for record in gating.records():
        records.append(record)
        if record.evidence.failures:
            break
    result = gating.result(records)
    if result.state != "passed":
        require_wanted(target, model.name, release)
    if needs_person(model, result):
        ask(target, model, release, gating.live, context.flow_run, parameters)
    return conclude(target, model.name, result)


def trial_of(context: Context, plan: Plan, target: Target, release: int) -> Trial:
    """The candidate beside what is live now, on the live nodes. Raises as `live_nodes` does."""
    model = plan.model
    current, _ = target.current(model.name)
    number = current.beside_candidates
    beside = None if number is None else target.intent(model.name, number)
    return Trial(
        model=model,
        target=target.name,
        nodes=tuple(live_nodes(target)),
        candidate=Served(target.intent(model.name, release)),
        live=None if beside is None else Served(beside),
        alpha=_gates_of(model).alpha,
        say=context.reporter.say,
        find_reference=partial(find_reference, context.store, plan),
    )


@dataclass(frozen=True)
class _Asked:
    """One gate, and what the model's file asks of it."""

    name: str
    kind: str
    asked: dict[str, JsonValue]
    gate: Gate


@dataclass(frozen=True)
class _Gating:
    """The gates of one candidate on one target."""

    target: Target
    trial: Trial
    live: int | None
    """The public release, also where it is not loaded beside the candidate."""
    flow_run: str

    @classmethod
    def of(cls, context: Context, plan: Plan, target: Target, release: int) -> _Gating:
        current, _ = target.current(plan.model.name)
        trial = trial_of(context, plan, target, release)
        return cls(target, trial, current.public, context.flow_run)

    @property
    def model(self) -> Model:
        return self.trial.model

    @property
    def release(self) -> int:
        return self.trial.candidate.release

    def asked(self) -> Iterator[_Asked]:
        """The gates in their order: the test prompts, then those of the model's file."""
        asked = self.model.asked_of_gates
        yield _Asked(SMOKE, SMOKE, asked[SMOKE], SmokeGate())
        for name, spec in _gates_of(self.model).asked.items():
            yield _Asked(name, kind_of(spec), asked[name], gate_of(spec))

    def records(self) -> Iterator[GateRecord]:
        """The record of each gate. Those of another run count if they are of the same comparison."""
        known = GateRecords(self.target, self.model.name, self.release)
        for each in self.asked():
            record = known.read(each.name) or known.create(self._measured(each))
            if record.live != self.live:
                raise UsageError(
                    f"{self.model.name} release {self.release} on '{self.target.name}' was compared with release "
                    f"{record.live}, and release {self.live} is live now",
                    hint=f"`enginehouse rebuild {self.model.name}` compares it with that one",
                    code="release-moved",
                )
            yield record

    def _measured(self, each: _Asked) -> GateRecord:
        started = time.monotonic()
        evidence = each.gate.run(self.trial)
        return GateRecord(
            gate=each.name,
            kind=each.kind,
            asked=each.asked,
            candidate=self.release,
            live=self.live,
            evidence=self._complete(each.gate, evidence),
            seconds=round(time.monotonic() - started, 3),
            flow_run=self.flow_run,
        )

    def _complete(self, gate: Gate, evidence: Evidence) -> Evidence:
        """The evidence with what it lacks: without data nothing passes."""
        if not gate.compares or self.live is None or evidence.failures or evidence.gaps:
            return evidence
        if any(comparison.against == "live" for comparison in evidence.comparisons):
            return evidence
        loaded = self.trial.live is not None
        why = "nothing was compared with it" if loaded else "memory does not hold it beside the candidate"
        return evidence.model_copy(update={"gaps": (f"release {self.live} is live, and {why}",)})

    def result(self, records: list[GateRecord]) -> Result:
        """What the gates come to, and what the model's file says of that."""
        gates = _gates_of(self.model)
        verdicts = judge(records, gates.alpha)
        state = overall(verdicts)
        reason = "; ".join(map(_reason, (each for each in verdicts if each.state == state and state != "passed")))
        undecided = gates.undecided if state == "undecided" else None
        # A candidate that waits in the live one's place would keep the public name from answering.
        if undecided == "ask" and self.target.current(self.model.name)[0].alone:
            reason, undecided = f"{reason}. It cannot wait in the live release's place", "refuse"
        if undecided == "refuse":
            state, reason = "refused", f"undecided: {reason}"
        return Result(
            schema_version=Result.newest if state == "undecided" else 1,
            release=self.release,
            state=state,
            reason=reason,
            undecided=undecided,
            prompts=tuple(prompt for record in records for prompt in record.evidence.prompts),
            live=self.live if any(record.evidence.comparisons for record in records) else None,
            gates=verdicts,
            asked=gates_digest(self.model),
        )


def _gates_of(model: Model) -> Gates:
    return model.gates or _AS_IN_NO_FILE


def _reason(verdict: Verdict) -> str:
    return verdict.reason if verdict.gate == SMOKE else f"{verdict.gate}: {verdict.reason}"
