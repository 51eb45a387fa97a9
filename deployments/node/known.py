"""What a node knows of the models and releases that its Triton holds."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal

from tasks.targets.current import Current
from tasks.targets.node_report import ModelReport, ReleaseReport


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

    @property
    def due(self) -> bool:
        """Whether nothing has to be waited for before the next try."""
        return self.retry_at is None or time.monotonic() >= self.retry_at

    @property
    def busy(self) -> bool:
        return self.loader is not None and not self.loader.done()


@dataclass
class KnownModel:
    """One model: the wanted state as it was last read, and what its public name and its releases are now."""

    etag: str = ""
    """Of the record that `wanted` was read from; empty before the first reading."""
    wanted: Current = field(default_factory=Current)
    public: int | None = None
    error: str = ""
    retry_at: float = 0.0
    releases: dict[int, KnownRelease] = field(default_factory=dict[int, KnownRelease])

    def failed_for_good(self) -> KnownModel:
        """The same model with nothing but the releases that are not tried again."""
        failed = {
            number: release
            for number, release in self.releases.items()
            if release.state == "failed" and release.retry_at is None
        }
        return KnownModel(releases=failed)

    def used(self) -> set[int]:
        """The releases whose files have to stay on this node's disk."""
        wanted = (self.public, self.wanted.public, self.wanted.previous, *self.wanted.candidates)
        return {number for number in wanted if number is not None} | self.releases.keys()

    def report(self) -> ModelReport:
        releases = {
            number: ReleaseReport(state=release.state, error=release.error, hint=release.hint, starts=release.starts)
            for number, release in self.releases.items()
        }
        return ModelReport(public=self.public, error=self.error, releases=releases)
