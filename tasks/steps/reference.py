"""Read the reference of a candidate's weights, once: what they say before they are quantized, at the gate's places."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue, ValidationError

from infra.errors import ArtifactDamaged, StepFailed, UsageError
from tasks.garbage.keep import note_use
from tasks.gates.agreement.passages import Passage
from tasks.gates.agreement.reference import identity_of, is_wanted, places, read_passages
from tasks.gates.protocol import FoundReference
from tasks.kinds.reference import Reference
from tasks.models.gate_specs.agreement import AgreementSpec, UseReference
from tasks.models.spec import Model
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
from tasks.weights.facts import WeightsFacts

_VERSION = 1
_HAS_NONE = "kind {} has none"


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
    return _wanted(plan, target, target.intent(plan.model.name, release).recipe)


def planned_references(plan: Plan) -> list[PlannedReference]:
    """Those that the gates of a model's file may look for, whatever is live."""
    planned = (planned_reference(plan, asked) for asked in _asking(plan.model))
    return [each for each in planned if each is not None]


def left_to_worker(store: ArtifactStore, plan: Plan, targets: Iterable[Target]) -> frozenset[UseReference]:
    """How the gates of a candidate on these targets will ask for references that the store lacks, and that this machine
    cannot read for want of a package. Raises as `planned_reference` does."""
    recipe = plan.model.recipe.model_dump(mode="json")
    wanted = (planned for target in targets for planned in _wanted(plan, target, recipe))
    return frozenset(planned.asked.reference for planned in wanted if obstacle(store, planned))


def require_references(store: ArtifactStore, plan: Plan, facts: WeightsFacts | None = None, *, here: bool) -> None:
    """Refuse, before anything large is done, what a gate would wait for in vain. `facts` are those of the weights.

    Raises UsageError `reference-missing` where a gate asks for the reference always, and it can neither be found nor
    made: by the kind, of these weights or, with `here`, on this machine. And as `planned_reference` does.
    """
    for asked in _asking(plan.model):
        if asked.reference != "always":
            continue
        planned = planned_reference(plan, asked)
        if planned is None:
            raise missing(plan.model, _HAS_NONE.format(plan.model.kind))
        why = (obstacle(store, planned) if here else "") or _unfit(planned, facts)
        if why and store.find(planned.ref) is None:
            raise missing(plan.model, why)


def missing(model: Model, why: str) -> UsageError:
    return UsageError(
        f"{model.name} is always to be compared with its reference, and there can be none: {why}",
        hint=f"install what is missing where it is read, or say `reference: auto` in the file of {model.name}",
        code="reference-missing",
    )


def obstacle(store: ArtifactStore, planned: PlannedReference) -> str:
    """Why this machine cannot make a reference that the store lacks. Empty if it can. Raises StoreError."""
    lacking = planned.source.lacking()
    if not lacking or store.find(planned.ref) is not None:
        return ""
    return f"{socket.gethostname()} lacks {lacking}"


def _unfit(planned: PlannedReference, facts: WeightsFacts | None) -> str:
    """Why nothing reads the reference of weights with these facts."""
    try:
        if facts is not None:
            planned.plan.kind.require_weights(facts)
    except UsageError as error:
        return error.message
    return ""


def _wanted(plan: Plan, target: Target, recipe: Mapping[str, JsonValue]) -> Iterator[PlannedReference]:
    for asked in _asking(plan.model):
        beside = target.current(plan.model.name)[0].beside_candidates
        live = None if beside is None else target.intent(plan.model.name, beside)
        planned = planned_reference(plan, asked)
        if planned is not None and is_wanted(asked, recipe, live):
            yield planned


def _asking(model: Model) -> Iterator[AgreementSpec]:
    """What gates ask that may compare with a reference."""
    for asked in () if model.gates is None else model.gates.asked.values():
        if isinstance(asked, AgreementSpec) and asked.reference != "never":
            yield asked


def make_reference(context: Context, planned: PlannedReference) -> Done:
    """Return the reference in the store, `cached` if the store had it.

    Raises StepFailed `reference-failed` if the weights do not answer at some place, `reference-slow` if they have not
    answered everywhere after the gate's `max_seconds`, as `convert` does, UsageError if what reads the reference takes
    no such weights, and StoreError.
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
        return FoundReference(missing=_HAS_NONE.format(plan.model.kind))
    found = store.look_up(planned.ref)
    if found.artifact is None:
        why = obstacle(store, planned)
        return FoundReference(missing=f"{planned.ref}: {found.problem}{f', and {why}' if why else ''}")
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
