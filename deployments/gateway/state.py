"""What the gateway knows of its targets, read from the store in a thread of its own.

The event loop asks for the last known state and never waits for the store. With the store away, or hanging, the last
known state goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from deployments.gateway.names import Name, unknown
from deployments.gateway.places import Node, Place, Places
from infra.errors import EnginehouseError, GatewayError
from tasks.store.names import collision
from tasks.targets.current import Current
from tasks.targets.parsers import ModelParsers
from tasks.targets.target import Listed, Target
from tasks.targets.traffic import LARGEST_RECORD, NO_TRAFFIC, Traffic, traffic

POLL_SECONDS = 1.0
_HURRIED_SECONDS = 0.1
"""The least between two readings, however many requests wait for the next one."""
_RETRY_SECONDS = 5.0
"""How long a record that could not be read is left alone."""
_SILENT_SECONDS = 5.0
"""How long one request to the store waits. A store that has not answered for so long is reported."""

_log = logging.getLogger("enginehouse.gateway")


@dataclass(frozen=True)
class TargetState:
    """One target: the public release of each model, and the nodes that are alive."""

    name: str
    public: Mapping[str, int]
    nodes: tuple[Node, ...]
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])
    """By alias, its model, as the nodes say, or the last ones said."""
    parsers: Mapping[tuple[str, int], ModelParsers] = field(default_factory=dict[tuple[str, int], ModelParsers])
    """How answers are written, by model and release, of those that any node has."""
    origins: Mapping[tuple[str, int], str] = field(default_factory=dict[tuple[str, int], str])
    """The `traceparent` of the rebuild that made it, of the same; empty where none was recorded."""
    adapters: Mapping[tuple[str, int], tuple[str, ...]] = field(default_factory=dict[tuple[str, int], tuple[str, ...]])
    """The names of those that requests may choose, of the same."""
    slots: Mapping[tuple[str, int], int] = field(default_factory=dict[tuple[str, int], int])
    """How many requests generate at the same time on one node, of the same where it is recorded."""
    traffic: Mapping[str, Traffic] = field(default_factory=dict[str, Traffic])
    """By model, what goes to its candidates. It names releases that are candidates, and no others."""

    def places(self, name: Name) -> Places | None:
        """None if this target does not serve the name."""
        if name.release is not None:
            held = [node for node in self.nodes if name.release in node.ready.get(name.model, ())]
            return Places(self.name, name.release, tuple(Place(node, name.release) for node in held)) if held else None
        wanted = self.public.get(name.model)
        if wanted is None:
            return None
        answering = [Place(node, node.public[name.model]) for node in self.nodes if name.model in node.public]
        moved = [place for place in answering if place.release == wanted]
        # While a promotion has not reached any node, the release of before answers.
        return Places(self.name, wanted, tuple(moved or answering))


@dataclass(frozen=True)
class Known:
    """The last known state of all targets. `reading` counts the times that it was read; 0: the store never answered."""

    targets: tuple[TargetState, ...] = ()
    reading: int = 0
    error: str = ""

    def model_of(self, name: Name) -> Name:
        """The same name, with the model that it stands for if it is an alias."""
        for target in self.targets:
            if name.model in target.public:
                break
            if (model := target.aliases.get(name.model)) is not None:
                return replace(name, model=model, alias=name.model)
        return name

    def places(self, name: Name) -> Places:
        """Where to ask for a name: on the first target that serves it.

        Raises GatewayError, code `state-unknown`, `model-unknown` or `release-not-loaded`.
        """
        if not self.reading:
            raise GatewayError(
                "the store has not said yet what is served", code="state-unknown", retryable=True, retry_after_s=2
            )
        for target in self.targets:
            if (found := target.places(name)) is not None:
                return found
        if name.release is None or not any(name.model in target.public for target in self.targets):
            raise unknown(str(name))
        raise GatewayError(
            f"release {name.release} of '{name.model}' is loaded on no node",
            hint=f"ask for '{name.model}', or see `enginehouse releases {name.model}`",
            code="release-not-loaded",
        )

    def parsers(self, place: Place, model: str) -> ModelParsers:
        """How the release there writes its answers. None where its record cannot be read."""
        targets = (target for target in self.targets if target.name == place.node.target)
        return next((each.parsers.get((model, place.release), ModelParsers()) for each in targets), ModelParsers())

    def origin(self, place: Place, model: str) -> str:
        """The `traceparent` of the rebuild that made the release there. Empty where nobody knows."""
        targets = (target for target in self.targets if target.name == place.node.target)
        return next((each.origins.get((model, place.release), "") for each in targets), "")

    def adapters(self, places: Places, model: str) -> tuple[str, ...] | None:
        """Those of the release that should answer there. None where its record cannot be read."""
        targets = (target for target in self.targets if target.name == places.target)
        return next((each.adapters.get((model, places.release)) for each in targets), None)

    def traffic(self, places: Places, model: str) -> Traffic:
        """What goes to candidates of the model there, beside the release that should answer."""
        targets = (target for target in self.targets if target.name == places.target)
        return next((each.traffic.get(model, NO_TRAFFIC) for each in targets), NO_TRAFFIC)

    def beside(self, places: Places, model: str, release: int) -> Places:
        """Where another release of the model may be asked on the same target."""
        targets = (target for target in self.targets if target.name == places.target)
        found = next((each.places(Name(model, release)) for each in targets), None)
        return found or Places(places.target, release, ())

    def slots(self, place: Place, model: str) -> int | None:
        """How many requests the release there generates at the same time. None where nobody knows."""
        targets = (target for target in self.targets if target.name == place.node.target)
        return next((each.slots.get((model, place.release)) for each in targets), None)

    @property
    def models(self) -> dict[str, Places]:
        """Every public name with where it may be asked, in the order of the alphabet."""
        names = sorted({model for target in self.targets for model in target.public})
        return {model: self.places(Name(model)) for model in names}

    @property
    def releases(self) -> frozenset[tuple[str, str]]:
        """Model and number of every release that answers on a node, or should."""
        held = {(model, str(n)) for node in self.nodes for model, numbers in node.ready.items() for n in numbers}
        wanted = {(model, str(n)) for target in self.targets for model, n in target.public.items()}
        return frozenset(held | wanted)

    @property
    def aliases(self) -> dict[str, str]:
        """Every alias with its model."""
        found = {alias: self.model_of(Name(alias)) for target in self.targets for alias in target.aliases}
        return {alias: name.model for alias, name in found.items()}

    @property
    def nodes(self) -> tuple[Node, ...]:
        return tuple(node for target in self.targets for node in target.nodes)

    @property
    def ready(self) -> bool:
        """Whether any public name has a node that answers, or none exists.

        One model that answers nowhere does not take the gateway from the clients of the others.
        """
        return self.reading > 0 and (not (models := self.models) or any(places.nodes for places in models.values()))


@dataclass
class _Read:
    """The records of one target as they were last read, each with its ETag."""

    current: dict[str, tuple[str, Current]] = field(default_factory=dict[str, tuple[str, Current]])
    traffic: dict[str, tuple[str, Traffic]] = field(default_factory=dict[str, tuple[str, Traffic]])
    nodes: dict[str, tuple[str, Node]] = field(default_factory=dict[str, tuple[str, Node]])
    aliases: dict[str, str] = field(default_factory=dict[str, str])
    parsers: dict[tuple[str, int], ModelParsers] = field(default_factory=dict[tuple[str, int], ModelParsers])
    origins: dict[tuple[str, int], str] = field(default_factory=dict[tuple[str, int], str])
    adapters: dict[tuple[str, int], tuple[str, ...]] = field(default_factory=dict[tuple[str, int], tuple[str, ...]])
    slots: dict[tuple[str, int], int] = field(default_factory=dict[tuple[str, int], int])
    retry_at: dict[str, float] = field(default_factory=dict[str, float])


class Watch:
    """Reads the state of `targets` until it is stopped. Of two with one model, the first one serves it."""

    def __init__(self, targets: Sequence[Target], poll_s: float = POLL_SECONDS) -> None:
        self._targets = [replace(each, bucket=each.bucket.impatient(_SILENT_SECONDS)) for each in targets]
        self._read = {target.name: _Read() for target in targets}
        self._poll_s = poll_s
        self._known = Known()
        self._asked: float | None = None
        self._stopped = False
        self._event = threading.Event()
        self._thread = threading.Thread(target=self._run, name="state", daemon=True)

    @property
    def known(self) -> Known:
        asked = self._asked
        if asked is not None and time.monotonic() - asked > _SILENT_SECONDS:
            return replace(self._known, error="the store does not answer [store-unavailable]")
        return self._known

    def start(self) -> None:
        self._thread.start()

    def hurry(self) -> None:
        """Have the store read now: what is known has been found wrong."""
        self._event.set()

    def stop(self) -> None:
        """End reading. A request that hangs is not waited for."""
        self._stopped = True
        self._event.set()

    def _run(self) -> None:
        while not self._stopped:
            self._event.clear()
            self._asked = time.monotonic()
            try:
                states = tuple(self._look(target, self._read[target.name]) for target in self._targets)
                self._known = Known(states, self._known.reading + 1)
            except Exception as error:
                if str(error) != self._known.error:
                    _log.warning("the state of the targets could not be read: %s", error)
                self._known = replace(self._known, error=str(error))
            self._asked = None
            if self._event.wait(self._poll_s):
                time.sleep(min(_HURRIED_SECONDS, self._poll_s))

    def _look(self, target: Target, read: _Read) -> TargetState:
        """Read what changed: one listing, and the records with another ETag."""
        listed = target.listed()
        # A record that is lost takes no model from its clients: nodes go on with it too.
        for model, etag in listed.models.items():
            if self._is_due(f"model {model}", etag, read.current.get(model), read) and not collision(model):
                with _one_record(f"model {model}", read):
                    current, found = target.current(model)
                    read.current[model] = found or etag, current
        read.nodes = {name: each for name, each in read.nodes.items() if name in listed.nodes}
        for name, etag in listed.nodes.items():
            if self._is_due(f"node {name}", etag, read.nodes.get(name), read):
                with _one_record(f"node {name}", read):
                    if (report := target.node_report(name)) is not None:
                        read.nodes[name] = etag, Node.of(report)
        public = {model: now.public for model, (_, now) in read.current.items() if now.public is not None}
        nodes = tuple(node for _, node in read.nodes.values())
        if nodes:
            read.aliases = {alias: model for node in nodes for alias, model in node.aliases.items()}
        self._look_at_releases(target, nodes, read)
        return TargetState(
            target.name,
            public,
            nodes,
            read.aliases,
            read.parsers,
            read.origins,
            read.adapters,
            read.slots,
            self._look_at_traffic(target, listed, read),
        )

    def _look_at_traffic(self, target: Target, listed: Listed, read: _Read) -> dict[str, Traffic]:
        """What goes to candidates. Of a record that cannot be read nothing does."""
        read.traffic = {name: each for name, each in read.traffic.items() if name in listed.traffic}
        for model, entry in listed.traffic.items():
            what = f"the traffic of {model}"
            if model in read.current and self._is_due(what, entry.etag, read.traffic.get(model), read):
                read.traffic.pop(model, None)
                with _one_record(what, read):
                    if entry.size > LARGEST_RECORD:
                        raise ValueError(f"it has {entry.size} bytes")
                    found, etag = traffic(target, model).read()
                    read.traffic[model] = etag or entry.etag, found
        counts = {model: each.within(read.current[model][1]) for model, (_, each) in read.traffic.items()}
        return {model: each for model, each in counts.items() if each != NO_TRAFFIC}

    def _look_at_releases(self, target: Target, nodes: Sequence[Node], read: _Read) -> None:
        """Read the records of releases that are new; they never change."""
        held = {(model, number) for node in nodes for model, numbers in node.ready.items() for number in numbers}
        read.parsers = {release: each for release, each in read.parsers.items() if release in held}
        read.origins = {release: each for release, each in read.origins.items() if release in held}
        read.adapters = {release: each for release, each in read.adapters.items() if release in held}
        read.slots = {release: each for release, each in read.slots.items() if release in held}
        for model, number in sorted(held - read.parsers.keys()):
            what = f"release {number} of {model}"
            if time.monotonic() >= read.retry_at.get(what, 0.0):
                with _one_record(what, read):
                    intent = target.intent(model, number)
                    read.parsers[model, number] = ModelParsers.of(intent.serving)
                    read.origins[model, number] = intent.traceparent
                    read.adapters[model, number] = tuple(intent.adapters)
                    slots = intent.serving.get("slots")
                    read.slots |= {(model, number): slots} if isinstance(slots, int) else {}

    def _is_due(self, what: str, etag: str, known: tuple[str, object] | None, read: _Read) -> bool:
        self._asked = time.monotonic()
        return (known is None or known[0] != etag) and time.monotonic() >= read.retry_at.get(what, 0.0)


@contextmanager
def _one_record(what: str, read: _Read) -> Generator[None]:
    """Keeps what is wrong with one record from the others: it is logged, and the record left alone for a while."""
    read.retry_at.pop(what, None)
    try:
        yield
    except Exception as error:
        if isinstance(error, EnginehouseError) and error.retryable:
            raise  # the store itself
        _log.warning("the record of %s cannot be read: %s", what, " ".join(str(error).split())[:300])
        read.retry_at[what] = time.monotonic() + _RETRY_SECONDS
