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
from infra.errors import EnginehouseError, GatewayError
from tasks.store.names import ALIASES, collision
from tasks.targets.node_report import NodeReport
from tasks.targets.parsers import ModelParsers
from tasks.targets.target import Target

POLL_SECONDS = 1.0
_HURRIED_SECONDS = 0.1
"""The least between two readings, however many requests wait for the next one."""
_RETRY_SECONDS = 5.0
"""How long a record that could not be read is left alone."""
_SILENT_SECONDS = 5.0
"""How long one request to the store waits. A store that has not answered for so long is reported."""

_log = logging.getLogger("enginehouse.gateway")


PlaceKey = tuple[tuple[str, str], int]


@dataclass(frozen=True)
class Node:
    """A node that is alive, by its last report."""

    target: str
    name: str
    grpc: str
    """`host:port` of its Triton's gRPC."""
    ready: Mapping[str, frozenset[int]]
    """By model, the releases that answer there."""
    public: Mapping[str, int]
    """By model, the release that the public name answers with there. Models whose public name answers nobody lack."""
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])
    """By alias, the model whose public release asks for it."""

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from every other node."""
        return self.target, self.name

    @classmethod
    def of(cls, report: NodeReport) -> Node:
        ready = {
            model: frozenset(number for number, release in each.releases.items() if release.state == "ready")
            for model, each in report.models.items()
        }
        public = {
            model: each.public
            for model, each in report.models.items()
            if each.public is not None and each.public in ready[model]
        }
        aliases = {alias: model for model, each in report.models.items() for alias in each.aliases if alias in ALIASES}
        return cls(report.target, report.node, report.grpc, ready, public, aliases)


@dataclass(frozen=True)
class Place:
    """A node, and the release that answers there to the name that was looked up."""

    node: Node
    release: int

    @property
    def key(self) -> PlaceKey:
        """What tells it from other nodes, and from the same node with another release."""
        return self.node.key, self.release


@dataclass(frozen=True)
class Places:
    """Where a name may be asked. `release` is the one that should answer; `nodes` may be empty for a while."""

    target: str
    release: int
    nodes: tuple[Place, ...]


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

    public: dict[str, tuple[str, int | None]] = field(default_factory=dict[str, tuple[str, int | None]])
    nodes: dict[str, tuple[str, Node]] = field(default_factory=dict[str, tuple[str, Node]])
    aliases: dict[str, str] = field(default_factory=dict[str, str])
    parsers: dict[tuple[str, int], ModelParsers] = field(default_factory=dict[tuple[str, int], ModelParsers])
    origins: dict[tuple[str, int], str] = field(default_factory=dict[tuple[str, int], str])
    adapters: dict[tuple[str, int], tuple[str, ...]] = field(default_factory=dict[tuple[str, int], tuple[str, ...]])
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
            if self._is_due(f"model {model}", etag, read.public.get(model), read) and not collision(model):
                with _one_record(f"model {model}", read):
                    current, found = target.current(model)
                    read.public[model] = found or etag, current.public
        read.nodes = {name: each for name, each in read.nodes.items() if name in listed.nodes}
        for name, etag in listed.nodes.items():
            if self._is_due(f"node {name}", etag, read.nodes.get(name), read):
                with _one_record(f"node {name}", read):
                    if (report := target.node_report(name)) is not None:
                        read.nodes[name] = etag, Node.of(report)
        public = {model: number for model, (_, number) in read.public.items() if number is not None}
        nodes = tuple(node for _, node in read.nodes.values())
        if nodes:
            read.aliases = {alias: model for node in nodes for alias, model in node.aliases.items()}
        self._look_at_releases(target, nodes, read)
        return TargetState(target.name, public, nodes, read.aliases, read.parsers, read.origins, read.adapters)

    def _look_at_releases(self, target: Target, nodes: Sequence[Node], read: _Read) -> None:
        """Read the records of releases that are new; they never change."""
        held = {(model, number) for node in nodes for model, numbers in node.ready.items() for number in numbers}
        read.parsers = {release: each for release, each in read.parsers.items() if release in held}
        read.origins = {release: each for release, each in read.origins.items() if release in held}
        read.adapters = {release: each for release, each in read.adapters.items() if release in held}
        for model, number in sorted(held - read.parsers.keys()):
            what = f"release {number} of {model}"
            if time.monotonic() >= read.retry_at.get(what, 0.0):
                with _one_record(what, read):
                    intent = target.intent(model, number)
                    read.parsers[model, number] = ModelParsers.of(intent.serving)
                    read.origins[model, number] = intent.traceparent
                    read.adapters[model, number] = tuple(intent.adapters)

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
