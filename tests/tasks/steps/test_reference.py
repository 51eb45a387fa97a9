"""The reference of a candidate's weights, in a real store: read once, from an engine that a function answers for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import JsonValue

from infra.errors import StepFailed, UsageError
from infra.s3.bucket import Bucket
from tasks.explain.lineage import lineage
from tasks.gates.agreement.passages import Passage
from tasks.gates.agreement.reference import places
from tasks.kinds.llamacpp import LlamaCppKind
from tasks.kinds.reference import LlamaCppReference
from tasks.models.catalogue import load_model
from tasks.models.gate_specs.agreement import AgreementSpec
from tasks.models.gates import Gates
from tasks.models.spec import Model
from tasks.serving.contract import GenerationRequest, RequestRefused
from tasks.serving.engine import EngineFailed, Piece
from tasks.steps.context import Context
from tasks.steps.plan import Plan
from tasks.steps.reference import (
    PlannedReference,
    find_reference,
    left_to_worker,
    make_reference,
    obstacle,
    planned_reference,
    require_references,
    wanted_references,
)
from tasks.steps.workspace import Workspace
from tasks.store.artifact import Producer
from tasks.store.artifact_store import ArtifactStore
from tasks.store.identity import Identity
from tasks.store.reference import ReferenceTokens
from tasks.targets.release import Intent
from tasks.targets.target import Target
from tasks.weights.config import facts_of
from tests.standin import weights

CATALOGUE = Path(__file__).parents[3] / "deployments" / "models"
SNAPSHOT = Identity.of("fetch", 1, inputs={}, fields={"source": {"pin": "one"}})
PASSAGES = tuple(Passage(f"p{number}", f"{number} words come one after the other") for number in range(4))
ASKED = AgreementSpec(positions=2, reference="auto")


def model(quantization: str = "q8_0", dtype: str = "float16", **gates: Any) -> Model:
    embedded = load_model(CATALOGUE / "smollm2-135m.yaml")
    recipe = embedded.recipe.model_copy(update={"quantization": quantization, "dtype": dtype})
    asked = {"agreement": {"positions": 2, "reference": "auto"}, **gates}
    return embedded.model_copy(update={"recipe": recipe, "gates": Gates.model_validate(asked)})


@dataclass
class Echo:
    """Says the last word of a prompt. `answers` may raise."""

    answers: Callable[[str], str]
    prompts: list[GenerationRequest] = field(default_factory=list[GenerationRequest])
    closed: int = 0
    seconds: float = 0
    """How long it takes for an answer."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Piece]:
        self.prompts.append(request)
        await asyncio.sleep(self.seconds)
        yield Piece(self.answers(request.text_input), output_tokens=1)
        yield Piece("", finish_reason="length")

    def cache_usage(self) -> float | None:
        return None

    async def close(self) -> None:
        self.closed += 1


def last_word(prompt: str) -> str:
    return prompt.split()[-1]


@dataclass(frozen=True)
class Source:
    """The reference of a model whose weights are an `Echo`."""

    model: Model
    engine: Echo
    lacks: str = ""

    def fields(self) -> Mapping[str, JsonValue]:
        return {"kind": "echo"}

    def lacking(self) -> str:
        return self.lacks

    def load(self, checkpoint: Path) -> Echo:
        assert (checkpoint / "model.gguf").read_text() == "weights"
        return self.engine


@dataclass(frozen=True)
class Line:
    """A store that has the checkpoint of a plan."""

    context: Context
    planned: PlannedReference
    engine: Echo


@pytest.fixture
def line(bucket: Bucket, tmp_path: Path) -> Line:
    plan, engine = Plan.of(model(), SNAPSHOT), Echo(last_word)
    store = ArtifactStore(bucket)
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "model.gguf").write_text("weights")
    producer = Producer(task="convert", code="test")
    store.publish(plan.checkpoint_ref, plan.checkpoint, tmp_path / "checkpoint", inputs={}, producer=producer)
    planned = PlannedReference(ASKED, PASSAGES, Source(plan.model, engine), plan)
    return Line(Context(store, Workspace(tmp_path / "work" / ("0" * 64)), "run", 60), planned, engine)


def test_it_is_read_once_and_knows_where_it_comes_from(line: Line) -> None:
    made = make_reference(line.context, line.planned)
    again = make_reference(line.context, line.planned)
    assert (made.cached, again.cached, line.engine.closed) == (False, True, 1)
    assert made.artifact is not None and again.artifact == made.artifact
    manifest = made.artifact.manifest
    assert manifest.inputs == {"checkpoint": str(line.planned.plan.checkpoint_ref)} and manifest.kind == "reference"
    assert {(each.max_tokens, each.temperature) for each in line.engine.prompts} == {(1, 0.0)}
    tokens = ReferenceTokens.model_validate_json(line.context.store.read(made.artifact, "tokens.json")).tokens
    asked = list(places(PASSAGES, 2))
    assert [(each.passage, each.cut) for each in tokens] == [(of.name, len(prefix)) for of, prefix in asked]
    assert [(each.text, each.tokens) for each in tokens] == [(last_word(prefix), 1) for _, prefix in asked]
    found = lineage(line.context.store.bucket, line.planned.plan.checkpoint_ref)
    assert str(line.planned.ref) in found.outputs(str(line.planned.plan.checkpoint_ref))


def test_recipes_of_the_same_weights_share_it_and_other_places_do_not() -> None:
    def ref(asked: AgreementSpec = ASKED, **recipe: str) -> str:
        planned = planned_reference(Plan.of(model(**recipe), SNAPSHOT), asked)
        assert planned is not None
        return str(planned.ref)

    assert ref() == ref(quantization="q4_0") == ref(ASKED.model_copy(update={"margin": 0.2}))
    assert len({ref(), ref(dtype="bfloat16"), ref(ASKED.model_copy(update={"positions": 3}))}) == 3


def test_a_gate_finds_what_was_made_and_is_told_what_was_not(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    store, plan = line.context.store, line.planned.plan
    before = find_reference(store, plan, ASKED)
    assert before.tokens is None and not before.artifact and "not in the store" in before.missing

    def planned(plan: Plan, asked: AgreementSpec) -> PlannedReference:
        return line.planned

    monkeypatch.setattr("tasks.steps.reference.planned_reference", planned)
    make_reference(line.context, line.planned)
    found = find_reference(store, plan, ASKED)
    assert found.artifact == str(line.planned.ref) and found.tokens is not None and len(found.tokens.tokens) == 8


def _none(self: LlamaCppKind) -> None:
    return None


def _lacks_torch(self: LlamaCppReference) -> str:
    return "the package torch"


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kind has no reference."""
    monkeypatch.setattr(LlamaCppKind, "reference", _none)


ALWAYS = Plan.of(model(agreement={"reference": "always"}), SNAPSHOT)


def test_a_kind_without_one_says_so(line: Line, without: None) -> None:
    store, plan = line.context.store, line.planned.plan
    assert planned_reference(plan, ASKED) is None
    assert "kind llamacpp has none" in find_reference(store, plan, ASKED).missing
    require_references(store, plan, here=False)  # auto goes without
    with pytest.raises(UsageError) as caught:
        require_references(store, ALWAYS, here=False)
    assert caught.value.code == "reference-missing" and "kind llamacpp has none" in caught.value.message


def test_a_machine_without_its_packages_takes_what_another_one_has_read(line: Line, bucket: Bucket) -> None:
    store, planned = line.context.store, line.planned
    lacking = replace(planned, source=Source(planned.source.model, line.engine, "the package torch"))
    assert obstacle(store, lacking).endswith(" lacks the package torch") and obstacle(store, planned) == ""
    make_reference(line.context, planned)
    assert obstacle(store, lacking) == ""


def test_what_this_machine_cannot_read_is_left_to_a_worker_or_refused(
    line: Line, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, targets = line.context.store, [Target(bucket, "test")]
    assert left_to_worker(store, ALWAYS, targets) == left_to_worker(store, line.planned.plan, targets) == set()
    monkeypatch.setattr(LlamaCppReference, "lacking", _lacks_torch)
    assert left_to_worker(store, ALWAYS, targets) == {"always"}
    assert left_to_worker(store, line.planned.plan, targets) == {"auto"}
    assert left_to_worker(store, Plan.of(model(agreement={}), SNAPSHOT), targets) == set()
    require_references(store, ALWAYS, here=False)
    with pytest.raises(UsageError) as caught:
        require_references(store, ALWAYS, here=True)
    assert caught.value.code == "reference-missing" and "lacks the package torch" in caught.value.message


def of_llama(recipe: Mapping[str, Any], reference: str = "always") -> Plan:
    found = load_model(CATALOGUE / "llama3-8b-instruct.yaml").model_dump(mode="json", exclude_none=True, by_alias=True)
    document = {**found, "recipe": recipe, "gates": {"agreement": {"reference": reference}}, "adapters": {}}
    document["serving"] = {"slots": 2, "context_tokens": 256}
    return Plan.of(Model.model_validate(document), SNAPSHOT)


RUNTIME = {"tensorrt_llm": "1.2.1", "gpu": "NVIDIA H200", "arch": "sm90", "gpus": 1}
OF_CHECKPOINTS: Mapping[str, Mapping[str, Any]] = {
    "transformers": {"kind": "transformers", "dtype": "float32"},
    "on a GPU": {"kind": "transformers", "arch": "sm90"},
    "llmapi": {"kind": "llmapi", "runtime": RUNTIME, "quantization": "fp8"},
}


def test_what_is_made_of_one_checkpoint_of_hugging_face_has_one_reference() -> None:
    asked = AgreementSpec(reference="always")
    planned = [planned_reference(of_llama(recipe), asked) for recipe in OF_CHECKPOINTS.values()]
    assert len({str(each.ref) for each in planned if each is not None}) == 1 and None not in planned
    for each in planned:
        assert each is not None and each.plan.kind.pool() == "build-cpu"
        assert (each.source.model.kind, each.plan.model.recipe.model_dump()["dtype"]) == ("transformers", "auto")
    plain = of_llama(OF_CHECKPOINTS["transformers"])
    assert planned[2] is not None and planned[2].plan.checkpoint_ref == plain.checkpoint_ref


def test_weights_that_pytorch_does_not_read_are_refused_before_they_are_fetched(line: Line, tmp_path: Path) -> None:
    facts = facts_of(weights.make(tmp_path / "quantized", quantization_config=weights.GPTQ))
    require_references(line.context.store, of_llama(OF_CHECKPOINTS["llmapi"], "auto"), facts, here=False)
    with pytest.raises(UsageError) as caught:
        require_references(line.context.store, of_llama(OF_CHECKPOINTS["llmapi"]), facts, here=False)
    assert caught.value.code == "reference-missing" and "quantized already" in caught.value.message


@pytest.mark.parametrize("error", [EngineFailed("it ended"), RequestRefused("the prompt is too long")])
def test_weights_that_do_not_answer_fail_the_step_and_leave_nothing(line: Line, error: Exception) -> None:
    def fails(prompt: str) -> str:
        raise error

    line.engine.answers = fails
    with pytest.raises(StepFailed) as caught:
        make_reference(line.context, line.planned)
    assert caught.value.code == "reference-failed" and str(error) in caught.value.message and caught.value.hint
    assert line.engine.closed == 1 and line.context.store.find(line.planned.ref) is None


def test_one_that_takes_too_long_is_no_half_reference(line: Line) -> None:
    line.engine.seconds = 3600
    slow = replace(line.planned, asked=ASKED.model_copy(update={"max_seconds": 0.05}))
    with pytest.raises(StepFailed) as caught:
        make_reference(line.context, slow)
    assert caught.value.code == "reference-slow" and "0 of 8 places" in caught.value.message
    assert line.engine.closed == 1 and line.context.store.find(slow.ref) is None


def test_it_is_read_where_no_live_release_is_beside_or_its_precision_is_another(line: Line, bucket: Bucket) -> None:
    target, plan = Target(bucket, "test"), line.planned.plan

    def candidate(quantization: str) -> int:
        def intent(number: int) -> Intent:
            recipe: dict[str, JsonValue] = {"kind": "llamacpp", "quantization": quantization}
            return Intent(
                model=plan.model.name, release=number, repository=str(plan.repository_ref), digest="d", recipe=recipe,
                source="file:///weights", flow_run="",
            )  # fmt: skip

        return target.reserve(plan.model.name, intent).release

    def wanted(release: int, plan: Plan = plan) -> list[str]:
        return [str(planned.ref) for planned in wanted_references(plan, target, release)]

    first = candidate("q8_0")
    assert len(wanted(first)) == 1
    target.move(plan.model.name, lambda current: current.model_copy(update={"public": first}))
    same, other = candidate("q8_0"), candidate("q4_0")
    assert wanted(same) == [] and len(wanted(other)) == 1
    always = Plan.of(model(agreement={"positions": 2, "reference": "always"}), SNAPSHOT)
    assert len(wanted(same, always)) == 1
    never = Plan.of(model(agreement={"positions": 2}), SNAPSHOT)
    assert wanted(other, never) == [] and not never.model.asks_reference and plan.model.asks_reference
    target.move(plan.model.name, lambda current: current.model_copy(update={"alone": True}))
    assert len(wanted(same)) == 1
