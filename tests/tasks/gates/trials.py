"""Trials of two releases that a function answers for: what the gates do with answers, without an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.triton.client import Completion, TritonClient
from tasks.gates.protocol import FindReference, FoundReference, Served, Trial
from tasks.models.catalogue import load_model
from tasks.models.gate_specs.agreement import AgreementSpec
from tasks.models.spec import Model
from tasks.targets.node_report import NodeReport
from tasks.targets.release import Intent

CATALOGUE = Path(__file__).parents[3] / "deployments" / "models"

Answering = Callable[[str, Mapping[str, Any]], Completion | str]
"""What a release answers, by its name and the request. It may raise TritonError."""


class Answered(TritonClient):
    """A client whose server is a function. It remembers the requests, each with the release that it asked."""

    def __init__(self, answering: Answering) -> None:
        super().__init__("127.0.0.1:9")
        self._answering = answering
        self.requests: list[tuple[str, Mapping[str, Any]]] = []

    def generate(self, model: str, request: Mapping[str, Any]) -> Completion:
        self.requests.append((model, request))
        answer = self._answering(model, request)
        return Completion(answer, (), 0.01) if isinstance(answer, str) else answer


def silent(model: str, request: Mapping[str, Any]) -> str:
    """Releases that say nothing."""
    return ""


@dataclass(frozen=True)
class AnsweredTrial(Trial):
    """A trial, all nodes of which are one client."""

    answered: Answered = field(default_factory=lambda: Answered(silent))

    def client(self, node: NodeReport) -> TritonClient:
        return self.answered


def embedded() -> Model:
    return load_model(CATALOGUE / "smollm2-135m.yaml")


def served(model: str, release: int, contract: int = 2) -> Served:
    return Served(
        Intent(
            model=model,
            release=release,
            repository="repository/00",
            digest="d",
            recipe={},
            serving={"contract": contract},
            source="file:///weights",
            flow_run="some-run",
        )
    )


def trial(answering: Answering, *, nodes: int = 1, live: bool = True, contract: int = 2) -> AnsweredTrial:
    """Release 2 as a candidate beside release 1: `smollm2-135m--r2` and `smollm2-135m--r1`."""
    model = embedded()
    return AnsweredTrial(
        model=model,
        target="local",
        nodes=tuple(
            NodeReport.model_construct(node=f"n{number}", http="127.0.0.1:9", grpc="") for number in range(nodes)
        ),
        candidate=served(model.name, 2, contract),
        live=served(model.name, 1, contract) if live else None,
        answered=Answered(answering),
    )


def finds(found: FoundReference) -> FindReference:
    """What has this reference for each gate."""

    def find(_: AgreementSpec) -> FoundReference:
        return found

    return find


CANDIDATE, LIVE = "smollm2-135m--r2", "smollm2-135m--r1"
