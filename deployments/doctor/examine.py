"""Running checks side by side. One that raises or hangs is a finding itself, and stops no other."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from deployments.doctor.check import Check, Finding, not_made, wrong
from infra.errors import EnginehouseError
from infra.settings import Settings


@dataclass(frozen=True)
class Examined:
    """What one check found, in `seconds`."""

    check: Check
    findings: tuple[Finding, ...]
    seconds: float

    @property
    def is_wrong(self) -> bool:
        return any(finding.state == "wrong" for finding in self.findings)


def examine(checks: Sequence[Check], settings: Settings) -> tuple[Examined, ...]:
    """Run all checks at once, and return after the longest bound among them at most."""
    looks = [_Look(check, settings) for check in checks]
    for look in looks:
        look.thread.start()
    examined = [look.examined() for look in looks]
    by_name = {each.check.name: each for each in examined}
    return tuple(_told_once(each, by_name.get(each.check.needs)) for each in examined)


def _told_once(examined: Examined, needed: Examined | None) -> Examined:
    """Without what is wrong with the check that it needs already."""
    known = () if needed is None else {finding.code for finding in needed.findings if finding.state == "wrong"}
    return replace(
        examined,
        findings=tuple(
            not_made(f"what is wrong with `{examined.check.needs}` is in the way") if finding.code in known else finding
            for finding in examined.findings
        ),
    )


@dataclass
class _Look:
    check: Check
    settings: Settings
    findings: list[Finding] = field(default_factory=list[Finding])
    ended_at: float = 0.0

    def __post_init__(self) -> None:
        self.started_at = time.monotonic()
        # A thread that hangs must not keep the process when all is said.
        self.thread = threading.Thread(target=self._look, name=f"doctor-{self.check.name}", daemon=True)

    def _look(self) -> None:
        try:
            for finding in self.check.look(self.settings):
                self.findings.append(finding)
        except EnginehouseError as error:
            self.findings.append(wrong(error.code, error.message, error.hint))
        except Exception as error:
            self.findings.append(
                wrong(
                    "check-failed",
                    f"this check failed itself: {type(error).__name__}: {error}",
                    "report it with this line; the other checks stand",
                )
            )
        self.ended_at = time.monotonic()

    def examined(self) -> Examined:
        self.thread.join(max(0.0, self.started_at + self.check.within_s - time.monotonic()))
        if not self.thread.is_alive():
            return Examined(self.check, tuple(self.findings), self.ended_at - self.started_at)
        hung = wrong(
            "check-hung",
            f"no answer within {self.check.within_s:g} s to: {self.check.looks_at}",
            f"find out what it waits for, then: enginehouse doctor {self.check.name}",
        )
        return Examined(self.check, (*self.findings, hung), self.check.within_s)
