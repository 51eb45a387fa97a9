"""Wanted and reported state of a target: what flows write, what nodes read, and the other way round.

targets/TARGET/MODEL/N/intent.json   created once; reserves release number N
targets/TARGET/MODEL/N/result.json   created once; what the gates said
targets/TARGET/MODEL/current.json    which release is public and which are to be loaded; moved with If-Match
targets/TARGET/nodes/NODE.json       what a node has loaded; written by that node alone
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar, Literal

from pydantic import Field, JsonValue

from infra.errors import UsageError
from infra.s3.bucket import Bucket
from tasks.store.cell import Cell, WriteOnce, attempts, contended
from tasks.store.record import Record, record_bytes
from tasks.targets.changes import FieldChange, changes

NODE_LIFETIME_SECONDS = 20.0
"""A node whose report is older, by the store's clock, is not waited for. Nodes report every 5 s at least."""


def _now() -> datetime:
    return datetime.now(UTC)


class Intent(Record):
    """What release N is: a repository artifact, who made it and from what."""

    newest: ClassVar[int] = 2

    schema_version: int = 2
    model: str
    release: int
    repository: str
    """Reference of the repository artifact."""
    digest: str
    """Digest of the bytes of the repository and of the engine below it."""
    recipe: dict[str, JsonValue]
    serving: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    """Both as JSON. Records of version 1 have the text of each field of the recipe, and no serving."""
    ranks: int = 0
    """How many processes the servers of its engine are, apart from the node's Triton; 0 where it needs none."""
    changes: tuple[FieldChange, ...] = ()
    """What differs from the release that was live then: fields of the recipe, and of its serving as `serving.…`."""
    lost: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    """Fields without a counterpart in the kind that the recipe was translated to, named likewise: their old values."""
    source: str
    flow_run: str
    created: datetime = Field(default_factory=_now)


def changes_since(
    live: Intent | None, recipe: Mapping[str, JsonValue], serving: Mapping[str, JsonValue]
) -> tuple[FieldChange, ...]:
    """What differs in a release with this recipe and serving from the live one; nothing where there is none."""
    if live is None:
        return ()
    if live.schema_version == 1:
        return changes(live.recipe, {name: str(value) for name, value in recipe.items()})
    return changes({**live.recipe, "serving": live.serving}, {**recipe, "serving": dict(serving)})


class PromptResult(Record):
    prompt: str
    node: str
    passed: bool
    answer: str
    seconds: float
    failures: tuple[str, ...]


class Result(Record):
    """What became of release N: `passed`, or `refused` with the reason."""

    release: int
    state: Literal["passed", "refused"]
    reason: str = ""
    prompts: tuple[PromptResult, ...] = ()
    created: datetime = Field(default_factory=_now)


class Current(Record):
    """The wanted state of one model: nodes load `public`, `previous` and `candidates`, nothing else.

    Where `alone`, memory does not hold two releases, and nodes hold one: the newest candidate, else the public one.
    While a candidate is loaded and tested, the public name then answers nobody.
    """

    public: int | None = None
    previous: int | None = None
    candidates: tuple[int, ...] = ()
    alone: bool = False

    @property
    def loaded(self) -> tuple[int, ...]:
        """Releases to hold, the one that matters most first, each once."""
        if self.alone and self.candidates:
            return (max(self.candidates),)
        wanted = [self.public] if self.alone else [self.public, self.previous, *self.candidates]
        return tuple(dict.fromkeys(n for n in wanted if n is not None))

    def with_candidate(self, release: int, *, alone: bool = False) -> Current:
        candidates = self.candidates if release in self.candidates else (*self.candidates, release)
        return self.model_copy(update={"candidates": candidates, "alone": alone})

    def without_candidate(self, release: int) -> Current:
        return self.model_copy(update={"candidates": tuple(n for n in self.candidates if n != release)})

    def promoted(self, release: int) -> Current:
        if release == self.public:
            return self.without_candidate(release)
        moved = self.model_copy(update={"public": release, "previous": self.public})
        return moved.without_candidate(release)


class ReleaseReport(Record):
    state: Literal["loading", "ready", "failed", "unloading"]
    error: str = ""
    hint: str = ""
    """What to do about the error, where that is known."""
    starts: int = 0
    """How often this node has loaded the release since it began to run."""


class ModelReport(Record):
    public: int | None
    """The release that the public name answers with on this node."""
    error: str = ""
    releases: dict[int, ReleaseReport] = Field(default_factory=dict[int, ReleaseReport])


class NodeGpu(Record):
    """One GPU that a node's Triton sees. Sizes are bytes, 0 where the GPU shares the host's memory."""

    product: str
    architecture: str
    memory_bytes: int
    free_bytes: int


class Machine(Record):
    """What a node runs on and with. Versions are empty where its Triton is not that of NVIDIA's image."""

    gpus: tuple[NodeGpu, ...] = ()
    """In the order in which CUDA numbers them."""
    gpu_problem: str = ""
    """Why there is no GPU; empty where there is one."""
    driver: str = ""
    tensorrt_llm: str = ""
    tensorrt: str = ""
    container: str = ""
    """Digest of the image."""
    groups: bool = False
    """Whether it can start a group of servers, a process a rank, for one engine."""


class NodeReport(Record):
    node: str
    target: str
    http: str
    grpc: str
    triton_pid: int
    memory_total_bytes: int
    memory_available_bytes: int
    machine: Machine = Machine()
    models: dict[str, ModelReport] = Field(default_factory=dict[str, ModelReport])
    error: str = ""
    written: datetime = Field(default_factory=_now)


@dataclass(frozen=True)
class Target:
    """The records of one target."""

    bucket: Bucket
    name: str

    @property
    def prefix(self) -> str:
        return f"targets/{self.name}/"

    def _key(self, model: str, *parts: object) -> str:
        return "/".join([f"{self.prefix}{model}", *map(str, parts)])

    def reserve(self, model: str, intent: Callable[[int], Intent]) -> Intent:
        """Create the intent with the next free number."""
        free = max(self.releases(model), default=0) + 1
        for taken in attempts():
            made = intent(free + taken)
            if self._intent(model, made.release).create(made) == made:
                return made
        raise contended(self._key(model))

    def releases(self, model: str) -> list[int]:
        """All numbers ever spent, ascending."""
        return sorted(self._numbers(model, "intent.json"))

    def inconclusive(self, model: str) -> set[int]:
        """Numbers without a result: a run is at work on them, or died."""
        return self._numbers(model, "intent.json") - self._numbers(model, "result.json")

    def ages(self, model: str) -> dict[int, float]:
        """Seconds since each number was reserved, by the store's clock: one listing."""
        start = f"{self.prefix}{model}/"
        found = ((entry.key.removeprefix(start), entry.age) for entry in self.bucket.list(start))
        return {int(key.split("/")[0]): age for key, age in found if key.endswith("/intent.json")}

    def _numbers(self, model: str, record: str) -> set[int]:
        start = f"{self.prefix}{model}/"
        keys = (entry.key.removeprefix(start) for entry in self.bucket.list(start))
        return {int(key.split("/")[0]) for key in keys if key.endswith(f"/{record}")}

    def intent(self, model: str, release: int) -> Intent:
        intent = self._intent(model, release).read()
        if intent is None:
            raise UsageError(
                f"{model} has no release {release} on target '{self.name}'",
                hint=f"`enginehouse releases {model}` lists them",
                code="release-missing",
            )
        return intent

    def _intent(self, model: str, release: int) -> WriteOnce[Intent]:
        return WriteOnce(self.bucket, self._key(model, release, "intent.json"), Intent)

    def intent_age(self, model: str, release: int) -> float:
        """Seconds since the number was reserved, by the store's clock."""
        record = self.bucket.get(self._key(model, release, "intent.json"))
        return 0.0 if record is None else record.age

    def result(self, model: str, release: int) -> Result | None:
        return self._result(model, release).read()

    def _result(self, model: str, release: int) -> WriteOnce[Result]:
        return WriteOnce(self.bucket, self._key(model, release, "result.json"), Result)

    def conclude(self, model: str, result: Result) -> Result:
        """Write the result once; returns the one that counts, which is the first."""
        return self._result(model, result.release).create(result)

    def current(self, model: str) -> tuple[Current, str | None]:
        """The wanted state and its ETag; an empty one and None where the model was never released here."""
        return self._current(model).read()

    def move(self, model: str, change: Callable[[Current], Current]) -> Current:
        """Apply `change` to the wanted state, as `Cell.move` does."""
        return self._current(model).move(change)

    def _current(self, model: str) -> Cell[Current]:
        return Cell(self.bucket, self._key(model, "current.json"), Current())

    def wanted(self) -> dict[str, str]:
        """Models with a wanted state, and its ETag: one listing, for nodes that look for changes."""
        found: dict[str, str] = {}
        for entry in self.bucket.list(self.prefix):
            parts = entry.key.removeprefix(self.prefix).split("/")
            if len(parts) == 2 and parts[1] == "current.json":
                found[parts[0]] = entry.etag
        return found

    def report(self, report: NodeReport) -> None:
        self.bucket.put(f"{self.prefix}nodes/{report.node}.json", record_bytes(report))

    def nodes(self) -> list[NodeReport]:
        """Reports of the nodes that are alive."""
        reports: list[NodeReport] = []
        for entry in self.bucket.list(f"{self.prefix}nodes/"):
            record = self.bucket.get(entry.key)
            if record is not None and record.age <= NODE_LIFETIME_SECONDS:
                reports.append(NodeReport.model_validate_json(record.body))
        return reports


def targets(bucket: Bucket) -> list[Target]:
    """Every target that ever had a release or a node."""
    return [Target(bucket, name) for name in bucket.folders("targets/")]


def released_models(target: Target) -> Iterator[str]:
    """Models that were ever released on a target."""
    return (name for name in target.bucket.folders(target.prefix) if name != "nodes")
