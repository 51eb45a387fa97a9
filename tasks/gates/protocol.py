"""The protocol of a gate, which flows and steps ask without knowing the gate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias

from infra.triton.client import TritonClient
from tasks.models.gate_specs.agreement import AgreementSpec
from tasks.models.spec import Model
from tasks.serving.figures import UNCOUNTED
from tasks.store.reference import ReferenceTokens
from tasks.targets.gate_record import Evidence
from tasks.targets.node_report import NodeReport
from tasks.targets.release import Intent
from tasks.triton.config import RELEASE
from tasks.triton.placement import release_names


@dataclass(frozen=True)
class Served:
    """A release that every node of a trial has loaded."""

    intent: Intent

    @property
    def release(self) -> int:
        return self.intent.release

    @property
    def name(self) -> str:
        """What Triton calls it, beside the public name. Requests by it reach this release and no other."""
        return release_names(self.intent.model, self.intent.release)[RELEASE]


@dataclass(frozen=True)
class FoundReference:
    """The reference of a candidate's weights, or why there is none."""

    tokens: ReferenceTokens | None = None
    artifact: str = ""
    """As `KIND/IDENTITY`; empty without tokens."""
    missing: str = ""
    """Why there is none, in a sentence. Empty with tokens."""


FindReference: TypeAlias = Callable[[AgreementSpec], FoundReference]
"""Looks for the answers that a gate of agreement asks for. Raises StoreError and UsageError."""


def _quiet(_: str) -> None:
    pass


def _no_reference(_: AgreementSpec) -> FoundReference:
    return FoundReference(missing="nobody has looked for one")


@dataclass(frozen=True)
class Trial:
    """A candidate beside what is live, on the live nodes of a target: all that a gate is given."""

    model: Model
    """As its file says now."""
    target: str
    nodes: tuple[NodeReport, ...]
    """At least one. Both releases answer on each of them."""
    candidate: Served
    live: Served | None
    """The live release to compare with. None if no release is, or if memory does not hold both."""
    alpha: float = 0.05
    """The level of one-sided bounds: what `Comparison.lower` and `upper` are found with."""
    say: Callable[[str], None] = _quiet
    """Takes a line for the log: what the gate is at, now and then."""
    find_reference: FindReference = _no_reference
    """Finds what the candidate's weights say before they are quantized."""

    def client(self, node: NodeReport) -> TritonClient:
        """Asks the Triton of a node, and waits a little longer than a release works at a request.

        What it asks is in no figures of a release, which are of clients, unless one of both cannot tell.
        """
        timeout_s = self.model.serving.request_timeout_s + 30
        asked = (self.candidate, *((self.live,) if self.live is not None else ()))
        request_id = UNCOUNTED if all(each.intent.takes_ids for each in asked) else ""
        return TritonClient(node.http, grpc=node.grpc, timeout_s=timeout_s, request_id=request_id)


class Gate(Protocol):
    """One gate as a model's file asks for it."""

    compares: ClassVar[bool]
    """Whether it compares with the live release where there is one. Where it could not, it does not pass."""

    def run(self, trial: Trial) -> Evidence:
        """Measure. It does not judge: `tasks.gates.judge` does, with all gates before it.

        What the candidate fails at is evidence (`failures`), and so is what could not be measured (`gaps`). It has an
        end of its own. Raises TritonError that is retryable where the same run may succeed later: the step then asks
        this gate again, and none of those before it.
        """
        ...
