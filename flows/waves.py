"""The targets of a rebuild, wave by wave: when the next one begins, and what comes of a refusal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

from prefect import get_run_logger
from prefect.runtime import flow_run
from pydantic import JsonValue
from pydantic_core import to_jsonable_python

from flows import steps
from flows.current_rebuild import CurrentRebuild
from flows.task_runs import run
from infra.errors import EnginehouseError, GateRefused
from tasks.models.rollout import Wave
from tasks.steps.plan import Plan
from tasks.steps.waves import InWaves, moved_away, require_unmoved
from tasks.targets.waves import Waves

LOOK_SECONDS = 15.0
"""How often it is looked, while a wave soaks, whether its release is still public."""


@dataclass
class Targets:
    """The targets that one run rolls out to. `live` has the release of each where that is done."""

    current: CurrentRebuild
    plan: Plan
    waves: tuple[Wave, ...]
    records: InWaves | None
    """None if the model's file has no waves: each target is one by itself then, and a person's decision holds back
    only the target that it is about."""
    live: dict[str, int] = field(default_factory=dict[str, int])

    @classmethod
    async def of(cls, current: CurrentRebuild, plan: Plan, asked: Sequence[str], *, afresh: bool) -> Targets:
        """Those that were `asked` for, else those of the model's file. A rollout that was left half way goes on."""
        model = plan.model
        waves = model.rollout.waves_of(asked or model.targets)
        if not waves or not model.rollout.waves:
            return cls(current, plan, waves, None)
        wanted = Waves(
            repository=str(plan.repository_ref),
            waves=tuple(wave.targets for wave in waves),
            all_back=model.rollout.on_refusal == "all_back",
            parameters={**_parameters(), "model": model.name, "refresh": "nothing"},
            flow_run=current.report.flow_run,
        )
        records = InWaves(current.bucket, model.name, waves, wanted, current.report.flow_run)
        await asyncio.to_thread(records.look_back, afresh=afresh)
        return cls(current, plan, waves, records)

    def overtaken(self) -> bool:
        """Whether the release is not to be promoted any more: newer weights came, or the name was moved elsewhere."""
        return self.current.has_newer() or bool(moved_away(self.current.bucket, self.plan.model.name, self.live))

    async def goes_on(self) -> bool:
        """Whether the release is to go to more targets: not if newer weights have passed their gates.

        Raises EnginehouseError `rollout-overtaken` if the public name was moved where this run has been already.
        """
        if await self.current.overtaken():
            await self._overtaken("newer weights have passed their gates")
            return False
        try:
            await asyncio.to_thread(require_unmoved, self.current.bucket, self.plan.model.name, self.live)
        except EnginehouseError as error:
            if error.code == "rollout-overtaken":
                await self._overtaken(error.message)
            raise
        return True

    async def note(self, target: str, release: int) -> None:
        """Note that the release is about to become public on a target."""
        if self.records is not None:
            await asyncio.to_thread(self.records.note, target, release)

    async def each(self, roll_out: Callable[[str], Awaitable[bool]]) -> None:
        """Call `roll_out` with each target in turn, until it says False: then nothing more is to be rolled out.

        Where the model's file has waves, the next one begins when the watch over all of this one has ended well, and
        when it has soaked. Raises GateRefused, code `wave-refused` or `wave-returned`, at the first target that refuses
        the release, and EnginehouseError `rollout-overtaken`. Without waves, a refusal is as it comes.
        """
        for number, wave in enumerate(self.waves, 1):
            refusal: Refusal | None = None
            for target in wave.targets:
                try:
                    if not await roll_out(target):
                        return
                except GateRefused as error:
                    refusal = Refusal(target, error)
                    break
            await self._decided(number, wave, refusal)
            if any(target not in self.live for target in wave.targets):  # a person decides first
                if self.records is not None:
                    return
                continue
            await self.current.settle("live")  # also where the run before this one died
            if self.records is not None:
                await asyncio.to_thread(self.records.passed, number, self.live)
                if number < len(self.waves) and not await self._soaked(self.records, number):
                    return

    async def _decided(self, number: int, wave: Wave, refusal: Refusal | None) -> None:
        """Watch what has become public of a wave, all at once. Raises the error of the first refusal.

        What follows from a refusal is done at once. Other watches go on for their time, and see for themselves that
        their release was given back.
        """
        told = None if refusal is None else await self._refused(number, refusal)
        async for found in self._watched(wave):
            told = told or await self._refused(number, found)
        if told is not None:
            raise told

    async def _watched(self, wave: Wave) -> AsyncGenerator[Refusal]:
        """The releases of a wave that their watches refuse, each as soon as that is known."""
        if self.plan.model.watch is None:
            return
        watches = [self._watch(target) for target in wave.targets if target in self.live]
        for ended in asyncio.as_completed(watches):
            if (found := await ended) is not None:
                yield found

    async def _soaked(self, records: InWaves, number: int) -> bool:
        """Wait until a wave has soaked. Returns False if nothing more is to be rolled out."""
        left = await asyncio.to_thread(records.soak_left, number, self.live)
        if left:
            get_run_logger().info("wave %d of %d has passed, and soaks for %.0f s", number, len(self.waves), left)
        while left > 0:
            await asyncio.sleep(min(left, LOOK_SECONDS))
            if not await self.goes_on():
                return False
            left = await asyncio.to_thread(records.soak_left, number, self.live)
        return True

    async def _watch(self, target: str) -> Refusal | None:
        try:
            await run(self.current.report, steps.watch, self.plan, target, self.live[target])
        except GateRefused as error:
            return Refusal(target, error)
        return None

    async def _refused(self, number: int, refusal: Refusal) -> GateRefused:
        """The error to raise, once what follows from a refusal is done."""
        if (records := self.records) is None:
            return refusal.error
        model, target, error = self.plan.model.name, refusal.target, refusal.error
        release = self.current.report.targets.get(target)
        await asyncio.to_thread(records.refused, number, target, release, error.message)
        others = [each for wave in self.waves for each in wave.targets if each != target]
        all_back = self.plan.model.rollout.on_refusal == "all_back"
        if all_back:
            done = await run(self.current.report, steps.give_back, self.plan, records)
        else:
            done = [_of("it stays on", [each for each in others if each in self.live])]
        done.append(_of("it was not brought to", [each for each in others if each not in self.live]))
        made = GateRefused(
            f"wave {number} of {len(self.waves)} refused {model}: {error.message}",
            hint="; ".join(filter(None, (*done, error.hint))),
            code="wave-returned" if all_back else "wave-refused",
        )
        made.__cause__ = error
        return made

    async def _overtaken(self, reason: str) -> None:
        if self.records is not None:
            await asyncio.to_thread(self.records.overtaken, reason)


@dataclass(frozen=True)
class Refusal:
    """A target that refused the release, and how it said that."""

    target: str
    error: GateRefused


def _of(what: str, targets: Sequence[str]) -> str:
    return f"{what} {', '.join(targets)}" if targets else ""


def _parameters() -> dict[str, JsonValue]:
    return cast("dict[str, JsonValue]", to_jsonable_python(flow_run.parameters))
