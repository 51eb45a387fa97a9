"""Watch a release after its promotion, and give the public name back if clients fare worse with it.

A watch needs no process: its beginning is a record, what nodes count is cumulative, and the evidence goes by the sums.
So whoever comes after a run that died knows all that the run knew, but for its test prompts, which begin anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from infra.errors import GateRefused, UsageError
from tasks.models.spec import Model
from tasks.observed.tally import look, total
from tasks.steps.promote import roll_back
from tasks.steps.watcher import Clock, Watcher
from tasks.targets.observed import NodeObserved, Observed
from tasks.targets.target import Target
from tasks.targets.watch_record import Watching, WatchOutcome, WatchRecords

POLL_SECONDS = 1.0


def begin(target: Target, model: Model, release: int, flow_run: str = "") -> None:
    """Note what clients have seen so far, and that `release`, about to be promoted, is watched from now on.

    Does nothing if the model's file asks for no watch, or the release has the public name already.
    """
    current, _ = target.current(model.name)
    if model.watch is None or current.public == release:
        return
    seen = look(target.nodes())
    WatchRecords(target, model.name).begin(
        Watching(
            release=release,
            previous=current.public,
            asked=model.watch.document,
            before=Observed() if current.public is None else total(seen, model.name, current.public),
            nodes={
                node: NodeObserved(epoch=each.epoch, models={model.name: {release: each.of(model.name, release)}})
                for node, each in seen.items()
            },
            flow_run=flow_run,
        )
    )


def watch_key(target: str, model: str) -> str:
    """The identity of the lease of whoever watches a model. It is not the turn to roll out: newer ones do not wait."""
    return f"watch-{target}-{model}"


def watch(
    target: Target,
    model: Model,
    release: int,
    *,
    flow_run: str = "",
    say: Callable[[str], None] = lambda _: None,
    clock: Clock = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> WatchOutcome | None:
    """Watch the release until its time is over, or something is shown to be worse. Returns None if no watch is on.

    The caller has the lease of `watch_key`. Raises GateRefused `watch-returned` once the previous release has the
    public name again, and `watch-failing` if there is none; and as `roll_back` does.
    """
    records = WatchRecords(target, model.name)
    watching = records.last()
    if watching.release != release or watching.over:
        return None
    if (known := records.outcome(release)) is not None:  # who wrote it died before it was done
        return conclude(target, model.name, known)
    watcher = Watcher(target, model.name, watching, records.age(), clock=clock, model=model, flow_run=flow_run)
    say(f"release {release} is watched for {watcher.left_seconds:.0f} s more")
    while (outcome := watcher.look()) is None:
        sleep(POLL_SECONDS)
    say(f"release {release} after {outcome.seconds:.0f} s: {outcome.state}, {outcome.reason}")
    return conclude(target, model.name, records.conclude(outcome))


def look_once(target: Target, model: str, flow_run: str) -> WatchOutcome | None:
    """Go on with a watch that nobody watches: one look, without test prompts. Returns None if it is not over.

    The caller has the lease of `watch_key`. Raises as `watch` does.
    """
    records = WatchRecords(target, model)
    watching = records.last()
    if not watching.release or watching.over:
        return None
    if (known := records.outcome(watching.release)) is not None:
        return conclude(target, model, known)
    if target.current(model)[0].public != watching.release:
        return None  # it is about to be promoted, or never was
    outcome = Watcher(target, model, watching, records.age(), clock=time.monotonic, flow_run=flow_run).look()
    return None if outcome is None else conclude(target, model, records.conclude(outcome))


def conclude(target: Target, model: str, outcome: WatchOutcome) -> WatchOutcome:
    """Do what an outcome says. Its record comes first, so that whoever finds it goes on. Raises as `watch` does."""
    what = f"{model} release {outcome.release} on '{target.name}'"
    if outcome.state == "returned" and target.current(model)[0].public == outcome.release:
        try:
            roll_back(
                target,
                model,
                to=outcome.previous,
                instead_of=outcome.release,
                flow_run=outcome.flow_run,
                reason=f"watch: {outcome.reason}",
            )
        except UsageError as error:
            if error.code != "release-moved":  # somebody else was quicker, and is right
                raise
    WatchRecords(target, model).end(outcome.release)
    if outcome.state == "failing":
        raise GateRefused(
            f"{what} is failing, and there is no release to go back to: {outcome.reason}",
            hint=f"it still has the public name; `enginehouse releases {model}` shows the figures",
            code="watch-failing",
        )
    if outcome.state != "returned":
        return outcome
    raise GateRefused(
        f"{what} was returned after {outcome.seconds:.0f} s: {outcome.reason}",
        hint=f"release {outcome.previous} has the public name again; `enginehouse releases {model}` shows the figures, "
        f"and `enginehouse rollback {model} --to {outcome.release}` makes it public all the same",
        code="watch-returned",
    )
