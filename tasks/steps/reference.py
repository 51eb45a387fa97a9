"""Read the reference of a candidate's weights, once: what they say before they are quantized, at the gate's places."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from infra.errors import ArtifactDamaged, StepFailed
from tasks.garbage.keep import note_use
from tasks.gates.agreement.passages import Passage
from tasks.gates.agreement.reference import identity_of, is_wanted, places, read_passages
from tasks.gates.protocol import FoundReference
from tasks.kinds.reference import Reference
from tasks.models.gate_specs.agreement import AgreementSpec
from tasks.serving.contract import GenerationRequest, RequestRefused
from tasks.serving.engine import Engine, EngineFailed
from tasks.steps.context import Context, Done
from tasks.steps.convert import convert
from tasks.steps.plan import Plan
from tasks.store.artifact import ArtifactRef
from tasks.store.artifact_store import ArtifactStore
from tasks.store.identity import Identity
from tasks.store.record import record_bytes
from tasks.store.reference import TOKENS_FILE, ReferenceToken, ReferenceTokens
from tasks.targets.target import Target

_VERSION = 1


@dataclass(frozen=True)
class PlannedReference:
    """The reference that one gate asks for."""

    asked: AgreementSpec
    passages: tuple[Passage, ...]
    source: Reference
    plan: Plan
    """Of `source.model`, whose checkpoint answers."""

    @property
    def identity(self) -> Identity:
        fields = {**self.source.fields(), **identity_of(self.passages, self.asked.positions)}
        return Identity.of("reference", _VERSION, inputs={"checkpoint": self.plan.checkpoint}, fields=fields)

    @property
    def ref(self) -> ArtifactRef:
        return ArtifactRef("reference", self.identity.digest)


def planned_reference(plan: Plan, asked: AgreementSpec) -> PlannedReference | None:
    """The reference of a plan's weights at the places of a gate. None for a kind that has none.

    Raises UsageError `set-missing`, `set-invalid`, `set-changed`.
    """
    source = plan.kind.reference()
    if source is None:
        return None
    of_source = Plan.of(source.model, plan.snapshot, plan.adapter)
    return PlannedReference(asked, read_passages(asked), source, of_source)


def wanted_references(plan: Plan, target: Target, release: int) -> Iterator[PlannedReference]:
    """The references that the gates of a candidate will look for."""
    gates = plan.model.gates
    for asked in () if gates is None else gates.asked.values():
        if not isinstance(asked, AgreementSpec) or asked.reference == "never":
            continue
        beside = target.current(plan.model.name)[0].beside_candidates
        live = None if beside is None else target.intent(plan.model.name, beside)
        planned = planned_reference(plan, asked)
        if planned is not None and is_wanted(asked, target.intent(plan.model.name, release), live):
            yield planned


def make_reference(context: Context, planned: PlannedReference) -> Done:
    """Return the reference in the store, `cached` if the store had it.

    Raises StepFailed `reference-failed` if the weights do not answer at some place, `reference-slow` if they have not
    answered everywhere after the gate's `max_seconds`, as `convert` does, and StoreError.
    """
    plan, ref = planned.plan, planned.ref
    note_use(context.store.bucket, plan.model.name, (ref, plan.checkpoint_ref), context.flow_run)

    def work(output: Path) -> None:
        convert(context, plan)
        checkpoint = context.workspace.bring(context.store, plan.checkpoint_ref, context.reporter.progress)
        context.reporter.say(f"the reference, {planned.source.model.kind}, reads {len(planned.passages)} passages")
        (output / TOKENS_FILE).write_bytes(record_bytes(read_reference(planned, checkpoint)))

    return context.make_once(
        ref,
        planned.identity,
        work,
        task="reference",
        inputs={"checkpoint": plan.checkpoint_ref},
        model=plan.model.name,
        refresh=False,
    )


def find_reference(store: ArtifactStore, plan: Plan, asked: AgreementSpec) -> FoundReference:
    """The reference that was made for a gate, or why there is none. Raises UsageError and StoreError."""
    planned = planned_reference(plan, asked)
    if planned is None:
        return FoundReference(missing=f"kind {plan.model.kind} has none on this machine")
    found = store.look_up(planned.ref)
    if found.artifact is None:
        return FoundReference(missing=f"{planned.ref}: {found.problem}")
    try:
        tokens = ReferenceTokens.model_validate_json(store.read(found.artifact, TOKENS_FILE))
    except ValidationError as error:
        raise ArtifactDamaged(f"{planned.ref}: '{TOKENS_FILE}' is no reference") from error
    return FoundReference(tokens, str(planned.ref))


def read_reference(planned: PlannedReference, checkpoint: Path) -> ReferenceTokens:
    """What a checkpoint says at each place. Raises StepFailed `reference-failed` and `reference-slow`."""
    asked = list(places(planned.passages, planned.asked.positions))
    try:
        engine = planned.source.load(checkpoint)
        tokens = asyncio.run(_answers(engine, asked, planned.asked.max_seconds))
    except (EngineFailed, RequestRefused) as error:
        raise StepFailed(
            f"the reference of {planned.source.model.name} did not answer: {error}",
            hint="ask for no reference in the gate's section of the model's file, or for passages that fit into "
            "serving.context_tokens",
            code="reference-failed",
        ) from error
    return ReferenceTokens(kind=planned.source.model.kind, tokens=tuple(tokens))


async def _answers(engine: Engine, asked: Sequence[tuple[Passage, str]], max_seconds: float) -> list[ReferenceToken]:
    answers: list[ReferenceToken] = []
    try:
        async with asyncio.timeout(max_seconds):
            for passage, prefix in asked:
                answers.append(await _next(engine, passage, prefix))
    except TimeoutError:
        raise _slow(len(answers), len(asked), max_seconds) from None
    finally:
        await engine.close()
    return answers


async def _next(engine: Engine, passage: Passage, prefix: str) -> ReferenceToken:
    request = GenerationRequest(text_input=prefix, max_tokens=1, temperature=0.0)
    async with aclosing(engine.generate(request)) as pieces:
        found = [piece async for piece in pieces]
    return ReferenceToken(
        passage=passage.name,
        cut=len(prefix),
        text="".join(piece.text for piece in found),
        tokens=sum(piece.output_tokens for piece in found),
    )


def _slow(done: int, places: int, max_seconds: float) -> StepFailed:
    return StepFailed(
        f"the reference has answered at {done} of {places} places after {max_seconds:g} s",
        hint="give the gate more `max_seconds`, or fewer passages or positions",
        code="reference-slow",
    )
