"""A report on a release whose records are fixed: made here, judged by the real code."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from tasks.gates.judge import judge, overall
from tasks.report.release import Made, ReleaseReport
from tasks.store.artifact import ArtifactRef, Manifest, ManifestFile, Producer
from tasks.targets.approval import Approval, ApprovalRequest
from tasks.targets.changes import FieldChange
from tasks.targets.current import Current
from tasks.targets.gate_record import (
    Comparison,
    Differing,
    Evidence,
    Figure,
    GateRecord,
    Histogram,
    PromptResult,
)
from tasks.targets.observed import Observed
from tasks.targets.release import Intent, Result
from tasks.targets.traffic import Shift
from tasks.targets.watch_record import WatchOutcome

MOMENT = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)


def comparison(**about: Any) -> Comparison:
    fields: dict[str, Any] = {
        "measure": "next-token agreement",
        "method": "clusters of passages, 64 passages",
        "candidate": 0.991,
        "other": 0.994,
        "difference": -0.003,
        "lower": -0.008,
        "upper": 0.002,
        "margin": 0.01,
        "p_worse": 0.98,
        "p_fine": 0.004,
        "samples": 2048,
        "detectable": 0.014,
    }
    return Comparison.model_validate({**fields, **about})


def histogram(*, live: bool = True) -> Histogram:
    edges = tuple(round(20 * 1.12**step, 4) for step in range(41))
    ours = tuple(max(0, 40 - (step - 18) ** 2) for step in range(40))
    theirs = tuple(max(0, 36 - (step - 14) ** 2) for step in range(40)) if live else ()
    return Histogram(measure="time_to_first_token", edges=edges, candidate=ours, live=theirs)


def _record(gate: str, evidence: Evidence) -> GateRecord:
    return GateRecord(gate=gate, kind=gate, candidate=7, live=6, evidence=evidence, seconds=31, created=MOMENT)


def gate_records() -> tuple[GateRecord, ...]:
    answer = PromptResult(prompt="nine", node="n1", passed=True, answer="un, deux", seconds=0.31, failures=())
    slower = comparison(
        measure="time_to_first_token", method="bootstrap over 12 rounds of 120 prompts", candidate=1.31, other=1.0,
        difference=-0.31, lower=-0.36, upper=-0.27, margin=0.1, p_worse=0.0002, p_fine=1, samples=120, detectable=0.15,
    )  # fmt: skip
    return (
        _record("smoke", Evidence(prompts=(answer,))),
        _record(
            "agreement",
            Evidence(
                comparisons=(comparison(),),
                figures=(Figure(name="places asked", candidate=2048),),
                differing=(
                    Differing(
                        question="Write <b>bold</b> in HTML",
                        candidate="Here: <script>alert(1)</script>",
                        other="Here: <b>bold</b>",
                        note="the first 7 characters are the same",
                    ),
                    Differing(
                        question="| a | b |", candidate="مرحبا ```\n# no heading", other="", note="[x](http://x)"
                    ),
                ),
                notes=("64 passages",),
            ),
        ),
        _record(
            "performance",
            Evidence(
                comparisons=(slower, comparison(measure="requests answered", lower=None, margin=0, p_fine=0.2)),
                figures=(Figure(name="time_to_first_token p99", unit="ms", candidate=412.2, live=300.5),),
                histograms=(histogram(),),
                gaps=("11 of 12 rounds were done within 300 s",),
            ),
        ),
    )


def intent(**about: Any) -> Intent:
    fields: dict[str, Any] = {
        "model": "tiny",
        "release": 7,
        "repository": f"repository/{'ab' * 32}",
        "digest": "d" * 64,
        "recipe": {"kind": "trt-engine", "quantization": "nvfp4"},
        "changes": (FieldChange(field="quantization", old="fp8", new="nvfp4"),),
        "live": 6,
        "source": "hf://org/tiny@2",
        "adapters": {"law": "hf://org/law@1"},
        "flow_run": "11111111-2222-3333-4444-555555555555",
        "created": MOMENT,
    }
    return Intent.model_validate({**fields, **about})


def result_of(records: tuple[GateRecord, ...]) -> Result:
    verdicts = judge(records, 0.05)
    state = overall(verdicts)
    reasons = "; ".join(f"{each.gate}: {each.reason}" for each in verdicts if each.state == state != "passed")
    return Result(
        release=7, state=state, reason=reasons, live=6, gates=verdicts, asked="a" * 64, created=MOMENT,
        prompts=tuple(prompt for record in records for prompt in record.evidence.prompts),
    )  # fmt: skip


def made() -> tuple[Made, ...]:
    def manifest(digit: str) -> Manifest:
        file = ManifestFile(path="data.bin", size=6402, sha256=digit * 64, etag="e")
        producer = Producer(task="build", code="enginehouse 1", host="builder-1", seconds=412)
        return Manifest(
            kind="engine", model="tiny", identity={}, inputs={}, attempt="a1", files=(file,), producer=producer,
            created=MOMENT,
        )  # fmt: skip

    repository, engine = ArtifactRef("repository", "ab" * 32), ArtifactRef("engine", "cd" * 32)
    return Made(repository, manifest("1")), Made(engine, manifest("2")), Made(ArtifactRef("snapshot", "ef" * 32), None)


def after_the_gates() -> dict[str, Any]:
    """A person approved it, its canary passed, and the watch gave its name back."""
    seen = Observed(ended={"stop": 180, "internal": 11})
    return {
        "request": ApprovalRequest(release=7, live=6, timeout_s=86400, flow_run="run-1", created=MOMENT),
        "approval": Approval(
            release=7, state="approved", by="ada@desk", note="looked at <b>both</b>", flow_run="run-2", created=MOMENT
        ),
        "shift": Shift(release=7, strategy="canary", state="passed", share=0.25, created=MOMENT),
        "watch": WatchOutcome(
            release=7, previous=6, state="returned", reason="errors 5.8 %, and 0.1 % before", seconds=93, probes=12,
            comparisons=(comparison(measure="errors", method="confidence sequences"),), observed=seen,
            flow_run="run-2", created=MOMENT,
        ),
    }  # fmt: skip


def made_report(**about: Any) -> ReleaseReport:
    """Release 7, refused by the gate of performance."""
    records = gate_records()
    fields: dict[str, Any] = {
        "target": "prod",
        "intent": intent(),
        "result": result_of(records),
        "gates": records,
        "before": intent(release=6, source="hf://org/tiny@1", adapters={}),
        "why": "recipe: quantization fp8 → nvfp4; weights changed",
        "made_of": made(),
        "current": Current(public=6, previous=5),
    }
    return ReleaseReport(**{**fields, **about})
