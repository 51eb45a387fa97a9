"""A house in which events come, rebuilds run and processes die, as far as that leaves records.

The flows are the real ones, and so are records and promotions. Only what has no part in the order is left out: hub,
engines, nodes, Prefect. Clocks jump by days at each look.
"""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from flows import current_rebuild, finetuned, reconcile
from flows import rebuild as rebuild_flow
from infra.errors import EnginehouseError, GateRefused
from tasks.finetuned import arrivals, moved_branches, records
from tasks.finetuned.arrivals import arrive, read_arrival
from tasks.models.catalogue import Catalogue
from tasks.models.overrides import override
from tasks.models.spec import Model
from tasks.sources.resolved import ResolvedSource
from tasks.steps import promote as promote_step
from tasks.steps.fetch import snapshot_identity
from tasks.steps.plan import Plan
from tasks.steps.resolve import ResolvedWeights
from tasks.steps.roll_out import RollOut
from tasks.store import cell
from tasks.store.artifact import ArtifactRef
from tasks.store.notes import note_model
from tasks.targets.release import Intent, Result
from tasks.targets.target import Target
from tests.flows.interleaved import Actor, MemoryBucket, Stage, drive

Kind = Literal["prefix", "push", "version"]
REPOSITORY = "hf://org/base"
CURRENT, PUBLIC = "finetuned/tiny/current.json", "targets/test/tiny/current.json"
TINY = Model.model_validate(
    {
        "name": "tiny",
        "source": {"uri": f"{REPOSITORY}@main"},
        "accepts": ["s3://weights/**"],
        "targets": ["test"],
        "recipe": {"kind": "llamacpp"},
        "prompts": [{"name": "count", "text": "Count.", "max_tokens": 4, "expect": {"min_tokens": 1}}],
    }
)


def revision(uri: str) -> str:
    """Identity of the weights at an address that is pinned."""
    return snapshot_identity(ResolvedSource(uri, {"pin": uri, "commit": uri.partition("@")[2]}, ())).digest


@dataclass(frozen=True)
class Sent:
    """What somebody sends: its weights, and what says how new they are beside the time at which it comes."""

    kind: Kind
    uri: str
    number: int
    """Place in the history of the branch, or version in the registry."""

    @property
    def revision(self) -> str:
        return revision(self.uri)

    @property
    def payload(self) -> dict[str, Any]:
        said: dict[str, Any] = {"model": "tiny", "source": self.uri}
        if self.kind == "push":
            return {**said, "branch": "main", "sender": "huggingface"}
        return {**said, "series": "mlflow:tiny", "version": self.number} if self.kind == "version" else said


@dataclass
class Came:
    """When an event came for the first time: between `begun` and `kept`. Nothing says more of two that came at once."""

    sent: Sent
    begun: int
    kept: int


@dataclass
class House:
    """One house, and what happened in it."""

    seed: int
    random: random.Random = field(init=False)
    stage: Stage = field(init=False)
    bucket: MemoryBucket = field(init=False)
    branch: list[str] = field(default_factory=lambda: ["0" * 40])
    sent: dict[str, Sent] = field(default_factory=dict[str, Sent])
    begun: dict[str, int] = field(default_factory=dict[str, int])
    came: dict[str, Came] = field(default_factory=dict[str, Came])
    found: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    """When `reconcile` found that the branch had moved, by the event that it made of it."""
    looked_up: dict[str, str] = field(default_factory=dict[str, str])
    """That event, by the revision that the branch had."""
    refused: set[str] = field(default_factory=set[str])
    """Revisions that the gates refuse."""
    accepted: dict[str, int] = field(default_factory=dict[str, int])
    """When a revision was accepted."""
    public: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    runs: set[str] = field(default_factory=set[str])
    crashed: list[str] = field(default_factory=list[str])
    rebuilding: int = 0
    later: list[tuple[int, Callable[[], object]]] = field(default_factory=list[tuple[int, Callable[[], object]]])
    calm: bool = False
    """Nobody is killed any more."""

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.stage = Stage(self.seed)
        self.bucket = MemoryBucket("memory", "", stage=self.stage, noticed=self.note)

    def note(self, key: str, body: bytes) -> None:
        """Look at a write that was done."""
        document, now = json.loads(body), self.stage.minute
        id = key.removeprefix("events/").removesuffix(".json")
        if key.startswith("events/") and id in self.sent and id not in self.came:
            self.came[id] = Came(self.sent[id], self.begun[id], now)
        if key.startswith("events/") and document["said"].get("sender") == "reconcile":
            self.found.setdefault(id, (self.begun[id], now))
            if document["revision"]:
                self.looked_up.setdefault(document["revision"], id)
        if key == "finetuned/tiny/sequence.json":
            self.begun.setdefault(document["event"], now)
        if key == CURRENT:
            known = [document["proven"], document["followed"], *document.get("waiting", ())]
            for each in filter(None, known):
                self.accepted.setdefault(each["revision"], now)
        if key == PUBLIC and document["public"] is not None:
            intent = json.loads(self.bucket.objects[f"targets/test/tiny/{document['public']}/intent.json"][0])
            released = ArtifactRef.parse(intent["repository"]).identity
            if not self.public or self.public[-1][1] != released:
                self.public.append((now, released))

    def after(self, minutes: int, do: Callable[[], object]) -> None:
        self.later.append((self.stage.minute + minutes, do))

    def start(self, name: str, work: Callable[[], object], ended: Callable[[Actor], None] = lambda actor: None) -> None:
        dies = (
            None if self.calm or self.random.random() < 0.5 else self.random.choice((-1, 1)) * self.random.randint(1, 9)
        )
        self.stage.start(name, work, dies, ended)

    def run(self) -> None:
        """Until nobody works and nothing is to come."""
        while self.stage.actors or self.later:
            due = [each for each in self.later if each[0] <= self.stage.minute or not self.stage.actors]
            if due:
                first = min(due, key=lambda each: each[0])
                self.later.remove(first)
                self.stage.minute = max(self.stage.minute, first[0])
                first[1]()
            else:
                self.stage.step()

    # What comes from outside.

    def send(self, kind: Kind, number: int) -> None:
        if kind == "push":
            self.branch.append(f"{len(self.branch):040x}")
            sent = Sent(kind, f"{REPOSITORY}@{self.branch[-1]}", len(self.branch) - 1)
        else:
            sent = Sent(kind, f"s3://weights/{kind}-{number}", number)
        if self.random.random() < 0.25:
            self.refused.add(sent.revision)
        self.deliver(str(uuid.UUID(int=self.random.getrandbits(128))), sent)

    def deliver(self, id: str, sent: Sent) -> None:
        """Bring an event at some time, and until it is kept; often once more."""
        self.sent[id] = sent

        def bring() -> None:
            if id not in self.came:
                self.begun[id] = self.stage.minute
            if self.random.random() < 0.5:
                self.start("finetuned", lambda: self.take(id, sent.payload), again)
            else:
                self.start("receiver", lambda: arrive(self.bucket, id, sent.payload), announce)

        def announce(actor: Actor) -> None:
            if not actor.killed and self.random.random() < 0.7:  # else Prefect is away
                self.start("finetuned", lambda: self.take(id, sent.payload), again)
            again(actor)

        def again(actor: Actor) -> None:
            if id not in self.came or (not self.calm and self.random.random() < 0.2):
                self.after(self.random.randint(1, 80), bring)
            elif not self.calm and self.random.random() < 0.2 and self.state(id) not in (None, "received"):
                self.replayed(sent)

        self.after(self.random.randint(0, 150), bring)

    def replayed(self, sent: Sent) -> None:
        """Somebody sends what was decided before as an event of its own. It says nothing new."""
        id = str(uuid.UUID(int=self.random.getrandbits(128)))
        self.start("replay", lambda: self.take(id, sent.payload))

    def take(self, id: str, payload: Mapping[str, Any]) -> None:
        try:
            drive(finetuned.take(id, payload))
        except EnginehouseError as error:
            assert error.code == "event-overtaken", error

    def reconcile(self, seconds: float = 300) -> None:
        self.start("reconcile", lambda: drive(reconcile.reconcile.fn(undecided_seconds=seconds)))

    # What stands for Prefect, the hub, engines and nodes.

    async def start_rebuild(self, model: str, key: str, *tags: str, traceparent: str = "") -> str:
        def note() -> None:
            if key not in self.runs:
                self.runs.add(key)
                self.rebuilding += 1
                self.after(self.random.randint(0, 60), lambda: self.rebuild(key))

        self.stage.write(note)
        return key

    def rebuild(self, key: str) -> None:
        def work() -> None:
            with suppress(GateRefused):
                drive(rebuild_flow.rebuild.fn(model="tiny"))

        def ended(actor: Actor) -> None:
            self.rebuilding -= 1
            if actor.killed:
                self.crashed.append(key)

        self.start("rebuild", work, ended)

    async def start_again(self, client: object) -> None:
        while self.crashed:
            key = f"again:{self.crashed.pop()}"
            if not key.startswith("again:again:"):
                await self.start_rebuild("tiny", key)

    async def being_rebuilt(self, client: object) -> frozenset[str]:
        return frozenset({"tiny"} if self.rebuilding else ())

    def resolved(self, uri: str) -> ResolvedWeights:
        if uri == f"{REPOSITORY}@main":
            uri = f"{REPOSITORY}@{self.branch[-1]}"
        return ResolvedWeights(ResolvedSource(uri, {"pin": uri, "commit": uri.partition("@")[2]}, ()))

    async def resolve(self, model: Model, brought: str) -> tuple[Model, ResolvedWeights]:
        return override(model, source=brought).model, self.resolved(brought)

    async def step(self, report: object, step: Any, *arguments: Any) -> Any:
        """A step of a rebuild. Of each the records that it leaves."""
        target = Target(self.bucket, "test")
        if step.name == "resolve":
            return arguments[0], self.resolved(arguments[0].source.uri)
        plan: Plan = arguments[0]
        digest = plan.snapshot.digest
        if step.name == "fetch":
            note_model(self.bucket, ArtifactRef("snapshot", digest), "tiny")
        elif step.name == "roll_out":
            if (live := target.live("tiny")) is not None and live.artifact.identity == digest:
                return RollOut("test", live.release, unchanged=True)
            about: dict[str, Any] = {
                "repository": f"repository/{digest}",
                "digest": "",
                "recipe": {},
                "source": plan.model.origin,
                "flow_run": "",
            }
            release = target.reserve(
                "tiny", lambda n: Intent.model_validate({"model": "tiny", "release": n, **about})
            ).release
            target.move("tiny", lambda current: current.with_candidate(release))
            return RollOut("test", release, unchanged=False)
        elif step.name == "validate":
            release = arguments[1].release
            state = "refused" if digest in self.refused else "passed"
            result = target.conclude("tiny", Result(release=release, state=state))
            if state == "refused":
                raise GateRefused("refused")
            return result
        elif step.name == "promote":
            return promote_step.promote(target, "tiny", arguments[1].release, unless=arguments[3])
        return None

    def state(self, id: str) -> str | None:
        found = read_arrival(self.bucket, id)
        return None if found is None else found.state


@asynccontextmanager
async def no_client() -> AsyncGenerator[None]:
    yield


async def at_once(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    return function(*arguments, **named)


async def one_model(config: object) -> Catalogue:
    return Catalogue({"tiny": TINY}, {})


async def nothing(*arguments: Any, **named: Any) -> None:
    pass


def always(value: Any) -> Callable[..., Any]:
    """A function that gives `value`, whatever it is asked."""

    def answer(*arguments: Any, **named: Any) -> Any:
        return value

    return answer


async def _called(step: Callable[..., Coroutine[Any, Any, Any]], *arguments: object) -> Any:
    return await step(*arguments)


def furnish(house: House, patch: pytest.MonkeyPatch) -> None:
    """Have the flows run in this house."""

    def now(zone: object) -> datetime:
        return datetime(2027, 1, 1, tzinfo=UTC) + timedelta(minutes=house.random.uniform(-5000, 5000))

    def at_its_turn(target: str, model: str) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    def resolved(model: Model, access: object) -> ResolvedWeights:
        return house.resolved(model.source.uri)

    config = SimpleNamespace(store="", catalogue=Path(), heartbeat_seconds=30, lease_seconds=5.0, mlflow="")
    log = SimpleNamespace(info=always(None), warning=always(None))
    for module in (finetuned, reconcile, current_rebuild):
        patch.setattr(module, "settings", SimpleNamespace(load=always(config)))
        patch.setattr(module, "Bucket", SimpleNamespace(at=always(house.bucket)))
        patch.setattr(module, "get_run_logger", always(log))
    for module in (finetuned, reconcile):
        patch.setattr(module, "current_catalogue", one_model)
        patch.setattr(module, "start_rebuild", house.start_rebuild)
    # Nobody is asked, and nothing watched.
    for name in ("crash_the_dead", "cancel_orphans", "follow_decisions", "end_waves"):
        patch.setattr(reconcile, name, nothing)
    patch.setattr(reconcile, "get_client", no_client)
    patch.setattr(reconcile, "start_again", house.start_again)
    patch.setattr(reconcile, "being_rebuilt", house.being_rebuilt)
    patch.setattr(finetuned, "steps", SimpleNamespace(resolve=house.resolve))
    patch.setattr(finetuned, "result_of", _called)
    patch.setattr(moved_branches, "resolve_weights", resolved)
    patch.setattr(current_rebuild, "catalogue_folder", always(Path()))
    patch.setattr(current_rebuild, "catalogue_entry", always(TINY))
    patch.setattr(rebuild_flow, "run", house.step)
    patch.setattr(rebuild_flow, "make_engine", nothing)
    patch.setattr(current_rebuild, "require_nodes", always([]))  # no node is part of this house
    # No lease decides on what is newest, so the flows get on without.
    patch.setattr(rebuild_flow, "turn", at_its_turn)
    for name in ("give_up_abandoned", "look_at_unwatched"):
        patch.setattr(reconcile, name, always([]))
    patch.setattr(promote_step, "wait_until_public", always(None))
    patch.setattr(promote_step, "_require_servable", always(SimpleNamespace(aliases=())))
    patch.setattr(asyncio, "to_thread", at_once)
    patch.setattr(cell, "time", SimpleNamespace(sleep=always(None)))
    for module in (arrivals, records):
        patch.setattr(module, "datetime", SimpleNamespace(now=now))
