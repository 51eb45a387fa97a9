"""Sends the same prompts to candidate and live release, in turns on the same nodes, and compares the times."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from tasks.gates.performance.evidence import evidence_of
from tasks.gates.performance.rounds import rounds_of
from tasks.gates.performance.turns import Side, Turns, measure
from tasks.gates.protocol import Trial
from tasks.load.clock import punctual_loop
from tasks.load.http_stream import Address, Connections
from tasks.load.triton_grpc import TritonGrpc
from tasks.load.triton_sse import TritonSse
from tasks.load.wire import Sampling, Wire
from tasks.models.gate_specs.performance import PerformanceSpec
from tasks.targets.gate_record import Evidence
from tasks.targets.node_report import NodeReport


class PerformanceGate:
    """Without a live release it holds the candidate to the limits alone."""

    compares: ClassVar[bool] = True

    def __init__(self, asked: PerformanceSpec) -> None:
        self._asked = asked

    def run(self, trial: Trial) -> Evidence:
        rounds = rounds_of(self._asked, len(trial.nodes))

        async def ask() -> Turns:
            wires = [self._wires(trial, node) for node in trial.nodes]
            return await measure(self._asked, rounds, wires, trial.say)

        with asyncio.Runner(loop_factory=punctual_loop) as runner:
            turns = runner.run(ask())
        return evidence_of(self._asked, turns, trial.alpha, live=trial.live is not None)

    def _wires(self, trial: Trial, node: NodeReport) -> dict[Side, Wire]:
        wires: dict[Side, Wire] = {"candidate": self._wire(node, trial.candidate.name)}
        return wires if trial.live is None else {**wires, "live": self._wire(node, trial.live.name)}

    def _wire(self, node: NodeReport, model: str) -> Wire:
        sampling = Sampling(exact_lengths=self._asked.exact_lengths, seed=self._asked.seed, uncounted=True)
        if self._asked.over == "grpc":
            return TritonGrpc(model, node.grpc, sampling)
        return TritonSse(model, Connections(Address.parse(node.http)), sampling)
