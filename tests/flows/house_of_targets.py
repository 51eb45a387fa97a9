"""A house with several targets, in which one model is rebuilt: the real flow, its records, and promotions.

Hub, engines, nodes and Prefect are left out, as in `house_of_records`. Each target does what a test says of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows import current_rebuild, reconcile
from flows import rebuild as rebuild_flow
from flows import waves as waves_flow
from infra.errors import EnginehouseError, GateRefused
from tasks.models.spec import Model
from tasks.sources.resolved import ResolvedSource
from tasks.steps import promote as promote_step
from tasks.steps.plan import Plan
from tasks.steps.promote import roll_back
from tasks.steps.resolve import ResolvedWeights
from tasks.steps.roll_out import RollOut
from tasks.store import cell
from tasks.targets.release import Intent, Result
from tasks.targets.target import Target
from tasks.targets.waves import WaveOutcome, Waves, WavesRecords, wave_outcome
from tests.flows.house_of_records import TINY, always, at_once, no_client, nothing
from tests.flows.interleaved import MemoryBucket, Stage, drive

RUN = "00000000-0000-0000-0000-000000000001"


def model(targets: str, rollout: Mapping[str, Any], **sections: Any) -> Model:
    """A model of targets with names of one letter."""
    document = TINY.model_dump(mode="json", by_alias=True)
    return Model.model_validate({**document, "targets": [*targets], "rollout": rollout, **sections})


@dataclass
class House:
    """`moves` are those of the public name, each with the minute."""

    model: Model
    stage: Stage = field(default_factory=lambda: Stage(0))
    bucket: MemoryBucket = field(init=False)
    weights: str = "s3://weights/1"
    refusing: set[str] = field(default_factory=set[str])
    """Targets whose gates refuse."""
    watches: dict[str, Callable[[], None]] = field(default_factory=dict[str, Callable[[], None]])
    """What the watch over a target finds."""
    waiting: set[str] = field(default_factory=set[str])
    """Targets where a person decides first."""
    gating: Callable[[str], None] = lambda target: None
    """Called while a target gates."""
    sleeping: Callable[[], None] = lambda: None
    moves: list[tuple[int, str, int | None]] = field(default_factory=list[tuple[int, str, int | None]])
    started: dict[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    """Rebuilds that reconcile has started, by key."""
    _known: dict[str, int | None] = field(default_factory=dict[str, "int | None"])

    def __post_init__(self) -> None:
        self.bucket = MemoryBucket("memory", "", stage=self.stage, noticed=self._note)

    def _note(self, key: str, body: bytes) -> None:
        parts = key.split("/")
        if parts[-1] == "current.json" and parts[0] == "targets":
            public = json.loads(body)["public"]
            if public != self._known.get(parts[1]):
                self._known[parts[1]] = public
                self.moves.append((self.stage.minute, parts[1], public))

    def back_to(self, objects: Mapping[str, tuple[bytes, int]]) -> None:
        """Have the store be as it was, with release 1 on all targets, and forget what has happened since."""
        self.bucket.objects.clear()
        self.bucket.objects.update(objects)
        self._known = dict.fromkeys(self.model.targets, 1)
        self.moves.clear()
        self.started.clear()

    def target(self, name: str) -> Target:
        return Target(self.bucket, name)

    def public(self, name: str) -> int | None:
        return self.target(name).current("tiny")[0].public

    def moved(self) -> list[tuple[str, int | None]]:
        return [(target, release) for _, target, release in self.moves]

    def outcome(self, name: str, release: int) -> WaveOutcome | None:
        return wave_outcome(self.target(name), "tiny", release).read()

    @property
    def last(self) -> Waves:
        found = self.last_or_none
        assert found is not None
        return found

    @property
    def last_or_none(self) -> Waves | None:
        found = WavesRecords(self.target(self.model.targets[0]), "tiny").last()
        return None if found is None else found[1]

    def dies(self, objects: Mapping[str, tuple[bytes, int]], write: int) -> bool:
        """Rebuild from this state of the store, and die at a write, negative: just before. Whether it came so far."""
        self.back_to(objects)
        ended: list[bool] = []

        def rebuild() -> None:
            with contextlib.suppress(GateRefused):
                self.rebuild()

        self.stage.start("rebuild", rebuild, write, lambda actor: ended.append(actor.killed))
        while self.stage.actors:
            self.stage.step()
        return ended[0]

    def rebuild(self, targets: str = "") -> None:
        drive(rebuild_flow.rebuild.fn(model="tiny", targets=tuple(targets)))

    def refused(self, targets: str = "") -> EnginehouseError:
        with pytest.raises(EnginehouseError) as caught:
            self.rebuild(targets)
        return caught.value

    def roll_back(self, target: str) -> None:
        roll_back(self.target(target), "tiny")

    def reconcile(self) -> None:
        drive(reconcile.end_waves(None, self.bucket, frozenset()))  # type: ignore[arg-type]

    async def start_rebuild(self, model: str, key: str, *, parameters: Mapping[str, Any]) -> str:
        self.started.setdefault(key, parameters)
        return key

    async def sleep(self, seconds: float) -> None:
        self.stage.minute += math.ceil(seconds / 60)
        self.sleeping()

    def resolved(self) -> ResolvedWeights:
        return ResolvedWeights(ResolvedSource(self.weights, {"pin": self.weights, "commit": self.weights}, ()))

    async def step(self, report: Any, step: Any, *arguments: Any) -> Any:
        """A step of a rebuild. Of each the records that it leaves."""
        if step.name == "resolve":
            return arguments[0], self.resolved()
        plan: Plan = arguments[0]
        if step.name == "roll_out":
            return self._roll_out(plan, self.target(arguments[1]))
        if step.name == "give_back":
            return arguments[1].give_back()
        if step.name == "watch":
            self.watches.get(arguments[1], lambda: None)()
        if step.name not in ("validate", "approval", "promote"):
            return None
        rolled: RollOut = arguments[1]
        target = self.target(rolled.target)
        match step.name:
            case "validate":
                self.gating(rolled.target)
                state = "refused" if rolled.target in self.refusing else "passed"
                result = target.conclude("tiny", Result(release=rolled.release, state=state, reason="too slow"))
                if result.state == "refused":
                    target.move("tiny", lambda current: current.without_candidates(rolled.release))
                    raise GateRefused(f"release {rolled.release} on '{rolled.target}' was refused")
                return result
            case "approval":
                return rolled.target not in self.waiting
            case _:
                return promote_step.promote(target, "tiny", rolled.release, unless=arguments[3])

    def _roll_out(self, plan: Plan, target: Target) -> RollOut:
        view = target.view("tiny")
        if view.live is not None and view.live.artifact == plan.repository_ref:
            return RollOut(target.name, view.live.release, unchanged=True)
        known = view.unfinished(str(plan.repository_ref), "")
        if known is None:
            about: dict[str, Any] = {
                "repository": str(plan.repository_ref),
                "digest": "",
                "recipe": {},
                "source": plan.model.origin,
                "flow_run": "",
            }
            known = target.reserve(
                "tiny", lambda n: Intent.model_validate({"model": "tiny", "release": n, **about})
            ).release
        target.move("tiny", lambda current: current.with_candidate(known))
        return RollOut(target.name, known, unchanged=False)


def furnish(house: House, patch: pytest.MonkeyPatch) -> None:
    """Have the flow run in this house. A run that crashed is the one that every record names."""

    async def crashed(client: object, run: str) -> bool:
        return True

    log = SimpleNamespace(info=always(None), warning=always(None))
    config = SimpleNamespace(store="", catalogue=Path(), heartbeat_seconds=30, lease_seconds=5.0, mlflow="")
    for module in (current_rebuild, reconcile):
        patch.setattr(module, "settings", SimpleNamespace(load=always(config)))
        patch.setattr(module, "Bucket", SimpleNamespace(at=always(house.bucket)))
    for module in (current_rebuild, reconcile, waves_flow):
        patch.setattr(module, "get_run_logger", always(log))
    patch.setattr(current_rebuild, "catalogue_folder", always(Path()))
    patch.setattr(current_rebuild, "catalogue_entry", lambda *_: house.model)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    patch.setattr(current_rebuild, "flow_run", SimpleNamespace(id=RUN))
    patch.setattr(waves_flow, "flow_run", SimpleNamespace(parameters={"model": "tiny", "refresh": "build"}))
    patch.setattr(reconcile, "get_client", no_client)
    patch.setattr(reconcile, "start_rebuild", house.start_rebuild)
    patch.setattr(reconcile, "has_crashed", crashed)
    for module in (rebuild_flow, waves_flow):
        patch.setattr(module, "run", house.step)
    patch.setattr(rebuild_flow, "make_engine", nothing)
    patch.setattr(current_rebuild, "require_nodes", always([]))  # no node is part of this house
    patch.setattr(rebuild_flow, "turn", no_turn)
    patch.setattr(promote_step, "wait_until_public", always(None))
    patch.setattr(promote_step, "_require_servable", always(SimpleNamespace(aliases=())))
    patch.setattr(asyncio, "to_thread", at_once)
    patch.setattr(waves_flow.asyncio, "sleep", house.sleep)
    patch.setattr(cell, "time", SimpleNamespace(sleep=always(None)))


def no_turn(target: str, model: str) -> Any:
    """No lease decides on what these tests ask: it only saves work."""
    return no_client()
