"""The fleet at a glance: every model on every target, from the store's records, the nodes' reports and models' files.

`read_fleet` only reads, and asks nobody but the store. It costs one request for each 1,000 objects below `targets/`,
one for each live node, three more, and one for each record that changed since somebody looked last (`seen_records`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from infra.errors import UsageError
from infra.s3.bucket import Bucket
from tasks.explain.fleet_records import FleetRecords, ModelRecords, Place, Release, read_records
from tasks.explain.fleet_view import FileState, Fleet, ModelRow, Newest, NodeRow, Run
from tasks.explain.seen_records import SeenRecords
from tasks.explain.staleness import Stale, stale, version_of
from tasks.explain.standing import Standing
from tasks.finetuned.records import CurrentWeights
from tasks.models.catalogue import Catalogue
from tasks.models.spec import Model
from tasks.steps.approve import told
from tasks.targets.current import Current
from tasks.targets.node_report import NODE_LIFETIME_SECONDS, ModelReport, NodeReport
from tasks.targets.watch_record import Watching
from tasks.watch.record import subject_of
from tasks.watch.verdict import Offer

_NO_RELEASE = Release(None, None, None, None, None, False)


def read_fleet(
    bucket: Bucket,
    catalogue: Catalogue,
    *,
    runs: tuple[Run, ...] | None = None,
    offered: Iterable[Offer] = (),
    seen: SeenRecords | None = None,
    node_lifetime_s: float = NODE_LIFETIME_SECONDS,
) -> Fleet:
    """Every model that is live somewhere, has a file or was retired, by name and target; and every node.

    `runs` are those in progress, None if nobody knows them. `offered` are the versions of TensorRT-LLM that models may
    move to, newest first. `seen` gets what was read, for whoever looks next. Raises StoreError.
    """
    records = read_records(bucket, seen or SeenRecords(bucket), node_lifetime_s)
    making = _Making(records, catalogue, runs or (), tuple(offered))
    return Fleet(
        models=tuple(sorted(making.rows(), key=lambda row: (row.model, row.target))),
        nodes=tuple(sorted(_nodes(records), key=lambda node: (node.target, node.name))),
        broken=dict(catalogue.broken),
        runs=runs,
    )


def _nodes(records: FleetRecords) -> Iterator[NodeRow]:
    for report in records.reports:
        gpus = tuple(gpu.product for gpu in report.machine.gpus)
        yield NodeRow(report.node, report.target, "alive", 0.0, report.error, gpus, len(report.models))
    for target, name in records.unreadable_nodes:
        yield NodeRow(name, target, "unreadable", 0.0, "its report cannot be read")
    for (target, name), age in records.silent.items():
        yield NodeRow(name, target, "silent", age)


@dataclass(frozen=True)
class _Making:
    """The rows, while they are made."""

    records: FleetRecords
    catalogue: Catalogue
    runs: tuple[Run, ...]
    offered: tuple[Offer, ...]

    def rows(self) -> Iterator[ModelRow]:
        released = {(each.place.target, each.place.model): each for each in self.records.models}
        for found in self.records.models:
            if self._counts(found):
                yield self._row(found)
        for name, model in self.catalogue.models.items():
            for target in model.targets or ("",):
                if (target, name) not in released:
                    yield self._row(_nothing(target, name))
        for name in self.catalogue.broken:
            if not any(model == name for _, model in released):
                yield self._row(_nothing("", name))

    def _counts(self, found: ModelRecords) -> bool:
        """Whether it is live there, is to be, or was retired. What is neither is history."""
        name, target = found.place.model, found.place.target
        model = self.catalogue.models.get(name)
        wanted = name in self.catalogue.broken if model is None else target in model.targets
        current = found.current
        return wanted or current is None or current.public is not None or current.retired is not None

    def _row(self, found: ModelRecords) -> ModelRow:
        place, current = found.place, found.current or Current()
        model = self.catalogue.models.get(place.model)
        public = _NO_RELEASE if current.public is None else found.releases[current.public]
        live = public.intent
        reasons, problem = self._stale(model, public)
        reports = [each for each in self.records.reports if each.target == place.target]
        silent = sum(target == place.target for target, _ in (*self.records.silent, *self.records.unreadable_nodes))
        kind = live.recipe.get("kind") if live is not None else None if model is None else model.kind
        return ModelRow(
            model=place.model,
            target=place.target,
            labels={} if model is None else dict(model.labels),
            file=self._file(place.model),
            release=current.public,
            kind=kind if isinstance(kind, str) else "",
            runtime="" if live is None else version_of(live),
            age_s=None if current.public is None else place.age(current.public),
            verdict="" if public.result is None else public.result.state,
            watch=_watch(public, found.watching, current),
            newest=_newest(place, current, found.releases),
            nodes_ready=sum(_answers(report.models.get(place.model), current) for report in reports),
            nodes=len(reports) + silent,
            stale=reasons,
            runs=tuple(run for run in self.runs if run.model == place.model),
            alerts=tuple(self._alerts(found, model, public, reports, problem)),
            retired=current.retired is not None,
        )

    def _file(self, name: str) -> FileState:
        if name in self.catalogue.broken:
            return "broken"
        return "there" if name in self.catalogue.models else "missing"

    def _stale(self, model: Model | None, public: Release) -> tuple[tuple[Stale, ...], str]:
        """Why the live release is stale, and why a rebuild cannot begin if it cannot."""
        if model is None or public.intent is None:
            return (), ""
        weights = self.records.weights.get(model.name, CurrentWeights())
        followed = self.records.watch.followed.get(model.name)
        version = None if followed is None else followed.version
        try:
            return stale(model, public.intent, weights, version, self.offered), ""
        except UsageError as error:
            return (), error.message

    def _alerts(
        self, found: ModelRecords, model: Model | None, public: Release, reports: list[NodeReport], problem: str
    ) -> Iterator[str]:
        name, target = found.place.model, found.place.target
        yield from (f"{key} cannot be read: {reason}" for key, reason in found.unreadable.items())
        yield from self.catalogue.broken.get(name, ())
        is_live = found.current is None or found.current.public is not None
        if self._file(name) == "missing" and is_live:
            yield f"the catalogue has no file of it: `enginehouse retire {name}` takes it away"
        elif is_live and model is not None and target and target not in model.targets:
            yield f"its file does not name the target {target}"
        if problem:
            yield f"a rebuild cannot begin: {problem}"
        for report in reports:
            if (error := _error(report.models.get(name), found.current)) != "":
                yield f"node {report.node}: {error}"
        if public.watch is not None and public.watch.state == "failing":
            yield f"release {public.watch.release} fares worse than the one before: {public.watch.reason}"
        attempt = self.records.watch.attempts.get(name)
        if attempt is not None and model is not None and attempt.subject == subject_of(model):
            yield f"its rebuild with TensorRT-LLM {attempt.version} failed: {attempt.reason}"


def _nothing(target: str, model: str) -> ModelRecords:
    """The records of a model that was never released there."""
    return ModelRecords(Place(target, model), Current(), Watching(), {}, {})


def _newest(place: Place, current: Current, releases: Mapping[int, Release]) -> Newest | None:
    number = max(releases, default=None)
    if number is None or number == current.public:
        return None
    found, loaded = releases[number], number in current.loaded
    state = current.state_of(number, found.result)
    word = Standing(state, found.result, loaded, found.asked, found.approval, found.shift).word
    return Newest(number, word, place.age(number) or 0.0, _why(word, place.model, found))


def _why(word: str, model: str, found: Release) -> str:
    """Why the newest release is what it is, or what it waits for."""
    if word == "waiting":
        return f"enginehouse approve {model}, or reject"
    if found.approval is not None and found.approval.state != "approved":
        return told(found.approval)
    if found.shift is not None and found.shift.state == "refused":
        return found.shift.reason
    return "" if found.result is None else found.result.reason


def _watch(public: Release, watching: Watching, current: Current) -> str:
    if public.watch is not None:
        return public.watch.state
    on = current.public is not None and watching.release == current.public and not watching.over
    return "watching" if on else ""


def _answers(report: ModelReport | None, current: Current) -> bool:
    """Whether a node answers with the release that is public."""
    if report is None or current.public is None or report.public != current.public:
        return False
    loaded = report.releases.get(current.public)
    return loaded is not None and loaded.state == "ready"


def _error(report: ModelReport | None, current: Current | None) -> str:
    """Why a node does not have what it is to have; empty if it has."""
    if report is None:
        return ""
    loaded = {} if current is None else {n: report.releases[n] for n in current.loaded if n in report.releases}
    failed = (f"release {n} failed: {each.error}" for n, each in loaded.items() if each.state == "failed")
    return report.error or next(failed, "")
