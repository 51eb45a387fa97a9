"""A target: the records of its models and of its nodes, in the store.

Flows write the wanted state; nodes read it, and write reports. The modules `release`, `current` and `node_report` are
the records, `view` is what a roll-out reads of them at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from pydantic import ValidationError

from infra.errors import ArtifactDamaged, FormatNewer, UsageError
from infra.s3.bucket import Bucket, Entry
from tasks.store.cell import Cell, WriteOnce, attempts, contended
from tasks.store.inventory import in_parallel
from tasks.store.names import NODES, collision, is_node
from tasks.store.notes import note_release
from tasks.store.record import record_bytes
from tasks.store.signing import Sign, record_statement, require_signed
from tasks.targets.current import Current
from tasks.targets.node_report import NODE_LIFETIME_SECONDS, NodeReport
from tasks.targets.release import Intent, Result
from tasks.targets.view import TargetView


@dataclass(frozen=True)
class Listed:
    """What one listing of a target shows: the ETags of the wanted states by model, of live nodes' reports by node.

    `traffic` has the entries of the records of `traffic`, by model.
    """

    models: dict[str, str]
    nodes: dict[str, str]
    traffic: dict[str, Entry]


@dataclass(frozen=True)
class Target:
    """The records of one target. A node counts as alive for `node_lifetime_s` seconds after its last report."""

    bucket: Bucket
    name: str
    node_lifetime_s: float = NODE_LIFETIME_SECONDS
    sign: Sign | None = None
    """Signs each intent before it is created."""

    @property
    def prefix(self) -> str:
        return f"targets/{self.name}/"

    def _key(self, model: str, *parts: object) -> str:
        return "/".join([f"{self.prefix}{model}", *map(str, parts)])

    def _intent(self, model: str, release: int) -> WriteOnce[Intent]:
        return WriteOnce(self.bucket, self._key(model, release, "intent.json"), Intent)

    def _result(self, model: str, release: int) -> WriteOnce[Result]:
        return WriteOnce(self.bucket, self._key(model, release, "result.json"), Result)

    def _current(self, model: str) -> Cell[Current]:
        return Cell(self.bucket, self._key(model, "current.json"), Current())

    def reserve(self, model: str, intent: Callable[[int], Intent]) -> Intent:
        """Create the intent with the next free number. Raises StoreContended if others take every number first."""
        free = max(self.releases(model), default=0) + 1
        for taken in attempts():
            made = intent(free + taken)
            note_release(self.bucket, made.artifact, self.name, model)
            if self.sign is not None:
                self._put_signature(self._intent(model, made.release).key, record_bytes(made), self.sign)
            if self._intent(model, made.release).create(made) == made:
                return made
        raise contended(self._key(model))

    def releases(self, model: str) -> list[int]:
        """All numbers ever reserved, ascending."""
        return list(self.ages(model))

    def ages(self, model: str) -> dict[int, float]:
        """Every number ever reserved, ascending, with the seconds since, by the store's clock: one listing."""
        return self._listed(model)[0]

    def _listed(self, model: str) -> tuple[dict[int, float], set[int]]:
        """The ages of a model's releases, and the numbers of those that have a result."""
        ages: dict[int, float] = {}
        concluded: set[int] = set()
        start = f"{self.prefix}{model}/"
        for entry in self.bucket.list(start):
            number, _, record = entry.key.removeprefix(start).partition("/")
            if record == "intent.json":
                ages[int(number)] = entry.age
            elif record == "result.json":
                concluded.add(int(number))
        return dict(sorted(ages.items())), concluded

    def intent(self, model: str, release: int) -> Intent:
        """What the release is.

        Raises UsageError, code `release-missing`, and ArtifactDamaged, code `record-invalid`, if the record is that of
        another model or number.
        """
        return self._read_intent(model, release)[0]

    def _read_intent(self, model: str, release: int) -> tuple[Intent, bytes]:
        stored = self.bucket.get(self._intent(model, release).key)
        if stored is None:
            raise UsageError(
                f"{model} has no release {release} on target '{self.name}'",
                hint=f"`enginehouse releases {model}` lists them",
                code="release-missing",
            )
        intent = Intent.model_validate_json(stored.body)
        if (intent.model, intent.release) != (model, release):
            raise ArtifactDamaged(
                f"the record of {model} release {release} on target '{self.name}' is that of {intent.model} "
                f"release {intent.release}",
                hint="find out who wrote it; a rebuild makes the next release",
                code="record-invalid",
            )
        return intent, stored.body

    def sign_intent(self, model: str, release: int, sign: Sign) -> None:
        """Sign the intent of a release that exists. Raises as `intent` does."""
        _, body = self._read_intent(model, release)
        self._put_signature(self._intent(model, release).key, body, sign)

    def _put_signature(self, key: str, body: bytes, sign: Sign) -> None:
        self.bucket.put(_signature_key(key, body), sign(record_statement(key, body)))

    def trusted_intent(self, model: str, release: int, public_keys: str) -> Intent:
        """What the release is, if the key of one of `public_keys` says so; without them, if its record does.

        Raises as `intent` does, and SignatureRefused.
        """
        intent, body = self._read_intent(model, release)
        if public_keys:
            key = self._intent(model, release).key
            stored = self.bucket.get(_signature_key(key, body))
            require_signed(
                public_keys,
                record_statement(key, body),
                None if stored is None else stored.body,
                what=f"the intent of {model} release {release} on target '{self.name}'",
                sign=f"{model}@{release} --target {self.name}",
            )
        return intent

    def history(
        self, model: str, wanted: Callable[[Intent], bool] = lambda _: True
    ) -> list[tuple[Intent, Result | None]]:
        """The releases of a model that are `wanted`, with their verdicts, in the order of their numbers.

        Reads every intent of the model, and the results of those alone.
        """
        ages, concluded = self._listed(model)
        intents = [intent for intent in in_parallel(lambda number: self.intent(model, number), ages) if wanted(intent)]
        numbers = [intent.release for intent in intents]
        results = in_parallel(lambda number: self.result(model, number) if number in concluded else None, numbers)
        return list(zip(intents, results, strict=True))

    def live(self, model: str) -> Intent | None:
        """What the public release is; None if the public name answers with none."""
        current, _ = self.current(model)
        return None if current.public is None else self.intent(model, current.public)

    def result(self, model: str, release: int) -> Result | None:
        """The verdict on the release; None while there is none."""
        return self._result(model, release).read()

    def conclude(self, model: str, result: Result) -> Result:
        """Write the result once; returns the one that counts, which is the first."""
        return self._result(model, result.release).create(result)

    def current(self, model: str) -> tuple[Current, str | None]:
        """The wanted state and its ETag; an empty one and None if the model was never released on this target."""
        return self._current(model).read()

    def move(self, model: str, change: Callable[[Current], Current]) -> Current:
        """Apply `change` to the wanted state until nobody else wrote in between; see `Cell.move`.

        Raises UsageError, code `model-name`, for a model that nodes would take for something else.
        """
        if problem := collision(model):
            raise UsageError(
                problem,
                hint="rename its file and rebuild it under the new name; nodes place nothing under the old one",
                code="model-name",
            )
        return self._current(model).move(change)

    def view(self, model: str) -> TargetView:
        """Read everything that a roll-out of `model` decides by, once: a listing and each record, in parallel.

        Raises UsageError, code `release-missing`, if the public release has no intent.
        """
        # In this order: a candidate was reserved before it was written into the wanted state, so the listing has it.
        current, etag = self.current(model)
        ages, concluded = self._listed(model)
        at_work = {*current.candidates, *(ages.keys() - concluded)} & ages.keys()
        if current.public is not None:
            at_work.add(current.public)
        intents = in_parallel(lambda number: self.intent(model, number), at_work)
        results = in_parallel(lambda number: self.result(model, number), at_work & concluded)
        return TargetView(
            target=self.name,
            model=model,
            current=current,
            etag=etag,
            ages=ages,
            intents={intent.release: intent for intent in intents},
            results={result.release: result for result in results if result is not None},
            nodes=tuple(self.nodes()),
        )

    def wanted(self) -> dict[str, str]:
        """Models with a wanted state, and its ETag: one listing, for nodes that look for changes."""
        return self.listed().models

    def listed(self) -> Listed:
        """Which records there are: one listing, for those who look for changes."""
        models: dict[str, str] = {}
        nodes: dict[str, str] = {}
        traffic: dict[str, Entry] = {}
        for entry in self.bucket.list(self.prefix):
            parts = entry.key.removeprefix(self.prefix).split("/")
            if len(parts) != 2:
                continue
            if parts[1] == "current.json":
                models[parts[0]] = entry.etag
            elif parts[1] == "traffic.json":
                traffic[parts[0]] = entry
            elif parts[0] == NODES and is_node(node := parts[1].removesuffix(".json")):
                nodes |= {node: entry.etag} if entry.age <= self.node_lifetime_s else {}
        return Listed(models, nodes, traffic)

    def _report(self, node: str) -> str:
        return f"{self.prefix}{NODES}/{node}.json"

    def report(self, report: NodeReport) -> None:
        """Write what a node reports of itself, whatever was reported by its name before."""
        self.bucket.put(self._report(report.node), record_bytes(report))

    def report_over(self, report: NodeReport, etag: str | None) -> str:
        """The same in place of the report with `etag` (None: there is none); returns the new ETag.

        Raises PreconditionFailed if another node has written by the same name.
        """
        return self.bucket.swap(self._report(report.node), record_bytes(report), etag)

    def node(self, name: str) -> tuple[str | None, str, float] | None:
        """Which instance of a node wrote its report (None: unreadable), the report's ETag, and its age in seconds."""
        record = self.bucket.get(self._report(name))
        if record is None:
            return None
        try:
            return NodeReport.model_validate_json(record.body).instance, record.etag, record.age
        except (ValidationError, FormatNewer):
            return None, record.etag, record.age

    def node_report(self, name: str) -> NodeReport | None:
        """What a node last reported; None if it never did. Raises ValidationError of pydantic, and FormatNewer."""
        record = self.bucket.get(self._report(name))
        return None if record is None else NodeReport.read(record.body)

    def nodes(self) -> list[NodeReport]:
        """Reports of the nodes that are alive. One that is damaged does not count; the node soon writes another.

        Raises FormatNewer.
        """
        reports: list[NodeReport] = []
        start = f"{self.prefix}{NODES}/"
        for entry in self.bucket.list(start):
            if not is_node(entry.key.removeprefix(start).removesuffix(".json")):
                continue  # of a model that an earlier version let be called `nodes`
            record = self.bucket.get(entry.key) if entry.age <= self.node_lifetime_s else None
            with suppress(ValidationError):
                reports += [NodeReport.read(record.body)] if record is not None else []
        return reports


def _signature_key(key: str, body: bytes) -> str:
    # By its content: of several writers that want one number, each has put the signature of its own record before.
    return f"{key.rpartition('/')[0]}/signatures/{hashlib.sha256(body).hexdigest()}.json"


def targets(bucket: Bucket) -> list[Target]:
    """Every target that ever had a release or a node."""
    return [Target(bucket, name) for name in bucket.folders("targets/")]


def released_models(target: Target) -> Iterator[str]:
    """Models that were ever released on a target, also one that an earlier version let be called `nodes`."""
    for name in target.bucket.folders(target.prefix):
        if name != NODES or target.releases(name):
            yield name
