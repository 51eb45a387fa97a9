"""The command gate: it runs a program, and makes evidence of what that says."""

from __future__ import annotations

import shlex
import statistics
import tempfile
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from infra import settings
from infra.errors import StepFailed
from infra.processes import child
from infra.toolchains.surroundings import inherited
from tasks.gates.command.output import Metric, Output, read_output
from tasks.gates.means import FEWEST_ITEMS, compare_paired_means
from tasks.gates.proportions import compare_paired_answers, compare_with_floor
from tasks.gates.protocol import Trial
from tasks.models.gate_specs.command import CommandSpec, MetricSpec
from tasks.targets.gate_record import Comparison, Evidence, Figure

_KEPT_LINES = 1000


@dataclass(frozen=True)
class CommandGate:
    """The program is told by its environment where both releases answer; it gets nothing else of this process."""

    asked: CommandSpec
    compares: ClassVar[bool] = True

    def run(self, trial: Trial) -> Evidence:
        """Raises SettingsError `tool-missing`, StepFailed `step-timeout`, `gate-command-failed` if the program ends
        with another code than 0, and `gate-output-invalid`."""
        lines: deque[str] = deque(maxlen=_KEPT_LINES)

        def heard(line: str) -> None:
            lines.append(line)
            trial.say(line)

        command = list(self.asked.command)
        with tempfile.TemporaryDirectory(prefix="enginehouse-gate-") as folder:
            outcome = child.run(
                command,
                folder=Path(folder),
                environment={**inherited(), "HOME": folder, **addresses(trial)},
                timeout_s=self.asked.timeout_s,
                on_line=heard,
            )
        if outcome.exit_code != 0:
            raise StepFailed(
                f"{shlex.join(command)} ended with {outcome.exit_code}",
                hint="a program that refuses a candidate says so in its JSON, and ends with 0; its output ends with:\n"
                + outcome.tail[-2000:],
                code="gate-command-failed",
            )
        return evidence_of(read_output(lines), self.asked.metrics, trial)


def addresses(trial: Trial) -> dict[str, str]:
    """Where both releases answer: by Triton's API on the first node, and by OpenAI's where a gateway is configured.

    Names of a live release are empty where there is none.
    """
    node, releases = trial.nodes[0], {"CANDIDATE": trial.candidate, "LIVE": trial.live}
    gateway = settings.load().gateway_http.rstrip("/")
    variables = {
        "GATE_TRITON_HTTP": f"http://{node.http.removeprefix('http://')}",
        "GATE_TRITON_GRPC": node.grpc,
        "GATE_OPENAI_BASE_URL": f"{gateway}/v1" if gateway else "",
    }
    for role, served in releases.items():
        variables[f"GATE_TRITON_{role}"] = "" if served is None else served.name
        variables[f"GATE_OPENAI_{role}"] = "" if served is None else f"{trial.model.name}@{served.release}"
    return variables


def evidence_of(output: Output, asked: Mapping[str, MetricSpec], trial: Trial) -> Evidence:
    """What the program said, its metrics beside what the model's file asks of them."""
    reported = {metric.name: metric for metric in output.metrics}
    comparisons: list[Comparison] = []
    gaps = [f"the program did not report '{name}'" for name in asked if name not in reported]
    for name, wanted in asked.items():
        if (metric := reported.get(name)) is not None:
            found, missing = _compared(metric, wanted, trial)
            comparisons += found
            gaps += missing
    said = f"the program said {output.verdict}" + (f": {output.reason}" if output.reason else "")
    if output.verdict == "undecided":
        gaps.append(said)
    return Evidence(
        comparisons=tuple(comparisons),
        failures=(said,) if output.verdict == "refused" else (),
        gaps=tuple(gaps),
        figures=tuple(_figure(metric) for metric in output.metrics),
        notes=(said,) if output.verdict == "passed" else (),
    )


def _compared(metric: Metric, wanted: MetricSpec, trial: Trial) -> tuple[list[Comparison], list[str]]:
    """The comparisons of one metric, and what could not be compared."""
    few = not metric.counts and len(metric.candidate) < FEWEST_ITEMS
    if few:
        return [], [f"'{metric.name}' has {len(metric.candidate)} items, and needs {FEWEST_ITEMS}"]
    comparisons: list[Comparison] = []
    gaps: list[str] = []
    if wanted.floor is not None:
        comparisons.append(_beside_floor(metric, wanted, wanted.floor, trial.alpha))
    if wanted.margin is not None and trial.live is not None:
        if metric.live is None:
            gaps.append(f"the program did not report '{metric.name}' of the live release")
        else:
            comparisons.append(_beside_live(metric, metric.live, wanted, wanted.margin, trial.alpha))
    return comparisons, gaps


def _beside_live(
    metric: Metric, live: tuple[float, ...], wanted: MetricSpec, margin: float, alpha: float
) -> Comparison:
    if metric.counts and wanted.better == "more":
        ours, theirs = [list(map(bool, values)) for values in (metric.candidate, live)]
        return compare_paired_answers(metric.name, ours, theirs, margin=margin, alpha=alpha)
    return compare_paired_means(
        metric.name,
        metric.candidate,
        live,
        margin=margin,
        alpha=alpha,
        unit=metric.unit,
        better=wanted.better,
        resolution=1.0 if metric.counts else 0.0,
    )


def _beside_floor(metric: Metric, wanted: MetricSpec, floor: float, alpha: float) -> Comparison:
    if metric.counts and wanted.better == "more":
        right = sum(map(bool, metric.candidate))
        return compare_with_floor(metric.name, right, len(metric.candidate), floor, alpha=alpha)
    compared = compare_paired_means(
        metric.name,
        metric.candidate,
        [floor] * len(metric.candidate),
        margin=0,
        alpha=alpha,
        unit=metric.unit,
        better=wanted.better,
        resolution=1.0 if metric.counts else 0.0,
    )
    return compared.model_copy(update={"against": "floor"})


def _figure(metric: Metric) -> Figure:
    return Figure(
        name=f"{metric.name}, mean of {len(metric.candidate)}",
        unit=metric.unit,
        candidate=statistics.fmean(metric.candidate),
        live=None if metric.live is None else statistics.fmean(metric.live),
    )
