"""Promote a release: move the public name to it on every live node. Rolling back promotes an earlier release."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from infra.errors import ArtifactDamaged, UsageError
from tasks.garbage.keep import note_use
from tasks.steps.node_fit import require_readable
from tasks.steps.nodes import wait_until_public
from tasks.store.artifact import ArtifactRef
from tasks.store.artifact_store import ArtifactStore
from tasks.targets.aliases import claim, require_free
from tasks.targets.approval import ApprovalRequest
from tasks.targets.approvals import Approvals
from tasks.targets.current import Current
from tasks.targets.move import Move, MoveKind
from tasks.targets.move_records import MoveRecords
from tasks.targets.release import Intent
from tasks.targets.target import Target
from tasks.targets.traffic import shift, withdraw_traffic


def _never() -> bool:
    return False


def promote(
    target: Target,
    model: str,
    release: int,
    *,
    unless: Callable[[], bool] = _never,
    instead_of: int | None = None,
    timeout_s: float = 120.0,
    kind: MoveKind = "promoted",
    flow_run: str = "",
    reason: str = "",
    say: Callable[[str], None] = lambda _: None,
) -> bool:
    """Make `release` public, and wait until every live node answers with it.

    `unless` is asked at the moment of the move. If it says yes, the public name stays, the release is no candidate any
    more, and False is returned. With `instead_of`, the name moves only if that release has it, or `release` already.

    A release that a person approved takes the place of the one that it was compared with, and of no other.

    The move is recorded, with the `flow_run` that made it and the `reason` for it. `say` is told which nodes it waits
    for.

    Raises UsageError `release-not-passed` if it never passed its gates or was refused with traffic,
    `release-not-approved` if a person was asked about it and has not approved it, `release-not-in-store` if a node
    could not bring it any more, `alias-taken` if another model has an alias that the release asks for, `release-moved`
    if another one is public than `instead_of`, EnginehouseError `node-older` if a live node does not read its records,
    and TritonError `node-behind` if one does not follow within `timeout_s` seconds.
    """
    request = _require_allowed(target, model, release)
    aliases = _require_servable(target, model, release).aliases

    records, created = MoveRecords(target, model), datetime.now(UTC)
    recorded = 0

    def made(before: int | None) -> Move:
        return Move(
            number=1, kind=kind, release=release, instead_of=before, flow_run=flow_run, reason=reason, created=created
        )

    def change(current: Current) -> Current:
        if unless():
            return current.without_candidates(release)
        if instead_of is not None and current.public not in (instead_of, release):
            raise _moved(target, model, instead_of, current.public)
        # A rollback says what it takes the place of, unless nothing is public.
        if instead_of is None and request is not None and current.public not in (request.live, release):
            raise _moved(target, model, request.live, current.public)
        moved = current.promoted(release)
        return moved if moved.public == current.public else moved.with_move(made(current.public), recorded)

    with _claimed(target, model, release, aliases):
        recorded = records.keep(target.current(model)[0])
        moved = target.move(model, change)
        if moved.public != release:
            return False
    records.keep(moved)
    wait_until_public(target, model, release, timeout_s, say)
    withdraw_traffic(target, model, release)  # it counts no more; the next candidate begins without
    return True


def _require_allowed(target: Target, model: str, release: int) -> ApprovalRequest | None:
    """Raises as `promote` does if the release may not be public. Returns what a person was asked, if one was."""
    what, hint = f"{model} release {release} on '{target.name}'", f"`enginehouse releases {model}` shows which "
    result = target.result(model, release)
    approvals = Approvals(target, model, release)
    request = approvals.request()
    by_person = request is not None and result is not None and result.undecided == "ask"
    shifted = shift(target, model, release).read()
    refused = shifted is not None and shifted.state == "refused"
    if result is None or refused or not (result.may_be_public or by_person):
        raise UsageError(f"{what} has not passed its gates", hint=f"{hint}releases have", code="release-not-passed")
    if request is not None:
        decision = approvals.decision()
        if decision is None or decision.state != "approved":
            raise UsageError(
                f"{what} has no approval", hint=f"{hint}releases have one, or wait for it", code="release-not-approved"
            )
    return request


@contextmanager
def _claimed(target: Target, model: str, release: int, aliases: Collection[str]) -> Generator[None]:
    """Claim what the release asks for before it is public. Until then it is a candidate, as a claim needs it."""
    require_free(target, model, aliases)
    current, _ = target.current(model)
    asks_newly = bool(aliases) and release not in (current.public, *current.candidates)
    if asks_newly:
        target.move(model, lambda current: current.with_candidate(release, alone=current.alone))
    try:
        claim(target, model, aliases)
        yield
    except UsageError:
        if asks_newly:
            target.move(model, lambda current: current.without_candidates(release))
        raise


def _require_servable(target: Target, model: str, release: int) -> Intent:
    """What the release is.

    Raises as `promote` does, if no node could bring its artifacts, or some node cannot read them.
    """
    store = ArtifactStore(target.bucket)
    intent = target.intent(model, release)
    repository = intent.artifact
    note_use(target.bucket, model, (repository,), "")  # with its engine: neither is collected from now on
    try:
        found = store.need(repository)
        engine = store.need(ArtifactRef.parse(found.manifest.inputs["engine"]))
    except ArtifactDamaged as error:
        raise UsageError(
            f"{model} release {release} on '{target.name}' cannot be loaded any more: {error.message}",
            hint=f"`enginehouse releases {model}` shows its recipe, to rebuild it with; "
            f"`enginehouse pin {model}@N` keeps a release from being collected",
            code="release-not-in-store",
        ) from error
    require_readable(target.name, target.nodes(), intent.schema_version, found, engine)
    return intent


@dataclass(frozen=True)
class RolledBack:
    """The public name answers with `release` again; before it answered with `instead_of`, or with none."""

    release: int
    instead_of: int | None


def roll_back(
    target: Target,
    model: str,
    to: int | None = None,
    instead_of: int | None = None,
    *,
    flow_run: str = "",
    reason: str = "",
    say: Callable[[str], None] = lambda _: None,
) -> RolledBack:
    """Promote release `to`, or the previous one. `say` is told what it waits for.

    It never undoes another rollback: a release that was rolled back from comes back by its number alone. Two calls at
    once end on the same release. Raises UsageError `release-missing`, `rolled-back` if the previous release is one that
    was rolled back from, `release-moved` if `instead_of` is given and not public, and as `promote` does.
    """
    current, _ = target.current(model)
    if instead_of is not None and current.public != instead_of:
        raise _moved(target, model, instead_of, current.public)
    release = current.previous if to is None else to
    if release is None:
        raise UsageError(
            f"{model} has no previous release on '{target.name}'",
            hint=f"`enginehouse releases {model}` lists what `--to` takes",
            code="release-missing",
        )
    # Promotions go up, so a previous release with a higher number was public until somebody rolled it back.
    if to is None and current.public is not None and release > current.public:
        raise UsageError(
            f"{model} on '{target.name}' answers with release {current.public}: release {release} was rolled back",
            hint=f"`enginehouse rollback {model} --to {release}` makes it public again all the same",
            code="rolled-back",
        )
    target.intent(model, release)
    # To a newer release, which was rolled back or never public, it is a promotion.
    kind: MoveKind = "promoted" if current.public is None or release > current.public else "rolled back"
    promote(target, model, release, instead_of=current.public, kind=kind, flow_run=flow_run, reason=reason, say=say)
    return RolledBack(release, current.public)


def _moved(target: Target, model: str, expected: int | None, public: int | None) -> UsageError:
    found, wanted = ("no release" if each is None else f"release {each}" for each in (public, expected))
    return UsageError(
        f"{model} on '{target.name}' answers with {found}, not with {wanted}",
        hint=f"somebody else moved it; `enginehouse releases {model}` shows what is live now",
        code="release-moved",
    )
