"""What the store has of a whole fleet: one listing, the nodes' reports, and the few records that a row is made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from pydantic import ValidationError

from infra.errors import FormatNewer
from infra.s3.bucket import Bucket, Entry
from tasks.explain.seen_records import SeenRecords
from tasks.finetuned.records import CurrentWeights
from tasks.store.inventory import in_parallel
from tasks.store.names import NODES, is_node
from tasks.targets.approval import Approval
from tasks.targets.current import Current
from tasks.targets.node_report import GONE_SECONDS, NodeReport
from tasks.targets.release import Intent, Result
from tasks.targets.traffic import Shift
from tasks.targets.watch_record import Watching, WatchOutcome
from tasks.watch.record import WatchRecord, read_record


@dataclass(frozen=True)
class Place:
    """A model on a target as the listing shows it: its records by name, such as `3/intent.json`."""

    target: str
    model: str
    entries: dict[str, Entry] = field(default_factory=dict[str, Entry])

    @property
    def releases(self) -> list[int]:
        """Every number ever reserved, ascending."""
        found = (name.partition("/") for name in self.entries)
        return sorted(int(number) for number, _, record in found if record == "intent.json" and number.isdecimal())

    def age(self, release: int) -> float | None:
        """Seconds since the release was made, by the store's clock."""
        entry = self.entries.get(f"{release}/intent.json")
        return None if entry is None else entry.age


@dataclass(frozen=True)
class Release:
    """What the records of one release say; None where there is none, or it cannot be read."""

    intent: Intent | None
    result: Result | None
    approval: Approval | None
    shift: Shift | None
    watch: WatchOutcome | None
    asked: bool
    """Whether a person was asked."""


@dataclass(frozen=True)
class ModelRecords:
    """What a row is made of. `current` is None if the record is there and cannot be read."""

    place: Place
    current: Current | None
    watching: Watching
    releases: Mapping[int, Release]
    """The public one, and the newest."""
    unreadable: Mapping[str, str]
    """What is wrong with records that cannot be read, by their keys."""


@dataclass(frozen=True)
class FleetRecords:
    """Everything that was read."""

    models: tuple[ModelRecords, ...]
    reports: tuple[NodeReport, ...]
    """Of the live nodes."""
    unreadable_nodes: tuple[tuple[str, str], ...]
    """Target and name of live nodes whose report cannot be read."""
    silent: Mapping[tuple[str, str], float]
    """Seconds since the last report of the others, by target and name."""
    weights: Mapping[str, CurrentWeights]
    """Those that events brought, by model."""
    watch: WatchRecord


def read_records(bucket: Bucket, seen: SeenRecords, node_lifetime_s: float) -> FleetRecords:
    """Read the fleet's records, and those alone that changed since `seen` was kept. Raises StoreError."""
    places: dict[tuple[str, str], Place] = {}
    nodes: dict[tuple[str, str], Entry] = {}
    for entry in bucket.list("targets/"):
        _, target, *rest = entry.key.split("/")
        if len(rest) == 2 and rest[0] == NODES and is_node(node := rest[1].removesuffix(".json")):
            nodes[target, node] = entry
        elif len(rest) > 1:
            place = places.setdefault((target, rest[0]), Place(target, rest[0]))
            place.entries["/".join(rest[1:])] = entry
    alive = [entry for entry in nodes.values() if entry.age <= node_lifetime_s]
    reports = in_parallel(partial(_report, bucket), alive)
    weights = [entry for entry in bucket.list("finetuned/") if _is_of_a_model(entry.key)]
    return FleetRecords(
        models=tuple(_models(places.values(), seen)),
        reports=tuple(each for each in reports if isinstance(each, NodeReport)),
        unreadable_nodes=tuple(each for each in reports if isinstance(each, tuple)),
        silent={name: entry.age for name, entry in nodes.items() if node_lifetime_s < entry.age <= GONE_SECONDS},
        weights={key.split("/")[1]: each for key, each in seen.read(weights, CurrentWeights, without=set()).items()},
        watch=read_record(bucket)[0],
    )


def _is_of_a_model(key: str) -> bool:
    """`finetuned/MODEL/current.json`, not the names of a repository that is called `current`."""
    return key.count("/") == 2 and key.endswith("/current.json")


def _models(places: Iterable[Place], seen: SeenRecords) -> Iterator[ModelRecords]:
    currents = seen.read(_entries(places, "current.json"), Current, without={"moves"})
    watchings = seen.read(_entries(places, "watching.json"), Watching, without={"asked", "before", "nodes"})
    at_work = [(place, release) for place in places for release in _at_work(place, currents)]
    intents = seen.read(_of(at_work, "intent.json"), Intent, without={"changes", "lost", "traceparent"})
    for place, release in at_work:
        key = f"targets/{place.target}/{place.model}/{release}/intent.json"
        if (found := intents.get(key)) is not None and (found.model, found.release) != (place.model, release):
            seen.unreadable[key] = f"it is that of {found.model} release {found.release}"
            del intents[key]
    results = seen.read(_of(at_work, "result.json"), Result, without={"gates", "prompts"})
    approvals = seen.read(_of(at_work, "approval.json"), Approval, without=set())
    shifts = seen.read(_of(at_work, "shift.json"), Shift, without=set())
    outcomes = seen.read(_of(at_work, "watch.json"), WatchOutcome, without={"asked", "comparisons", "observed"})
    for place in places:
        folder = f"targets/{place.target}/{place.model}/"
        yield ModelRecords(
            place,
            currents.get(f"{folder}current.json", None if "current.json" in place.entries else Current()),
            watchings.get(f"{folder}watching.json", Watching()),
            {
                release: Release(
                    intents.get(f"{folder}{release}/intent.json"),
                    results.get(f"{folder}{release}/result.json"),
                    approvals.get(f"{folder}{release}/approval.json"),
                    shifts.get(f"{folder}{release}/shift.json"),
                    outcomes.get(f"{folder}{release}/watch.json"),
                    f"{release}/approval-request.json" in place.entries,
                )
                for release in _at_work(place, currents)
            },
            {key: problem for key, problem in seen.unreadable.items() if key.startswith(folder)},
        )


def _entries(places: Iterable[Place], record: str) -> list[Entry]:
    return [place.entries[record] for place in places if record in place.entries]


def _of(at_work: Iterable[tuple[Place, int]], record: str) -> list[Entry]:
    names = ((place, f"{release}/{record}") for place, release in at_work)
    return [place.entries[name] for place, name in names if name in place.entries]


def _at_work(place: Place, currents: Mapping[str, Current]) -> set[int]:
    """The public release, and the newest one: what became of the others is history."""
    current = currents.get(f"targets/{place.target}/{place.model}/current.json")
    public = None if current is None else current.public
    return {*place.releases[-1:], *([] if public is None else [public])}


def _report(bucket: Bucket, entry: Entry) -> NodeReport | tuple[str, str] | None:
    """What a node reports; its target and name if that cannot be read, and None if it is gone."""
    stored = bucket.get(entry.key)
    if stored is None:
        return None
    try:
        return NodeReport.read(stored.body)
    except (ValidationError, FormatNewer):
        _, target, _, name = entry.key.split("/")
        return target, name.removesuffix(".json")
