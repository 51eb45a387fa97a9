"""A person decides on a candidate before traffic moves to it. The run that asked has ended by then."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue, ValidationError

from infra.errors import EnginehouseError, GateRefused, UsageError
from infra.s3.bucket import Bucket
from tasks.models.spec import Model
from tasks.steps.untouched import untouched
from tasks.targets.approval import Approval, ApprovalRequest
from tasks.targets.approvals import Approvals, open_requests
from tasks.targets.release import Result
from tasks.targets.target import Target, targets


def needs_person(model: Model, result: Result) -> bool:
    """Whether a person decides on a candidate with this verdict."""
    if model.approval.when == "undecided":
        return result.undecided == "ask"
    return model.approval.when == "always" and (result.state == "passed" or result.undecided in ("ask", "promote"))


def ask(
    target: Target, model: Model, release: int, live: int | None, flow_run: str, parameters: Mapping[str, JsonValue]
) -> None:
    """Ask a person about a candidate, once. It must come before the verdict, which alone would make it public."""
    alone: dict[str, JsonValue] = {} if model.rollout.waves else {"targets": [target.name]}
    request = ApprovalRequest(
        release=release,
        live=live,
        timeout_s=model.approval.timeout_hours * 3600,
        # What the run made is in the store. Without waves only this target waits, with them all that come after it.
        parameters={**parameters, "model": model.name, **alone, "refresh": "nothing"},
        flow_run=flow_run,
    )
    Approvals(target, model.name, release).ask(request)


def approval(target: Target, model: str, release: int) -> Approval | None:
    """The approval of a candidate, or None while it waits for one.

    Raises GateRefused with code `approval-rejected`, `approval-timed-out` or `approval-superseded` if it is not to be
    promoted: it is then no longer a candidate. Raises UsageError `release-moved` if another release is public than the
    one that it was compared with.
    """
    approvals = Approvals(target, model, release)
    request, decision = approvals.request(), approvals.decision()
    if decision is not None and decision.state != "approved":
        target.move(model, lambda current: current.without_candidates(release))
        raise GateRefused(
            f"{model} release {release} on '{target.name}' {told(decision)}",
            hint=f"{untouched(target, model)}; `enginehouse releases {model}` shows the evidence, and a rebuild makes "
            "another candidate",
            code=f"approval-{decision.state}",
        )
    if request is not None:
        _require_unmoved(target, model, request)
    return decision


def told(decision: Approval) -> str:
    """A decision in words that go on from the release's name."""
    note = f": {decision.note}" if decision.note else ""
    match decision.state:
        case "timed-out":
            return "timed out: nobody decided on it"
        case "superseded":
            return f"was superseded{note}"
        case _:
            return f"was {decision.state} by {decision.by}{note}"


@dataclass(frozen=True)
class Decided:
    """The decision that counts on a release, and what its rebuild goes on with."""

    target: Target
    model: str
    approval: Approval
    first: bool
    """Whether the caller made it. If not, somebody had decided the same before."""
    parameters: Mapping[str, JsonValue]

    def __str__(self) -> str:
        return f"{self.model} release {self.approval.release} on '{self.target.name}' {told(self.approval)}"


def decide(
    target: Target, model: str, release: int | None, state: Literal["approved", "rejected"], by: str, note: str
) -> Decided:
    """Record a person's decision on `release`, or on the newest one that waits. The first decision counts.

    A rejected candidate is no longer wanted. One that is approved is promoted by the next rebuild.

    Raises UsageError `approval-missing` if nothing waits, `approval-decided` if somebody was quicker and decided
    otherwise, or the request has timed out or was superseded, and `release-moved` if an approved one would not take the
    place of the release that it was compared with.
    """
    release = _waiting(target, model) if release is None else release
    approvals = Approvals(target, model, release)
    request = approvals.request()
    known = approvals.decision()
    if request is None or (known is None and release not in target.current(model)[0].candidates):
        raise _nothing_waits(f"{model} release {release}", model, target)
    if known is None and state == "approved":
        _require_unmoved(target, model, request)
    made = Approval(release=release, state=state, by=by, note=note)
    counted = known or approvals.decide(made)
    if counted.state != state:
        raise UsageError(
            f"{model} release {release} on '{target.name}' {told(counted)}, at {counted.created:%Y-%m-%d %H:%M:%S} UTC",
            hint="the first decision counts; a rebuild makes another candidate",
            code="approval-decided",
        )
    if state == "rejected":
        target.move(model, lambda current: current.without_candidates(release))
    return Decided(target, model, counted, counted == made, request.parameters)


def _waiting(target: Target, model: str) -> int:
    waiting = open_requests(target, model, target.current(model)[0].candidates)
    if not waiting:
        raise _nothing_waits(f"no release of {model}", model, target)
    return max(waiting)


def _nothing_waits(what: str, model: str, target: Target) -> UsageError:
    verb = "waits" if what.startswith("no ") else "does not wait"
    return UsageError(
        f"{what} {verb} for approval on '{target.name}'",
        hint=f"`enginehouse releases {model} --target {target.name}` shows its releases",
        code="approval-missing",
    )


def _require_unmoved(target: Target, model: str, request: ApprovalRequest) -> None:
    current, _ = target.current(model)
    if current.public not in (request.live, request.release):
        compared = "no release" if request.live is None else f"release {request.live}"
        raise UsageError(
            f"{model} release {request.release} on '{target.name}' was compared with {compared}, and release "
            f"{current.public} is live now",
            hint=f"`enginehouse rebuild {model}` compares it with that one, and asks again",
            code="release-moved",
        )


def follow_up(bucket: Bucket) -> Iterator[Decided | str]:
    """The candidates that were decided on while nobody looked, on every target. One that is not approved goes.

    A record that cannot be read costs its own model a line. Raises StoreError.
    """
    for target in targets(bucket):
        for model in target.wanted():
            try:
                for release in target.current(model)[0].candidates:
                    yield from _follow_up(target, model, release)
            except (EnginehouseError, ValidationError) as error:
                yield f"{model} on '{target.name}' cannot be looked at: {error}"


def _follow_up(target: Target, model: str, release: int) -> Iterator[Decided]:
    approvals = Approvals(target, model, release)
    request, decision = approvals.request(), approvals.decision()
    if request is None or decision is None:
        return
    if decision.state != "approved":
        target.move(model, lambda current: current.without_candidates(release))
    yield Decided(target, model, decision, False, request.parameters)
