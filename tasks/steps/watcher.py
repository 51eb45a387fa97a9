"""One watch over one release: what it sees at each look, and what that comes to."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

from infra.errors import EnginehouseError
from tasks.gates.protocol import Served, Trial
from tasks.gates.wording import value
from tasks.models.spec import Model
from tasks.models.watch import WatchSpec
from tasks.observed.evidence import ENOUGH, Margins, SinceBefore, failed, measures
from tasks.observed.memory import Memory
from tasks.observed.probes import Probes
from tasks.observed.tally import Tally, look
from tasks.targets.gate_record import Comparison
from tasks.targets.node_report import NodeReport
from tasks.targets.target import Target
from tasks.targets.watch_record import Watching, WatchOutcome, WatchState

Clock: TypeAlias = Callable[[], float]
"""Seconds that only grow."""

_BUSY_REQUESTS = 10
"""Between two probes: where clients ask so often, and did before, nobody else has to."""
_TRITON_ENDS = 2
"""An engine may run in Triton's own process, and take it along. One end may be anything's."""
_PROBE_MEASURES = 2
"""Comparisons of probes, any of which may give the release back."""


class Watcher:
    """Looks at a release that has been watched for `age` seconds. With `model` it sends test prompts too."""

    def __init__(
        self,
        target: Target,
        name: str,
        watching: Watching,
        age: float,
        *,
        clock: Clock = time.monotonic,
        model: Model | None = None,
        flow_run: str = "",
    ) -> None:
        self._target, self._name, self._watching, self._flow_run = target, name, watching, flow_run
        self._clock, self._began = clock, clock() - age
        self._asked = WatchSpec.model_validate(watching.asked)
        margins = Margins(self._asked.errors, self._asked.first_token, self._asked.gap)
        measured = measures(watching.before, margins)
        memory = self._asked.memory
        self._level = self._asked.alpha / (len(measured) + _PROBE_MEASURES + (memory is not None))
        self._tally = Tally(name, watching.release, watching.nodes)
        self._traffic = SinceBefore(measured, watching.before, self._level)
        self._memory = None if memory is None else Memory(name, watching.release, memory, self._asked.lasts)
        self._model = model
        self._probes = None if model is None else Probes(model.prompts, margins)
        self._probe_at = clock()
        self._asked_since_probe = 0
        self._starts: dict[tuple[str, str], int] = {}
        self._tritons: dict[tuple[str, str], int] = {}
        self._triton_ends = 0

    @property
    def seconds(self) -> float:
        """Since the promotion."""
        return self._clock() - self._began

    @property
    def left_seconds(self) -> float:
        return max(0.0, self._asked.lasts - self.seconds)

    def look(self) -> WatchOutcome | None:
        """See what has come since the last look; returns the outcome once there is one.

        A store or a node that does not answer for a while ends nothing: what is counted meanwhile is seen later.
        """
        try:
            if self._target.current(self._name)[0].public != self._watching.release:
                return self._outcome("overtaken", "another release got the public name")
            nodes = self._target.nodes()
            fault = self._fault(nodes)
            gained = self._tally.add(look(nodes))
            self._traffic.add(gained)
            if self._memory is not None:
                self._memory.look(nodes, self._clock())
            self._asked_since_probe += failed(gained).requests
            if not fault and nodes:
                self._probe(nodes)
        except EnginehouseError as error:
            if not error.retryable:
                raise
            fault = ""
        worse = [each for each in self.comparisons() if each.p_worse <= self._level]
        if fault or worse:
            can_return = self._watching.previous is not None
            reason = "; ".join([fault] if fault else map(_said, worse))
            return self._outcome("returned" if can_return else "failing", reason)
        return self._over() if self.seconds >= self._asked.lasts else None

    def comparisons(self) -> tuple[Comparison, ...]:
        seen = (self._traffic, self._probes, self._memory)
        return tuple(each for measured in seen if measured is not None for each in measured.comparisons())

    def _fault(self, nodes: Sequence[NodeReport]) -> str:
        """Why the release is taken for broken on a node that had it; empty if it is not."""
        for node in nodes:
            known = node.models.get(self._name)
            held = None if known is None else known.releases.get(self._watching.release)
            if held is None:
                continue
            # Within one start of the node: one that is started again counts anew, and may bring a Triton along.
            key = node.node, node.observed.epoch
            self._triton_ends += node.triton_pid != self._tritons.get(key, node.triton_pid)
            self._tritons[key] = node.triton_pid
            if held.starts > self._starts.setdefault(key, held.starts):
                return f"it died on node '{node.node}', which had to load it again"
            if held.state == "failed" and node.node in self._watching.nodes:
                return f"node '{node.node}' has lost it: {held.error}"
        return f"Triton ended {self._triton_ends} times" if self._triton_ends >= _TRITON_ENDS else ""

    def _probe(self, nodes: Sequence[NodeReport]) -> None:
        if self._probes is None or self._model is None or self._clock() < self._probe_at:
            return
        due = self._clock() + self._asked.probe_every
        is_busy = self._asked_since_probe >= _BUSY_REQUESTS and failed(self._watching.before).requests >= ENOUGH
        self._asked_since_probe = 0
        if not is_busy and (trial := self._trial(self._model, nodes)) is not None and self._probes.ask(trial):
            due = self._clock()  # what failed is asked again at once
        self._probe_at = due

    def _trial(self, model: Model, nodes: Sequence[NodeReport]) -> Trial | None:
        """Both releases on the nodes that have them ready; the release alone where there is no other."""
        ours, theirs = self._watching.release, self._watching.previous
        wanted = {ours} if theirs is None else {ours, theirs}
        ready = [node for node in nodes if _ready(node, self._name) >= wanted]
        if not ready:
            wanted = {ours}
            ready = [node for node in nodes if _ready(node, self._name) >= wanted]
        if not ready:
            return None
        return Trial(
            model=model,
            target=self._target.name,
            nodes=tuple(ready),
            candidate=Served(self._target.intent(self._name, ours)),
            live=Served(self._target.intent(self._name, theirs)) if theirs is not None and theirs in wanted else None,
        )

    def _over(self) -> WatchOutcome:
        """What a watch comes to that saw nothing worse: healthy only if that is shown."""
        shown = [each for each in self.comparisons() if each.measure.startswith("failed")]
        if sure := [each for each in shown if each.p_fine <= self._asked.alpha]:
            return self._outcome("healthy", "; ".join(map(_said, sure)))
        if not shown:
            return self._outcome("undecided", "nothing was seen of it")
        few = "; ".join(f"{_said(each)}, of {each.samples}" for each in shown)
        return self._outcome("undecided", f"{few}: too few to say that it loses no more than is allowed")

    def _outcome(self, state: WatchState, reason: str) -> WatchOutcome:
        return WatchOutcome(
            release=self._watching.release,
            previous=self._watching.previous,
            state=state,
            reason=reason,
            comparisons=self.comparisons(),
            observed=self._tally.observed,
            probes=0 if self._probes is None else self._probes.sent,
            seconds=round(self.seconds, 3),
            asked=self._watching.asked,
            flow_run=self._flow_run,
        )


def _ready(node: NodeReport, name: str) -> set[int]:
    known = node.models.get(name)
    return set() if known is None else {number for number, held in known.releases.items() if held.state == "ready"}


def _said(comparison: Comparison) -> str:
    ours, theirs = (value(number, comparison.unit) for number in (comparison.candidate, comparison.other))
    return f"{comparison.measure} {ours}, against {theirs}"
