"""Roll out: load a candidate beside the live release, until it is ready on every live node of a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from infra.errors import EnginehouseError, GateRefused, GateUndecided, TritonError
from tasks.steps.candidate import Candidate
from tasks.steps.context import Context
from tasks.steps.nodes import reports, wait_until_public
from tasks.steps.opening import require_open
from tasks.steps.plan import Plan
from tasks.steps.returned import require_not_returned
from tasks.steps.untouched import untouched
from tasks.targets.approvals import Approvals
from tasks.targets.proof import keep_proof
from tasks.targets.release import Result
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
    candidate = Candidate.of(context, plan)
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
    wait_until_ready(target, model, release, timeout_s, context.reporter.say)
    return RollOut(target_name, release, unchanged=False)


def give_up(
    target: Target, view: TargetView, *keep: int | None, why: str = "another candidate came", reason: str = ABANDONED
) -> tuple[int, ...]:
    """End what runs that died have begun, but for the releases `keep`. The caller has `turn`.

    Nodes unload these candidates, and the numbers without a result get one with this `reason`. A person who was asked
    about one is told `why` nobody waits any more. Returns the candidates.
    """
    left = tuple(release for release in view.current.candidates if release not in keep)
    for release in left:
        Approvals(target, view.model, release).supersede(why)
    if left:
        withdraw_traffic(target, view.model, *left)
        target.move(view.model, lambda current: current.without_candidates(*left))
    for release in view.without_result:
        if release not in keep:
            target.conclude(view.model, Result(release=release, state="refused", reason=reason))
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
            hint=f"it stays a candidate, and {untouched(target, model)}. Ask its gates for more samples, or say "
            "`undecided: promote` or `undecided: refuse` in the model's file: the next rebuild gates it again. "
            f"`enginehouse releases {model}` shows the figures",
        )
    target.move(model, lambda current: current.without_candidates(result.release))
    evidence = f"{untouched(target, model)}; `enginehouse releases {model}` shows the evidence"
    raise GateRefused(f"{what} was refused: {counted.reason}", hint=f"{hint}; {evidence}" if hint else evidence)


def wait_until_ready(
    target: Target, model: str, release: int, timeout_s: float, say: Callable[[str], None] = lambda _: None
) -> None:
    """Wait until every live node holds the release, ready to answer. Raises as `roll_out` does.

    `say` is told what the others are at, whenever that changes.
    """
    told = ""
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
        words = "; ".join(
            f"{node}: {'does not know it yet' if state is None else state.state}" for node, state in states.items()
        )
        if words != told:
            say(words)
        told = words


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
