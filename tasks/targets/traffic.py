"""Which requests for a public name go to a release that is no more than a candidate, or are copied to one.

targets/TARGET/MODEL/traffic.json    moved with `If-Match`
targets/TARGET/MODEL/N/shift.json    created once: what traffic said of release N, where its rollout has steps

The gateway goes by it. The record may outlive what it was written for: it counts only as long as the wanted state names
the release as a candidate, so one that is withdrawn or promoted takes its traffic with it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import Field

from infra.errors import UsageError
from tasks.store.cell import Cell, WriteOnce
from tasks.store.record import Record
from tasks.targets.current import Current
from tasks.targets.target import Target

LARGEST_RECORD = 16 << 10
"""Bytes. The record has five values; what is larger was not written by Enginehouse, and is not read."""

Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Release = Annotated[int, Field(ge=1)]


class Canary(Record):
    """A share of the requests for the public name goes to `release`."""

    release: Release
    share: Share
    sticky: bool = True
    """Whether the session or the key of a client decides, so that one client stays with one release."""


class Shadow(Record):
    """A share of the requests that the public release answers is copied to `release`, whose answers nobody gets."""

    release: Release
    share: Share


class Traffic(Record):
    """What the gateway does beside asking the public release. Without either, nothing."""

    canary: Canary | None = None
    shadow: Shadow | None = None

    def within(self, current: Current) -> Traffic:
        """What of it counts: the parts whose release is a candidate that is loaded beside the public one."""
        beside = () if current.alone or current.public is None else current.candidates
        return self.without(*({each.release for each in (self.canary, self.shadow) if each is not None} - {*beside}))

    def without(self, *releases: int) -> Traffic:
        """The same without what is for these releases."""
        return self.model_copy(
            update={
                "canary": None if self.canary is None or self.canary.release in releases else self.canary,
                "shadow": None if self.shadow is None or self.shadow.release in releases else self.shadow,
            }
        )


NO_TRAFFIC = Traffic()


class Shift(Record):
    """What became of a candidate while requests went to it. One that was `refused` is not promoted."""

    release: Release
    strategy: str
    state: Literal["passed", "refused"]
    reason: str = ""
    share: Share
    """The last one that it had."""
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))


def shift(target: Target, model: str, release: int) -> WriteOnce[Shift]:
    """The record of a release."""
    return WriteOnce(target.bucket, f"{target.prefix}{model}/{release}/shift.json", Shift)


def shifted(target: Target, model: str) -> frozenset[int]:
    """The releases that have such a record: one listing."""
    start = f"{target.prefix}{model}/"
    names = (entry.key.removeprefix(start).split("/") for entry in target.bucket.list(start))
    return frozenset(int(parts[0]) for parts in names if len(parts) == 2 and parts[1] == "shift.json")


def traffic(target: Target, model: str) -> Cell[Traffic]:
    """The record of a model."""
    return Cell(target.bucket, f"{target.prefix}{model}/traffic.json", NO_TRAFFIC)


def send_to_canary(target: Target, model: str, canary: Canary) -> Traffic:
    """Have a share of the requests go to a candidate, in place of any other canary.

    Raises UsageError, code `release-not-candidate`.
    """
    _require_candidate(target, model, canary.release)
    return traffic(target, model).move(lambda known: known.model_copy(update={"canary": canary}))


def copy_to_shadow(target: Target, model: str, shadow: Shadow) -> Traffic:
    """Have a share of the requests copied to a candidate, in place of any other shadow.

    Raises UsageError, code `release-not-candidate`.
    """
    _require_candidate(target, model, shadow.release)
    return traffic(target, model).move(lambda known: known.model_copy(update={"shadow": shadow}))


def withdraw_traffic(target: Target, model: str, *releases: int) -> Traffic:
    """Have no request go to these releases any more. A record that was never there stays away."""
    return traffic(target, model).move(lambda known: known.without(*releases))


def _require_candidate(target: Target, model: str, release: int) -> None:
    current, _ = target.current(model)
    part = Traffic(canary=Canary(release=release, share=1))
    if part.within(current).canary is None:
        raise UsageError(
            f"{model} release {release} on '{target.name}' is no candidate that is loaded beside the public one, "
            "so no traffic can go to it",
            hint=f"`enginehouse releases {model}` shows which releases are candidates",
            code="release-not-candidate",
        )
