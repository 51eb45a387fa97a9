"""What a node knows of the models and releases that its Triton holds."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal

from deployments.node.health import ModelHealth
from deployments.node.wanted import Reading
from tasks.targets.current import Current
from tasks.targets.node_report import ModelReport, ReleaseReport
from tasks.targets.release import Intent

WELL_SECONDS = 30.0
"""A release that has answered for so long has no earlier faults any more."""
_FIRST_PAUSE_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 60.0
GIVEN_UP_FAULTS = 3
"""After so many faults in a row nobody waits for a release; it is still tried again, ever more seldom."""
_ENDED_TRITON = 2
"""A release whose loading has ended Triton so often is not loaded again: the others would go with it each time."""


@dataclass
class KnownRelease:
    """One release. Its loader thread writes it until that is done, then the loop does."""

    state: Literal["loading", "ready", "unloading", "failed"] = "loading"
    error: str = ""
    hint: str = ""
    starts: int = 0
    retry_at: float | None = None
    """When it is tried again, by the monotonic clock; None if it is not."""
    loader: Future[None] | None = None
    how: Literal["load", "again", "confirm"] = "load"
    """How its next load begins: from its copies, with the end of what there is of it, or with a question to it."""
    stuck: int = 0
    """How often in a row it could not be loaded again once it had been lost."""
    lost: str = ""
    """Why it is taken for dead although Triton calls it ready; empty if it is not."""
    faults: int = 0
    ready_at: float = 0.0
    cut_off: bool = False
    """Whether Triton did not answer any more when its last load failed."""
    ended_triton: int = 0
    """How often Triton ended while this release was loaded."""

    @property
    def due(self) -> bool:
        """Whether nothing has to be waited for before the next try."""
        return self.retry_at is None or time.monotonic() >= self.retry_at

    @property
    def busy(self) -> bool:
        return self.loader is not None and not self.loader.done()

    @property
    def given_up(self) -> bool:
        return (self.state == "failed" and self.retry_at is None) or self.faults >= GIVEN_UP_FAULTS

    def became_ready(self, *, loaded: bool = True) -> None:
        """It answers: this node has `loaded` it, or found it."""
        self.state, self.error, self.hint, self.lost, self.cut_off = "ready", "", "", "", False
        self.starts, self.ready_at, self.ended_triton, self.stuck = self.starts + loaded, time.monotonic(), 0, 0

    @property
    def pause(self) -> float:
        """How long it waits for its next try: not after the first fault, twice as long after each further one."""
        return min(_FIRST_PAUSE_SECONDS * 2 ** (self.faults - 2), _LONGEST_PAUSE_SECONDS) if self.faults > 1 else 0.0

    def again(self, error: str) -> None:
        """Note a fault, and have it loaded again."""
        if self.ready_at and time.monotonic() - self.ready_at > WELL_SECONDS:
            self.faults = 0
        self.faults, self.ready_at = self.faults + 1, 0.0
        self.state, self.error, self.lost = "loading", error, ""
        self.retry_at = time.monotonic() + self.pause

    def after_triton(self) -> KnownRelease | None:
        """What is still known of it once Triton has ended; None if it is loaded like any other.

        One that failed for good is not tried again. One that was being loaded may be what ended Triton, so it is loaded
        again by itself, and the second time not at all.
        """
        if self.state == "failed" and self.retry_at is None and not self.busy:
            return self
        if not (self.cut_off or (self.busy and self.state == "loading")):
            return KnownRelease(faults=self.faults, ready_at=self.ready_at, retry_at=0.0) if self.faults else None
        ended = self.ended_triton + 1
        if ended < _ENDED_TRITON:
            return KnownRelease(retry_at=0.0, faults=self.faults, ended_triton=ended)
        return KnownRelease(
            state="failed",
            error=f"Triton ended {ended} times while it was loaded, so it is not loaded again [triton-ended]",
            hint="the node's triton.log shows why; another release, or a restart of the node, is tried",
            ended_triton=ended,
        )


@dataclass
class KnownModel:
    """One model: the wanted state as it was last read, and what its public name and its releases are now."""

    etag: str = ""
    """Of the record that `wanted` was read from; empty before the first reading."""
    wanted: Current = field(default_factory=Current)
    intents: dict[int, Intent] = field(default_factory=dict[int, Intent])
    public: int | None = None
    aliases: tuple[str, ...] = ()
    """The further names that answer with it."""
    error: str = ""
    unread: str = ""
    """Why its record cannot be read; what was wanted before still is."""
    retry_at: float = 0.0
    mover: Future[None] | None = None
    """Moves the public name, or takes it away."""
    answered: bool = False
    """Whether the public name has answered since Triton started."""
    releases: dict[int, KnownRelease] = field(default_factory=dict[int, KnownRelease])

    @property
    def moving(self) -> bool:
        return self.mover is not None and not self.mover.done()

    @property
    def says_its_aliases(self) -> bool:
        """Whether it is known which further names are to answer with it."""
        return not self.unread and (self.wanted.public is None or self.wanted.public in self.intents)

    @property
    def named(self) -> set[str]:
        """The further names that answer with it, or are to."""
        return {*self.aliases, *self.aliases_of(self.wanted.public)}

    def aliases_of(self, number: int | None) -> tuple[str, ...]:
        """The further names that a release asks for, if its record is known."""
        intent = None if number is None else self.intents.get(number)
        return () if intent is None else intent.aliases

    @property
    def given_up(self) -> bool:
        """Whether nobody should wait for its public name."""
        if self.wanted.public is None:
            return True
        release = self.releases.get(self.wanted.public)
        return release is not None and release.given_up

    @property
    def is_asked_for(self) -> bool:
        """Whether clients may ask for it."""
        return self.wanted.public is not None or bool(self.unread)

    def health(self) -> ModelHealth:
        wanted = self.wanted.public
        release = self.releases.get(wanted) if wanted is not None else None
        answers = release is not None and release.state == "ready" and self.public == wanted
        return ModelHealth(
            ready=answers and self.answered,
            answered=self.answered,
            given_up=self.given_up,
            wanted=wanted,
            public=self.public,
            error=self.error or self.unread,
        )

    def waits_for_its_intent(self, number: int) -> bool:
        """Whether a release is not loaded and cannot be, for want of its record."""
        release = self.releases.get(number)
        return number not in self.intents and (release is None or (release.state == "loading" and not release.busy))

    def after_triton(self) -> KnownModel:
        """The same model without what the ended Triton held."""
        kept = {number: release.after_triton() for number, release in self.releases.items()}
        return KnownModel(
            etag=self.etag,
            wanted=self.wanted,
            intents=self.intents,
            unread=self.unread,
            releases={number: release for number, release in kept.items() if release is not None},
        )

    def used(self) -> set[int]:
        """The releases whose files have to stay on this node's disk."""
        wanted = (self.public, self.wanted.public, self.wanted.previous, *self.wanted.candidates)
        return {number for number in wanted if number is not None} | self.releases.keys()

    def report(self, memory: Mapping[int, int]) -> ModelReport:
        """What the node reports of it; `memory` has the bytes that releases hold, as far as they are known."""
        releases = {
            number: ReleaseReport(
                state=release.state,
                error=release.error,
                hint=release.hint,
                starts=release.starts,
                memory_bytes=memory.get(number, 0),
            )
            for number, release in self.releases.items()
        }
        return ModelReport(
            public=self.public,
            aliases=self.aliases_of(self.wanted.public),
            error=self.error or self.unread,
            releases=releases,
        )


def follow(models: dict[str, KnownModel], reading: Reading) -> None:
    """Take over what the store wants, as far as it was read."""
    for model in reading.models.keys() | reading.errors.keys():
        known = models.setdefault(model, KnownModel())
        known.unread = reading.errors.get(model, "")
        if (wanted := reading.models.get(model)) is None:
            continue
        if known.etag != wanted.etag:
            known.retry_at = 0.0
            public = known.releases.get(wanted.current.public or 0)
            if public is not None and public.state == "failed" and public.retry_at is None:
                public.retry_at, public.ended_triton = 0.0, min(public.ended_triton, 1)  # it is asked for once more
        known.etag, known.wanted, known.intents = wanted.etag, wanted.current, wanted.intents
        for (unread, number), why in reading.unread.items():
            if unread == model and number in known.wanted.loaded and known.waits_for_its_intent(number):
                known.releases[number] = KnownRelease("failed", why.error, why.hint, faults=GIVEN_UP_FAULTS, retry_at=0)
    for model in models.keys() - reading.models.keys() if reading.fresh else ():
        known = models[model]
        known.wanted = Current()
        if not known.releases and known.public is None and not known.moving and not known.unread:
            del models[model]
