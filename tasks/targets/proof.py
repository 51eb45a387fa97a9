"""The proof of a release: which tests its artifacts passed, as an attestation that other programs read.

targets/TARGET/MODEL/N/test-result.intoto.json   created once, when the release has a result

An in-toto statement with the predicate `test-result` 0.1. Its subjects are the release's repository and engine by their
digests; its configuration names the records that it rests on by theirs, so that it also shows a record that was altered
since. A gate that could not decide is a test with a warning.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict, ValidationError

from infra.errors import ArtifactDamaged, PreconditionFailed, SignatureRefused
from tasks.store.artifact import Artifact, ArtifactRef
from tasks.store.attestation import Envelope, envelope
from tasks.store.identity import canonical
from tasks.store.in_toto import Resource, Statement
from tasks.store.inventory import recorded_artifact
from tasks.targets.gate_record import VerdictState
from tasks.targets.release import Intent, Result
from tasks.targets.target import Target

PROOF = "test-result.intoto.json"
_RESULTS: dict[VerdictState, str] = {"passed": "PASSED", "undecided": "WARNED", "refused": "FAILED"}
_TEST_PROMPTS = "test prompts"
"""The one test of a release whose record names no gates."""


class TestResult(BaseModel):
    """The predicate: https://github.com/in-toto/attestation/blob/main/spec/predicates/test-result.md."""

    __test__ = False
    model_config = ConfigDict(frozen=True, extra="ignore")

    result: str
    configuration: tuple[Resource, ...]
    passedTests: tuple[str, ...] = ()
    warnedTests: tuple[str, ...] = ()
    failedTests: tuple[str, ...] = ()


class Proof(Statement[TestResult]):
    """What the proof says."""

    predicateType: str = "https://in-toto.io/attestation/test-result/v0.1"


def keep_proof(target: Target, model: str, result: Result) -> None:
    """Keep the proof of a release that has this result, unless it has one; signed where the target signs.

    A release whose artifacts were collected gets none. Raises SettingsError, code `signature-key`.
    """
    key = _key(target, model, result.release)
    if target.bucket.get(key) is not None:
        return
    intent = target.intent(model, result.release)
    artifacts = _artifacts(target, intent)
    if not artifacts:
        return
    made = envelope(_bytes(_statement(target, intent, result, artifacts)))
    signed = made if target.sign is None else made.signed(target.sign.key)
    try:
        target.bucket.create(key, _body(signed))
    except PreconditionFailed:
        return  # another run was quicker, with the same proof


def problems_of_proof(target: Target, intent: Intent, public_keys: str) -> list[str] | None:
    """What is wrong with the proof of a release; None if it has none. With `public_keys` its signature counts too."""
    stored = target.bucket.get(_key(target, intent.model, intent.release))
    if stored is None:
        return None
    what = f"the proof of {intent.model} release {intent.release} on target '{target.name}'"
    try:
        found = Envelope.read(stored.body, what)
        if public_keys:
            sign = f"{intent.model}@{intent.release} --target {target.name}"
            found.require_signed(public_keys, what=what, sign=sign)
        return list(_differences(target, intent, Proof.model_validate_json(found.statement), what))
    except (ArtifactDamaged, SignatureRefused) as error:
        return [str(error)]
    except (ValidationError, ValueError):
        return [f"{what} holds no statement of a test result"]


def sign_proof(target: Target, intent: Intent) -> None:
    """Sign the proof of a release, if it has one that is true. Raises ArtifactDamaged if it is not."""
    key = _key(target, intent.model, intent.release)
    stored = target.bucket.get(key)
    if stored is None or target.sign is None:
        return
    if problems := problems_of_proof(target, intent, ""):
        raise ArtifactDamaged(f"the proof is not signed: {'; '.join(problems)}")
    signed = Envelope.read(stored.body, key).signed(target.sign.key)
    target.bucket.swap(key, _body(signed), stored.etag)


def _statement(target: Target, intent: Intent, result: Result, artifacts: tuple[Artifact, ...]) -> Proof:
    of = {each.gate: each.state for each in result.gates} or {_TEST_PROMPTS: result.state}
    passed, warned, failed = (
        tuple(name for name, state in of.items() if state == wanted) for wanted in ("passed", "undecided", "refused")
    )
    asked = [Resource(name="gates", digest={"sha256": result.asked})] if result.asked else []
    return Proof(
        subject=tuple(map(_subject, artifacts)),
        predicate=TestResult(
            result=_RESULTS[result.state],
            configuration=(*asked, *_records(target, intent)),
            passedTests=passed,
            warnedTests=warned,
            failedTests=failed,
        ),
    )


def _differences(target: Target, intent: Intent, said: Proof, what: str) -> Iterator[str]:
    """In what the proof and what lies in the store differ."""
    result = target.result(intent.model, intent.release)
    artifacts = _artifacts(target, intent)
    if result is None or not artifacts:
        yield f"{what} is of a release whose {'artifacts were collected' if result else 'result is gone'}"
        return
    true = _statement(target, intent, result, artifacts)
    if said.subject != true.subject:
        yield f"{what} is of other artifacts"
    there = {each.name: each.digest for each in true.predicate.configuration}
    for each in said.predicate.configuration:
        if there.get(each.name) != each.digest:
            yield f"{each.name} is not the record that {what} rests on"
    if said.predicate.model_copy(update={"configuration": true.predicate.configuration}) != true.predicate:
        yield f"{what} says {said.predicate.result}, and its result {true.predicate.result}"


def _subject(artifact: Artifact) -> Resource:
    return Resource(name=str(artifact.ref.own), digest={"sha256": artifact.manifest.digest})


def _records(target: Target, intent: Intent) -> Iterator[Resource]:
    """The intent, the result and the evidence of each gate, as they lie in the store."""
    folder = f"{target.prefix}{intent.model}/{intent.release}/"
    gates = sorted(entry.key for entry in target.bucket.list(f"{folder}gates/"))
    for key in (f"{folder}intent.json", f"{folder}result.json", *gates):
        if (stored := target.bucket.get(key)) is not None:
            yield Resource(name=key, digest={"sha256": hashlib.sha256(stored.body).hexdigest()})


def _artifacts(target: Target, intent: Intent) -> tuple[Artifact, ...]:
    """The repository and its engine; none if one of them is not there."""
    repository = recorded_artifact(target.bucket, intent.artifact)
    if repository is None or "engine" not in repository.manifest.inputs:
        return ()
    engine = recorded_artifact(target.bucket, ArtifactRef.parse(repository.manifest.inputs["engine"]))
    return () if engine is None else (repository, engine)


def _key(target: Target, model: str, release: int) -> str:
    return f"{target.prefix}{model}/{release}/{PROOF}"


def _bytes(statement: Proof) -> bytes:
    return canonical(statement.model_dump(mode="json", by_alias=True))


def _body(signed: Envelope) -> bytes:
    return canonical(signed.model_dump(mode="json"))
