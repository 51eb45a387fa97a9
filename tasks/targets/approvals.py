"""The records of a person's decision in the store, by target, model and release."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tasks.store.cell import WriteOnce
from tasks.targets.approval import Approval, ApprovalRequest
from tasks.targets.target import Target

_REQUEST = "approval-request.json"


@dataclass(frozen=True)
class Approvals:
    """The request for a decision on one release, and the decision."""

    target: Target
    model: str
    release: int

    @property
    def _folder(self) -> str:
        return f"{self.target.prefix}{self.model}/{self.release}/"

    @property
    def _request(self) -> WriteOnce[ApprovalRequest]:
        return WriteOnce(self.target.bucket, f"{self._folder}{_REQUEST}", ApprovalRequest)

    @property
    def _decision(self) -> WriteOnce[Approval]:
        return WriteOnce(self.target.bucket, f"{self._folder}approval.json", Approval)

    def request(self) -> ApprovalRequest | None:
        """What a person is asked; None if nobody is."""
        return self._request.read()

    def ask(self, request: ApprovalRequest) -> ApprovalRequest:
        """Write the request once; returns the one that counts, which is the first."""
        return self._request.create(request)

    def decision(self) -> Approval | None:
        """What was decided, by a person or by the time-out, which is recorded when it is first noticed.

        None while a person may still decide, and where nobody is asked.
        """
        if (known := self.recorded()) is not None:
            return known
        stored = self.target.bucket.get(self._request.key)
        if stored is None or stored.age <= ApprovalRequest.model_validate_json(stored.body).timeout_s:
            return None
        return self.decide(Approval(release=self.release, state="timed-out"))

    def recorded(self) -> Approval | None:
        """What was decided, as far as a record says so: nothing is written."""
        return self._decision.read()

    def decide(self, approval: Approval) -> Approval:
        """Write a decision once; returns the one that counts, which is the first."""
        return self._decision.create(approval)

    def supersede(self, why: str = "another candidate came") -> None:
        """Have nobody decide any more, if a person was asked."""
        if self.request() is not None:
            self.decide(Approval(release=self.release, state="superseded", note=why))

    @property
    def is_open(self) -> bool:
        """Whether the release waits for a person, or has the approval of one and waits for its promotion."""
        if self.request() is None:
            return False
        decision = self.decision()
        return decision is None or decision.state == "approved"


def open_requests(target: Target, model: str, candidates: Iterable[int]) -> tuple[int, ...]:
    """Those of the candidates that wait for a person, or for the promotion that one has approved."""
    return tuple(release for release in candidates if Approvals(target, model, release).is_open)


def requested(target: Target, model: str) -> frozenset[int]:
    """The releases about which a person was ever asked: one listing."""
    start = f"{target.prefix}{model}/"
    keys = (entry.key.removeprefix(start) for entry in target.bucket.list(start))
    return frozenset(int(key.partition("/")[0]) for key in keys if key.endswith(f"/{_REQUEST}"))
