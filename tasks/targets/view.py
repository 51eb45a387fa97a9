"""One model on one target, with every record that a roll-out decides by, read once and then asked without the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tasks.store.artifact import same_artifact
from tasks.targets.current import Current
from tasks.targets.node_report import NodeReport
from tasks.targets.release import Intent, Result


@dataclass(frozen=True)
class TargetView:
    """What `Target.view` read. Later writes do not show in it: to change the wanted state, call `Target.move`.

    `intents` and `results` have the records of releases that are public or candidates, or have no result yet. Of every
    other release only the age was read.
    """

    target: str
    model: str
    current: Current
    etag: str | None
    """Of `current.json`; None if the model was never released on this target."""
    ages: Mapping[int, float]
    """Every release number ever reserved, ascending, with the seconds since, by the store's clock."""
    intents: Mapping[int, Intent]
    results: Mapping[int, Result]
    nodes: tuple[NodeReport, ...]
    """Reports of the live nodes; empty if there is none."""

    @property
    def live(self) -> Intent | None:
        """The release that the public name answers with."""
        return None if self.current.public is None else self.intents[self.current.public]

    def unfinished(self, repository: str, digest: str) -> int | None:
        """The newest release with these bytes that a run has begun and not ended.

        It has no result, or it was not refused and is still a candidate. It is newer than the public one: what was
        begun before that was compared with another release.
        """
        for release in sorted((n for n in self.intents if n > (self.current.public or 0)), reverse=True):
            result, intent = self.results.get(release), self.intents[release]
            waits = result is not None and result.state != "refused" and release in self.current.candidates
            if (result is None or waits) and intent.digest == digest and same_artifact(intent.repository, repository):
                return release
        return None

    @property
    def undecided(self) -> tuple[int, ...]:
        """The candidates that wait for somebody to decide on them."""
        waiting = (self.results.get(release) for release in self.current.candidates)
        return tuple(each.release for each in waiting if each is not None and each.undecided == "ask")

    @property
    def without_result(self) -> tuple[int, ...]:
        """The releases that no gate has decided on, ascending."""
        return tuple(sorted(self.intents.keys() - self.results.keys() - {self.current.public}))
