"""The section `rollout` of a model's file: how traffic moves to a candidate that has passed its gates, and when."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Literal, Self, get_args
from zoneinfo import ZoneInfo

from pydantic import BeforeValidator, Field, field_validator, model_validator

from infra.frozen import Spec

OnRefusal = Literal["stop", "all_back"]
Strategy = Literal["blue_green", "canary", "shadow", "recreate"]
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
_DAYS: tuple[Day, ...] = get_args(Day)
_DURATION = re.compile(r"(?P<number>\d{1,6}(\.\d{1,3})?) ?(?P<unit>s|m|h)")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_HOURS = re.compile(r"(\d{2}:\d{2})-(\d{2}:\d{2})")
_LONGEST_SOAK = 7 * 24 * 3600.0


def _seconds(value: object) -> object:
    """`10m` as seconds."""
    if not isinstance(value, str):
        return value
    if (found := _DURATION.fullmatch(value.strip())) is None:
        raise ValueError(f"{value[:40]!r} is no time such as 90s, 10m or 2h")
    return float(found["number"]) * _UNITS[found["unit"]]


Seconds = Annotated[float, BeforeValidator(_seconds, json_schema_input_type=str | float)]


class Step(Spec):
    """For `soak` a share of the requests goes to the candidate, or is copied to it. Then it is judged again."""

    share: float = Field(gt=0, le=1, description="0.05 for a twentieth.")
    soak: Seconds = Field(ge=0, le=_LONGEST_SOAK, description="90s, 10m or 2h; a number is seconds.")


class Wave(Spec):
    """Targets that get a release one after the other, and one verdict. The next wave begins once that is `passed`."""

    targets: tuple[str, ...] = Field(min_length=1, description="Of the model's `targets`, in this order.")
    soak: Seconds = Field(
        default=0, ge=0, le=_LONGEST_SOAK, description="How long the next wave waits after it has passed: 30m, 2h."
    )


class Schedule(Spec):
    """When a rollout may begin, by the clock of a time zone."""

    timezone: str = Field(description="As IANA names it: Europe/Berlin, UTC.")
    days: tuple[Day, ...] = Field(default=_DAYS, description="Of mon, tue, wed, thu, fri, sat, sun.")
    hours: str = Field(default="00:00-24:00", description="HH:MM-HH:MM. 22:00-06:00 ends on the next day.")

    @field_validator("timezone")
    @classmethod
    def _is_known(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ValueError, OSError):  # ZoneInfoNotFoundError is a KeyError
            raise ValueError(f"{name[:60]!r} is no time zone, such as Europe/Berlin or UTC") from None
        except KeyError:
            raise ValueError(f"{name[:60]!r} is no time zone that this machine knows, such as Europe/Berlin") from None
        return name

    @field_validator("days")
    @classmethod
    def _has_some(cls, days: tuple[Day, ...]) -> tuple[Day, ...]:
        if not days:
            raise ValueError("without a day it never opens; `freeze: true` says that")
        return days

    @field_validator("hours")
    @classmethod
    def _are_hours(cls, text: str) -> str:
        _span(text)
        return text

    def next_opening(self, now: datetime) -> datetime | None:
        """When it opens next; None while it is open. In its own time zone."""
        zone = ZoneInfo(self.timezone)
        begin, end = _span(self.hours)
        today = now.astimezone(zone).date()
        # From yesterday, whose hours may reach into today, to the same day of the next week.
        for day in (today + timedelta(days=ahead) for ahead in range(-1, 9)):
            if _DAYS[day.weekday()] not in self.days:
                continue
            opens, closes = _at(day, begin, zone), _at(day, end, zone)
            if now < closes:
                return opens.astimezone(zone) if now < opens else None
        raise AssertionError("a day of every week has hours")


def _span(hours: str) -> tuple[timedelta, timedelta]:
    """From when to when, as wall-clock time since midnight; the end may be on the next day."""
    found = _HOURS.fullmatch(hours)
    if found is None:
        raise ValueError(f"{hours[:40]!r} are no hours such as 09:00-17:00")
    begin, end = (timedelta(hours=int(text[:2]), minutes=int(text[3:])) for text in found.groups())
    whole = timedelta(days=1)
    if begin >= whole or end > whole or any(int(text[3:]) > 59 for text in found.groups()):
        raise ValueError(f"{hours} are no hours of a day")
    if begin == end:
        raise ValueError(f"{hours} has no minute in it")
    return begin, end if end > begin else end + whole


def _at(day: date, since_midnight: timedelta, zone: ZoneInfo) -> datetime:
    """The moment in UTC: moments of one zone are compared by their wall clocks, which jump."""
    return (datetime.combine(day, time(), zone) + since_midnight).astimezone(UTC)


@dataclass(frozen=True)
class Closed:
    """Why no rollout may begin now. `opens` is None where only a change of the file opens it."""

    code: Literal["frozen", "outside-hours"]
    opens: datetime | None


def _freeze(value: object) -> object:
    if isinstance(value, bool | datetime):
        return value
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value)
        except ValueError:
            pass
    raise ValueError("is true, false, or the moment until which: 2027-01-04T08:00:00+01:00")


Freeze = Annotated[bool | datetime, BeforeValidator(_freeze, json_schema_input_type=bool | datetime)]


class Rollout(Spec):
    """As it comes, the public name moves at once, and at any time. A rollback is always allowed."""

    strategy: Strategy = Field(
        default="blue_green",
        description="blue_green: all requests at once. canary: a share of them first, step by step. shadow: copies of "
        "them first, whose answers nobody gets. recreate: in the live release's place, where memory holds one.",
    )
    steps: tuple[Step, ...] = Field(default=(), max_length=20, description="Of canary and shadow, in this order.")
    sticky: bool = Field(default=True, description="Of canary: one session or key stays with one release.")
    schedule: Schedule | None = Field(default=None, description="Rollouts begin within these hours alone.")
    freeze: Freeze = Field(default=False, description="true, or a moment: no rollout begins until then.")
    waves: tuple[Wave, ...] = Field(
        default=(), max_length=50, description="Of several targets: which come first. Each target is in one wave."
    )
    on_refusal: OnRefusal = Field(
        default="stop",
        description="Of waves. stop: the targets of later waves keep what they have. all_back: those that the rollout "
        "has moved get their previous release again too.",
    )

    @field_validator("freeze")
    @classmethod
    def _is_a_moment(cls, freeze: bool | datetime) -> bool | datetime:
        if isinstance(freeze, datetime) and freeze.tzinfo is None:
            raise ValueError(f"{freeze.isoformat()} has no time zone: 2027-01-04T08:00:00+01:00")
        return freeze

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.shifts and not self.steps:
            raise ValueError(f"strategy {self.strategy} needs steps: [{{share: 0.05, soak: 10m}}]")
        if self.steps and not self.shifts:
            raise ValueError(f"strategy {self.strategy} has no steps; canary and shadow have")
        if not self.sticky and self.strategy != "canary":
            raise ValueError(f"strategy {self.strategy} sends no client anywhere, so sticky means nothing with it")
        shares = [step.share for step in self.steps]
        if shares != sorted(set(shares)):
            raise ValueError("the shares of steps grow from each to the next")
        return self

    @model_validator(mode="after")
    def _has_waves_that_can_be(self) -> Self:
        named = [target for wave in self.waves for target in wave.targets]
        if twice := sorted({target for target in named if named.count(target) > 1}):
            raise ValueError(f"waves name {', '.join(twice)} twice; each target is in one wave")
        if self.waves and self.waves[-1].soak:
            raise ValueError("the last wave has a soak, and no wave comes after it")
        if self.on_refusal == "all_back" and not self.waves:
            raise ValueError("on_refusal: all_back needs waves: [{targets: [a], soak: 1h}, {targets: [b, c]}]")
        return self

    def require_all_in_waves(self, targets: Collection[str]) -> None:
        """Raise ValueError unless the waves, where there are some, have exactly these targets."""
        named = [target for wave in self.waves for target in wave.targets]
        if not named:
            return
        if unknown := [target for target in named if target not in targets]:
            raise ValueError(f"waves name {', '.join(unknown)}, which is not among the `targets` of the model")
        if missing := [target for target in targets if target not in named]:
            raise ValueError(f"no wave has {', '.join(missing)} of the `targets` of the model")

    def waves_of(self, targets: Iterable[str]) -> tuple[Wave, ...]:
        """These targets in their order: that of the waves, then each of the others by itself."""
        wanted = tuple(dict.fromkeys(targets))
        kept = [
            wave.model_copy(update={"targets": tuple(target for target in wave.targets if target in wanted)})
            for wave in self.waves
        ]
        named = {target for wave in self.waves for target in wave.targets}
        others = [Wave(targets=(target,)) for target in wanted if target not in named]
        return tuple(wave for wave in (*kept, *others) if wave.targets)

    @property
    def shifts(self) -> bool:
        """Whether requests go to the candidate before it is public."""
        return self.strategy in ("canary", "shadow")

    def closed(self, now: datetime) -> Closed | None:
        """Why no rollout may begin now; None if one may."""
        if self.freeze is True:
            return Closed("frozen", None)
        if isinstance(self.freeze, datetime) and now < self.freeze:
            return Closed("frozen", self.freeze if self.schedule is None else self._open_after(self.freeze))
        if self.schedule is not None and (opens := self.schedule.next_opening(now)) is not None:
            return Closed("outside-hours", opens)
        return None

    def _open_after(self, moment: datetime) -> datetime:
        assert self.schedule is not None
        return self.schedule.next_opening(moment) or moment
