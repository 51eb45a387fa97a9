"""Retire a model: its public name goes, then what nodes hold of it. Its records stay, for lineage.

The order is that of a crash that loses nothing: candidates end, the name goes in one write, which carries the record of
who took it away, and then whatever would bring the model back by itself. The same call goes on wherever a killed one
stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

from infra.errors import ArtifactDamaged, EnginehouseError, StoreError, TritonError, UsageError
from infra.s3.bucket import Bucket
from tasks.steps.roll_out import give_up
from tasks.steps.turn import model_key, turn_key
from tasks.store.inventory import in_parallel
from tasks.store.lease import held
from tasks.targets.current import Current
from tasks.targets.move_records import MoveRecords
from tasks.targets.node_report import ModelReport
from tasks.targets.retirement import Retirement
from tasks.targets.target import Target, targets
from tasks.targets.waves import WavesRecords

RETIRED = "its model was retired"
"""The reason in the result of a release that no gate had decided on by then."""
LET_GO_SECONDS = 120.0
"""How long nodes may take to end the requests that run, and to unload the model."""
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Retired:
    """The model has left a target. `first`: this call took it away; else an earlier one had."""

    target: str
    retirement: Retirement
    first: bool


def places(bucket: Bucket, model: str, asked: Iterable[str] = ()) -> list[Target]:
    """The targets that have a wanted state of the model, of those that are `asked` for or of all.

    Raises UsageError, code `release-missing`, if it has none there.
    """
    wanted = [Target(bucket, name) for name in dict.fromkeys(asked)]
    known = released_on(wanted or targets(bucket), model)
    missing = [target.name for target in wanted if target.name not in {each.name for each in known}]
    if missing or not known:
        where = f" on target {', '.join(missing)}" if missing else ""
        raise UsageError(
            f"{model} was never released{where}",
            hint="`enginehouse status` shows what is released where; of a model that never was, remove the file",
            code="release-missing",
        )
    return known


def released_on(known: Iterable[Target], model: str) -> list[Target]:
    """Those of the targets that have a wanted state of the model."""
    return [target for target in known if target.current(model)[1] is not None]


@contextmanager
def alone(
    bucket: Bucket,
    model: str,
    names: Sequence[str],
    holder: str,
    seconds: float,
    say: Callable[[str], None] = lambda _: None,
) -> Generator[None]:
    """Have no run roll the model out to these targets while the block runs. Leases last `seconds`.

    Waits just long enough to tell a run that died from one that lives, and says so. Raises EnginehouseError
    `rollout-running`.
    """
    wait_s = 2 * seconds

    def waiting(other: str) -> None:
        say(f"'{other}' rolls {model} out: waiting up to {wait_s:g} s for it to end, or to show that it is dead")

    with ExitStack() as leases:
        try:
            for lease in (model_key(model), *(turn_key(name, model) for name in names)):
                leases.enter_context(held(bucket, lease, holder, seconds, wait_seconds=wait_s, waiting=waiting))
        except StoreError as error:
            if error.code != "lease-held":
                raise
            raise EnginehouseError(
                f"a run is rolling {model} out: {error.message}",
                hint="wait until it has ended, or cancel it; `enginehouse status` shows it. Then run this again",
                code="rollout-running",
            ) from error
        yield


def retire(
    bucket: Bucket,
    model: str,
    names: Sequence[str],
    *,
    reason: str = "",
    timeout_s: float = LET_GO_SECONDS,
    say: Callable[[str], None] = lambda _: None,
) -> list[Retired]:
    """Have the public name answer nobody on these targets, and wait until no live node holds a release of the model.

    The caller has `alone`. Whoever did it, and the `reason`, are on record. Files go from the nodes' disks, and from
    the store by the rules of garbage collection: no release of a retired model is wanted.

    Raises TritonError `node-behind` (retryable) after `timeout_s` seconds: nodes go on by themselves.
    """
    known = [Target(bucket, name) for name in names]
    made = [_take_away(target, model, reason) for target in known]
    _end_waves(bucket, model, made)
    for target in known:
        _wait_until_let_go(target, model, timeout_s, say)
    return made


def _take_away(target: Target, model: str, reason: str) -> Retired:
    view = target.view(model)
    give_up(target, view, why=RETIRED, reason=RETIRED)
    records = MoveRecords(target, model)
    records.keep(view.current)  # a retirement of before has its number
    asked = Retirement(number=1 + records.retirements(), release=view.current.public, reason=reason)
    current = target.move(
        model,
        lambda current: current.without_releases(asked.model_copy(update={"release": current.public})),
    )
    assert current.retired is not None
    records.keep(current)
    return Retired(target.name, current.retired, current.retired.created == asked.created)


def _end_waves(bucket: Bucket, model: str, made: Sequence[Retired]) -> None:
    """End the rollouts in waves that go to a target which the model has left: `reconcile` goes on with none of them."""
    left = {each.target: each.retirement for each in made}
    for first in targets(bucket):
        records = WavesRecords(first, model)
        last = records.last()
        if last is None or last[1].state != "going":
            continue
        number, known = last
        if found := [name for wave in known.waves for name in wave if name in left]:
            reason = f"{model} was retired on '{found[0]}' by {left[found[0]].by}"
            ended = {"state": "overtaken", "reason": reason}
            records.cell(number, known).move(
                lambda known, ended=ended: known.model_copy(update=ended) if known.state == "going" else known
            )


def _wait_until_let_go(target: Target, model: str, timeout_s: float, say: Callable[[str], None]) -> None:
    deadline, told = time.monotonic() + timeout_s, ""
    while True:
        holding = {
            node.node: why for node in target.nodes() if (why := _why_not_let_go(node.models.get(model))) is not None
        }
        if not holding or target.current(model)[0].retired is None:  # somebody has brought it back
            return
        words = "; ".join(f"{node}: {why}" for node, why in holding.items())
        if time.monotonic() > deadline:
            raise TritonError(
                f"{model} is retired on '{target.name}', and nodes still hold it: {words}",
                hint="the nodes let go of it when its last request has ended; `enginehouse status` shows them",
                code="node-behind",
                retryable=True,
            )
        if words != told:
            say(f"{target.name}: {words}")
        told = words
        time.sleep(_POLL_SECONDS)


def _why_not_let_go(report: ModelReport | None) -> str | None:
    """What a node still holds; None if it holds nothing of the model."""
    if report is None or (report.public is None and not report.releases):
        return None
    if report.public is not None:
        return report.error or f"the name still answers with release {report.public}"
    errors = [each.error for each in report.releases.values() if each.error]
    return (errors or [f"unloads release {', '.join(map(str, sorted(report.releases)))}"])[0]


def is_retired(bucket: Bucket, model: str) -> bool:
    """Whether the model has left a target and is on none: then nothing but a person brings it back."""
    found = in_parallel(lambda target: target.current(model)[0], targets(bucket))
    return _has_left(found)


def retired_models(bucket: Bucket, models: Collection[str]) -> set[str]:
    """Those of the models that are retired: one listing, and a record for each of them on each target.

    One with a record that cannot be read is left out: whoever works on that model says so.
    """
    if not models:
        return set()
    asked = [(target, model) for target in targets(bucket) for model in models]
    states: dict[str, list[Current | None]] = {}
    for (_, model), current in zip(asked, in_parallel(_readable, asked), strict=True):
        states.setdefault(model, []).append(current)
    return {model for model, found in states.items() if None not in found and _has_left(filter(None, found))}


def _readable(place: tuple[Target, str]) -> Current | None:
    target, model = place
    with suppress(ArtifactDamaged):
        return target.current(model)[0]
    return None


def _has_left(found: Iterable[Current]) -> bool:
    known = tuple(found)
    return any(each.retired is not None for each in known) and not any(each.loaded for each in known)
