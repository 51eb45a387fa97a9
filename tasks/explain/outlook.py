"""What a rebuild would meet in the store: earlier releases, artifacts that are there, nodes and their memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from pydantic import ValidationError

from infra.errors import EnginehouseError, StoreError, UsageError
from infra.s3.bucket import Bucket
from tasks.explain.expected_time import Forecast, forecast, seconds_before
from tasks.explain.node_room import NodeRoom, rooms
from tasks.explain.planned_steps import PlannedStep, StepName, made_before, planned_steps
from tasks.kinds.protocol import LIMITS_FILE, EngineKind, PlannedMemory
from tasks.models.spec import Model
from tasks.steps.nodes import require_nodes
from tasks.steps.plan import Plan
from tasks.steps.resolve import ResolvedWeights
from tasks.store.artifact import ArtifactRef, Manifest
from tasks.store.artifact_store import ArtifactStore
from tasks.store.inventory import in_parallel
from tasks.targets.node_report import NodeReport
from tasks.targets.target import Target

_EARLIER = 5
"""Of the newest releases on a target, whose manifests say what steps took."""


@dataclass(frozen=True)
class Earlier:
    """A release that there is already; `live` if the public name answers with it."""

    target: str
    release: int
    live: bool
    repository: ArtifactRef


@dataclass(frozen=True)
class OnTarget:
    """A target of the rebuild. `refusal` is why nothing would be built for it, and `silent` that its nodes are."""

    name: str
    live: int | None
    same: bool
    """Whether the live release is what the rebuild would make."""
    rooms: tuple[NodeRoom, ...] = ()
    refusal: EnginehouseError | None = None
    silent: str = ""


@dataclass(frozen=True)
class Outlook:
    """What the store says. `steps` is None where the identities are not known, and `built_bytes` where no engine is."""

    targets: tuple[OnTarget, ...]
    compared: Earlier | None = None
    """The release that the steps are compared with."""
    steps: tuple[PlannedStep, ...] | None = None
    time: Forecast | None = None
    built_bytes: int | None = None
    """Of memory, by the limits of the engine that the store has."""


def outlook(
    bucket: Bucket,
    model: Model,
    kind: EngineKind,
    targets: Sequence[str],
    plan: Plan | None,
    weights: ResolvedWeights | None,
    planned: PlannedMemory | None,
) -> Outlook:
    """What a rebuild of `model` would meet. Raises StoreError."""
    looked = _Looking(bucket, model, kind, [Target(bucket, name) for name in targets])
    return looked.found(plan, weights, planned)


@dataclass(frozen=True)
class _Looking:
    bucket: Bucket
    model: Model
    kind: EngineKind
    targets: Sequence[Target]
    store: ArtifactStore = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "store", ArtifactStore(self.bucket))

    def found(self, plan: Plan | None, weights: ResolvedWeights | None, planned: PlannedMemory | None) -> Outlook:
        earlier = [release for found in in_parallel(self._earlier, self.targets) for release in found]
        chains = in_parallel(lambda each: made_before(self.bucket, each.repository), earlier)
        compared = next((each for each in earlier if each.live), earlier[0] if earlier else None)
        before = chains[earlier.index(compared)] if compared is not None else {}
        steps = None if plan is None or weights is None else planned_steps(self.store, plan, weights, before)
        built = None if steps is None else self._built_bytes(steps)
        needed = built if built is not None else None if planned is None else planned.total
        on_targets = in_parallel(lambda target: self._on(target, earlier, plan, needed), self.targets)
        return Outlook(tuple(on_targets), compared, steps, self._time(steps, chains), built)

    def _earlier(self, target: Target) -> list[Earlier]:
        """The newest releases on a target, the newest first."""
        name = self.model.name
        public = target.current(name)[0].public
        numbers = {*target.releases(name)[-_EARLIER:], *([] if public is None else [public])}
        found: list[Earlier] = []
        for number in sorted(numbers, reverse=True):
            with suppress(StoreError, UsageError, ValidationError):  # a record that nobody can read
                found.append(Earlier(target.name, number, number == public, target.intent(name, number).artifact))
        return found

    def _on(self, target: Target, earlier: Sequence[Earlier], plan: Plan | None, needed: int | None) -> OnTarget:
        live = next((each for each in earlier if each.target == target.name and each.live), None)
        number = None if live is None else live.release
        same = live is not None and plan is not None and live.repository == plan.repository_ref
        try:
            silent = require_nodes([target])
        except UsageError as error:
            return OnTarget(target.name, number, same, refusal=error)
        nodes: list[NodeReport] = target.nodes()
        fit = tuple(rooms(self.model, self.kind, needed, target.name, nodes))
        return OnTarget(target.name, number, same, fit, silent=silent[0] if silent else "")

    def _built_bytes(self, steps: Sequence[PlannedStep]) -> int | None:
        made = {step.step: step.artifact for step in steps if step.artifact is not None and not step.part}
        engine, repository = made.get("build"), made.get("assemble")
        if engine is None:
            return None
        size = engine.manifest.size + (0 if repository is None else repository.manifest.size)
        with suppress(StoreError, UsageError):
            return self.kind.memory_bytes(size, self.store.read(engine, LIMITS_FILE))
        return None

    def _time(
        self, steps: Sequence[PlannedStep] | None, chains: Sequence[Mapping[StepName, Manifest]]
    ) -> Forecast | None:
        if steps is None:
            return None
        gpus = self.kind.build_machine().gpus if self.kind.gpus() else 0
        return forecast(steps, seconds_before(chains), _size(steps), gpus)


def _size(steps: Sequence[PlannedStep]) -> int | None:
    """Bytes of the weights, by their snapshot or by what their source says of its files."""
    for step in steps:
        if step.step == "fetch" and not step.part:
            return step.download_bytes if step.artifact is None else step.artifact.manifest.size
    return None


def refusals(outlook: Outlook) -> Iterator[EnginehouseError]:
    """Why a rebuild would be refused before it makes anything."""
    return (each.refusal for each in outlook.targets if each.refusal is not None)
