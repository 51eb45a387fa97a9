"""The gates on a real model in a real Triton: what is equal passes, and what is broken is told apart by its gate."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tasks.gates.agreement.gate import AgreementGate
from tasks.gates.agreement.passages import bundled
from tasks.gates.agreement.reference import read_passages
from tasks.gates.judge import judge
from tasks.gates.performance.gate import PerformanceGate
from tasks.gates.protocol import FoundReference, Gate, Trial
from tasks.gates.quality.gate import ENDINGS, QualityGate
from tasks.gguf.conversion import dequantize, quantize
from tasks.kinds.reference import LlamaCppReference
from tasks.models.gate_specs.agreement import AgreementSpec
from tasks.models.gate_specs.performance import PerformanceSpec
from tasks.models.gate_specs.quality import QualitySpec
from tasks.models.gate_specs.set_source import SetSource
from tasks.serving.contract import CONTRACT
from tasks.serving.settings import ServingSettings
from tasks.steps.plan import Plan
from tasks.steps.reference import PlannedReference, read_reference
from tasks.store.identity import Identity
from tasks.targets.gate_record import GateRecord, Verdict
from tasks.targets.node_report import NodeReport
from tasks.triton.placement import place_release, placed_models
from tasks.triton.repository import write_release
from tests.tasks.gates.broken_gguf import at_half_speed, with_another_template, without_a_tensor, without_its_end
from tests.tasks.gates.trials import embedded, finds, served
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from tests.conftest import RunningTriton

pytestmark = pytest.mark.slow

AGREEMENT = AgreementGate(AgreementSpec(gate="agreement", positions=1))
LIVE = 1


@dataclass
class House:
    """A Triton with the live release, in q8_0, and the weights that candidates are made of."""

    triton: RunningTriton
    weights: Path
    number: int = LIVE
    seconds: float = 0.0
    """What the last gate took."""

    def load(self, gguf: Path, *, slots: int = 2, timeout_s: float = 60.0) -> int:
        """Serve these weights as a further release. A request that takes longer than `timeout_s` fails."""
        model, release = embedded().name, self.number
        artifact, engine = self.weights / f"artifact-{release}", self.weights / f"engine-{release}"
        for folder in (artifact, engine):
            folder.mkdir()
        served = ServingSettings(
            "llamacpp", "engine/model.gguf", slots, 512, True, timeout_s, threads=1, contract=CONTRACT
        )
        write_release(artifact, served)
        shutil.copyfile(gguf, engine / "model.gguf")
        place_release(artifact, engine, self.triton.repository, model, release, grpc=self.triton.client.grpc)
        for name in placed_models(self.triton.repository, model, release):
            self.triton.client.load(name)
        self.number += 1
        return release

    def unload(self, release: int) -> None:
        for name in reversed(placed_models(self.triton.repository, embedded().name, release)):
            self.triton.client.unload(name)

    def verdict(
        self, gate: Gate, gguf: Path, alpha: float = 0.05, found: FoundReference | None = None, **served_as: Any
    ) -> Verdict:
        """Of the gate alone, on a candidate of these weights; with a reference on one that is the first release."""
        release, model = self.load(gguf, **served_as), embedded()
        ports = self.triton.ports
        node = NodeReport.model_construct(node="here", http=f"127.0.0.1:{ports.http}", grpc=f"127.0.0.1:{ports.grpc}")
        trial = Trial(model, "local", (node,), served(model.name, release), served(model.name, LIVE), alpha)
        if found is not None:
            trial = replace(trial, live=None, find_reference=finds(found))
        began = time.monotonic()
        try:
            evidence = gate.run(trial)
        finally:
            self.seconds = time.monotonic() - began
            self.unload(release)
        record = GateRecord(gate="gate", kind="gate", candidate=release, live=LIVE, evidence=evidence)
        return judge([record], alpha)[0]


@pytest.fixture(scope="module")
def house(
    smollm2_gguf: Path, start_triton: Callable[[str], RunningTriton], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("gates")
    dequantize(smollm2_gguf, folder / "f16.gguf", "float16", lambda done, of: None)
    for quantization in ("q8_0", "q4_0"):
        quantize(folder / "f16.gguf", folder / quantization, quantization, lambda done, of: None)
    triton = start_triton("gates")
    made = House(triton, folder)
    made.load(folder / "q8_0")
    yield made
    triton.process.terminate()
    triton.process.wait(20)


def agreement_of_few(weights: Path) -> AgreementGate:
    """On a third of the passages, whose margin so few can decide."""
    passages = weights / "few.jsonl"
    passages.write_text("\n".join(json.dumps({"name": each.name, "text": each.text}) for each in bundled()[:24]))
    return AgreementGate(AgreementSpec(passages=SetSource(uri=f"file://{passages}"), positions=1, margin=0.2))


def test_the_same_weights_pass(house: House) -> None:
    verdict = house.verdict(AGREEMENT, house.weights / "q8_0")
    assert verdict.state == "passed" and verdict.decisive is not None and verdict.decisive.difference == 0


def test_fewer_bits_are_told_apart_at_one_percent_of_false_alarms(house: House) -> None:
    assert house.verdict(AGREEMENT, house.weights / "q4_0", alpha=0.01).state == "refused"
    assert house.seconds < 60 * PATIENCE


def test_a_first_release_is_held_against_what_its_weights_say_outside_of_triton(house: House) -> None:
    """Template, tokens and their number are the same for the reader of the reference and in Triton."""
    passages = house.weights / "passages.jsonl"
    passages.write_text("\n".join(json.dumps({"name": each.name, "text": each.text}) for each in bundled()[:24]))
    places = SetSource(uri=f"file://{passages}")
    asked = AgreementSpec(passages=places, positions=1, reference="auto", reference_margin=0.25)
    source, plan = LlamaCppReference(embedded(), "f16.gguf"), Plan.of(embedded(), Identity({"source": "wheel"}))
    planned = PlannedReference(asked, read_passages(asked), source, plan)
    found = FoundReference(read_reference(planned, house.weights), str(planned.ref))
    same = house.verdict(AgreementGate(asked), house.weights / "f16.gguf", found=found)
    assert same.state == "passed" and same.decisive is not None
    assert (same.decisive.against, same.decisive.samples) == ("reference", 24)
    strict = asked.model_copy(update={"reference_margin": 0.05})
    broken = without_a_tensor(house.weights / "q8_0", house.weights / "lost", "blk.14.ffn_down.weight")
    assert house.verdict(AgreementGate(strict), broken, found=found).state == "refused"


def test_a_tensor_that_is_lost_is_told_apart(house: House) -> None:
    broken = without_a_tensor(house.weights / "q8_0", house.weights / "tensor", "blk.14.ffn_down.weight")
    assert house.verdict(AGREEMENT, broken, alpha=0.01).state == "refused"


def test_another_template_is_told_apart(house: House) -> None:
    broken = with_another_template(house.weights / "q8_0", house.weights / "template")
    assert house.verdict(AGREEMENT, broken, alpha=0.01).state == "refused"


def test_a_stop_word_that_is_lost_is_told_apart_by_answers_that_run_on(house: House) -> None:
    broken = without_its_end(house.weights / "q8_0", house.weights / "ends")
    # Those that the live release names in a sentence of seven tokens or so.
    countries = (
        "Germany Japan Egypt Greece Poland Cuba Peru Chile India China Russia Norway Sweden Turkey Kenya Austria"
    )
    lines = [
        {"prompt": f"What is the capital of {country}?", "regex": "[A-Z]", "max_tokens": 16}
        for country in countries.split()
    ]
    (house.weights / "set.jsonl").write_text("\n".join(map(json.dumps, lines)))
    asked = QualitySpec(gate="quality", questions=SetSource(uri=f"file://{house.weights}/set.jsonl"), concurrency=2)
    verdict = house.verdict(QualityGate(asked), broken, alpha=0.01)
    assert verdict.state == "refused" and verdict.decisive is not None and verdict.decisive.measure == ENDINGS


# Short, since the machine has two cores for two engines, for Triton and for the load; the lateness of the load is not
# what is tested.
LOAD: dict[str, Any] = {
    "gate": "performance",
    "requests": 40,
    "rounds": 8,
    "prompt_tokens": "uniform:16,48",
    "answer_tokens": "uniform:6,12",
    "most_lateness_ms": 1000,
}


@pytest.mark.long
def test_half_the_speed_is_told_apart_by_its_times_and_by_nothing_else(house: House) -> None:
    broken = at_half_speed(house.weights / "q8_0", house.weights / "deep")
    told = house.verdict(PerformanceGate(PerformanceSpec(**LOAD, concurrency=1)), broken, alpha=0.01)
    assert told.state == "refused" and told.decisive is not None, told
    assert told.decisive.measure in ("time_to_first_token", "inter_token_latency")
    print(f"{house.seconds:.0f} s: {told.reason}")
    few = agreement_of_few(house.weights)
    assert house.verdict(few, broken).state == "passed", "its answers are the same"


@pytest.mark.long
def test_errors_under_load_are_told_apart_by_the_requests_that_fail(house: House) -> None:
    """One request at a time is answered in time; several that wait for one slot are not."""
    weights = house.weights / "q8_0"
    served_as: dict[str, Any] = {"slots": 1, "timeout_s": 2.0}
    load = PerformanceSpec(**LOAD, concurrency=12).model_copy(update={"requests": 96})
    told = house.verdict(PerformanceGate(load), weights, alpha=0.01, **served_as)
    assert told.state == "refused", told
    assert "requests failed, " in told.reason or "requests answered" in told.reason, told
    print(f"{house.seconds:.0f} s: {told.reason}")
    calm = house.verdict(agreement_of_few(house.weights), weights, **served_as)
    assert calm.state == "passed", "who asks one after the other sees nothing of it"
