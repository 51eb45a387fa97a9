"""Where a name may be asked: nodes by their reports, and the release that answers there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tasks.store.names import ALIASES
from tasks.targets.node_report import NodeReport

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
