"""The fleet at a glance, as frozen values: a row for each model on a target, a row for each node, and the runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal

from pydantic import JsonValue

from tasks.explain.staleness import Stale

State = Literal[
    "live",
    "degraded",
    "down",
    "never",
    "retired",
    "candidate",
    "waiting",
    "refused",
    "stale",
    "running",
    "alert",
    "no-file",
    "broken-file",
]
"""live: every node of its target answers with the wanted release; degraded: some do; down: none does; never: it was
never live; retired: somebody has taken its public name away. candidate, waiting (for a person) and refused are of a
release that is newer than the live one."""

FileState = Literal["there", "missing", "broken"]


@dataclass(frozen=True)
class Run:
    """A flow run that has not ended. `seconds` since it began; 0 if it waits to begin."""

    id: str
    flow: str
    model: str
    state: str
    seconds: float


@dataclass(frozen=True)
class Newest:
    """The newest release, where that is not the live one. `state` as `enginehouse releases` says it."""

    release: int
    state: str
    age_s: float
    reason: str = ""


@dataclass(frozen=True)
class NodeRow:
    """One node. `age_s`: since its last report, by the store's clock. GPUs by product."""

    name: str
    target: str
    state: Literal["alive", "silent", "unreadable"]
    age_s: float
    error: str = ""
    gpus: tuple[str, ...] = ()
    models: int = 0


@dataclass(frozen=True)
class ModelRow:
    """One model on one target. `target` is empty for a model whose file names none, and `release` is the live one."""

    model: str
    target: str
    labels: Mapping[str, str]
    file: FileState
    release: int | None
    kind: str
    runtime: str
    """The version of TensorRT-LLM that the live release was built with; empty for a kind without."""
    age_s: float | None
    """Since the live release was made, by the store's clock."""
    verdict: str
    """What its gates said of the live release; empty if no record tells."""
    watch: str
    """`watching` while it is watched after its promotion, then what came of that; empty if it was not."""
    newest: Newest | None
    nodes_ready: int
    """Nodes that answer with the live release."""
    nodes: int
    """All nodes of the target, also those that went silent within the last day."""
    stale: tuple[Stale, ...]
    runs: tuple[Run, ...]
    alerts: tuple[str, ...]
    retired: bool = False
    """Whether it has left the target."""

    @property
    def serving(self) -> State:
        """Whether clients are answered."""
        if self.release is None:
            return "retired" if self.retired else "never"
        if not self.nodes_ready:
            return "down"
        return "live" if self.nodes_ready == self.nodes else "degraded"

    @property
    def states(self) -> tuple[State, ...]:
        """Every word that fits, the one on serving first. A filter names one of them."""
        others: dict[State, object] = {
            "candidate": self.newest is not None and self.newest.state == "candidate",
            "waiting": self.newest is not None and self.newest.state == "waiting",
            "refused": self.newest is not None and self.newest.state == "refused",
            "stale": self.stale,
            "running": self.runs,
            "alert": self.alerts,
            "no-file": self.file == "missing",
            "broken-file": self.file == "broken",
        }
        return (self.serving, *(state for state, holds in others.items() if holds))

    @property
    def is_of_the_fleet(self) -> bool:
        """Whether it serves, or is to: not if it was retired, unless a rebuild brings it back."""
        return self.serving != "retired" or bool(self.runs) or "candidate" in self.states or "waiting" in self.states

    def document(self) -> dict[str, JsonValue]:
        stale: list[JsonValue] = [each.document() for each in self.stale]
        return {**asdict(self), "labels": dict(self.labels), "states": [*self.states], "stale": stale}


@dataclass(frozen=True)
class Fleet:
    """Every model and every node. `runs` is None where Prefect did not say which are in progress."""

    models: tuple[ModelRow, ...]
    nodes: tuple[NodeRow, ...]
    broken: Mapping[str, tuple[str, ...]]
    """The mistakes of files that cannot be read, by model."""
    runs: tuple[Run, ...] | None

    def only(self, target: str = "", state: str = "", labels: Mapping[str, str] | None = None) -> Fleet:
        """The same with the models of a target, in a state, with these labels; what is empty does not count.

        A retired model is left out, unless that is the state, or a candidate of it comes.
        """
        wanted = (labels or {}).items()
        return replace(
            self,
            models=tuple(
                row
                for row in self.models
                if target in ("", row.target)
                and (state in row.states if state else row.is_of_the_fleet)
                and all(row.labels.get(name) == value for name, value in wanted)
            ),
            nodes=tuple(node for node in self.nodes if target in ("", node.target)),
        )

    def document(self) -> dict[str, JsonValue]:
        """What `enginehouse status --json` prints."""
        return {
            "models": [row.document() for row in self.models],
            "nodes": [asdict(node) for node in self.nodes],
            "broken": {name: [*problems] for name, problems in self.broken.items()},
            "runs": None if self.runs is None else [asdict(run) for run in self.runs],
        }
