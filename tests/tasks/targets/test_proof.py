"""The proof of a release: what it says, that others can verify it, and that it shows what was altered."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey  # pyright: ignore[reportPrivateImportUsage]

from infra.errors import ArtifactDamaged, SettingsError
from tasks.store.artifact import ArtifactRef
from tasks.store.attestation import envelope
from tasks.store.signing import signer
from tasks.targets.gate_record import Evidence, GateRecord, Verdict, VerdictState
from tasks.targets.gate_records import GateRecords
from tasks.targets.proof import PROOF, keep_proof, problems_of_proof
from tasks.targets.references import ReleaseRef
from tasks.targets.release import Intent, Result
from tasks.targets.target import Target
from tasks.targets.verification import sign, verify
from tests.fleet import Fleet


@pytest.fixture(scope="session")
def signing_keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of a key pair of each curve, and of another one."""
    folder = tmp_path_factory.mktemp("proof-keys")
    found: dict[str, str] = {}
    curves = {"ours": ec.SECP256R1(), "other": ec.SECP256R1(), "p384": ec.SECP384R1(), "p521": ec.SECP521R1()}
    for name, curve in curves.items():
        key = ec.generate_private_key(curve)
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (folder / name).write_bytes(key.private_bytes(*form))
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        (folder / f"{name}.pub").write_bytes(public)
        found |= {name: str(folder / name), f"{name}.pub": str(folder / f"{name}.pub")}
    return found


def gated(fleet: Fleet, **states: VerdictState) -> tuple[Target, Intent, Result]:
    """Release 1 with a record and a verdict for each gate."""
    made = fleet.rebuild()
    intent = fleet.target.reserve(
        made.model,
        lambda number: Intent(
            model=made.model, release=number, repository=str(made.repository), digest="d", recipe={},
            source="hf://org/tiny", flow_run="",
        ),
    )  # fmt: skip
    records = GateRecords(fleet.target, intent.model, intent.release)
    for gate in states:
        records.create(GateRecord(gate=gate, kind=gate, candidate=1, live=None, evidence=Evidence()))
    verdicts = tuple(Verdict(gate=gate, kind=gate, state=state, reason="") for gate, state in states.items())
    state: VerdictState = "refused" if "refused" in states.values() else "passed"
    state = "undecided" if state == "passed" and "undecided" in states.values() else state
    result = Result(release=intent.release, state=state, gates=verdicts, asked="a" * 64, schema_version=Result.newest)
    return fleet.target, intent, fleet.target.conclude(intent.model, result)


def stored(target: Target) -> dict[str, Any]:
    found = target.bucket.get(f"targets/test/tiny/1/{PROOF}")
    assert found is not None
    return json.loads(found.body)


def said(target: Target) -> dict[str, Any]:
    return json.loads(base64.b64decode(stored(target)["payload"]))


def test_it_is_a_statement_of_a_test_result(fleet: Fleet) -> None:
    target, intent, result = gated(fleet, smoke="passed", speed="undecided", quality="refused")
    keep_proof(target, "tiny", result)
    document = said(target)
    assert document["_type"] == "https://in-toto.io/Statement/v1"
    assert document["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    repository = fleet.store.need(intent.artifact)
    engine = fleet.store.need(ArtifactRef.parse(repository.manifest.inputs["engine"]))
    assert document["subject"] == [
        {"name": str(each.ref), "digest": {"sha256": each.manifest.digest}} for each in (repository, engine)
    ]
    predicate = document["predicate"]
    assert predicate["result"] == "FAILED"
    assert [predicate[f"{how}Tests"] for how in ("passed", "warned", "failed")] == [["smoke"], ["speed"], ["quality"]]
    named = {each["name"].removeprefix("targets/test/tiny/1/"): each["digest"] for each in predicate["configuration"]}
    gates = [f"gates/{gate}.json" for gate in ("quality", "smoke", "speed")]
    assert [*named] == ["gates", "intent.json", "result.json", *gates]
    body = target.bucket.get("targets/test/tiny/1/result.json")
    assert body is not None and named["result.json"] == {"sha256": hashlib.sha256(body.body).hexdigest()}
    assert stored(target)["signatures"] == [] and problems_of_proof(target, intent, "") == []


@pytest.mark.parametrize("state", ["passed", "undecided"])
def test_what_could_not_be_decided_is_a_warning(fleet: Fleet, state: VerdictState) -> None:
    target, _, result = gated(fleet, speed=state)
    keep_proof(target, "tiny", result)
    assert said(target)["predicate"]["result"] == {"passed": "PASSED", "undecided": "WARNED"}[state]


def test_other_code_verifies_the_signature(fleet: Fleet, signing_keys: dict[str, str]) -> None:
    target, intent, result = gated(fleet, smoke="passed")
    for curve in ("ours", "p384", "p521"):
        target.bucket.delete(f"targets/test/tiny/1/{PROOF}")
        keep_proof(replace(target, sign=signer(signing_keys[curve])), "tiny", result)
        document = stored(target)
        public = serialization.load_pem_public_key(Path(signing_keys[f"{curve}.pub"]).read_bytes())
        assert isinstance(public, ec.EllipticCurvePublicKey)
        key = SSlibKey.from_crypto(public, keyid=document["signatures"][0]["keyid"])
        read = Envelope.from_dict(document)  # pyright: ignore[reportUnknownMemberType]
        assert list(read.verify([key], 1)) == [key.keyid]
        altered = Envelope(read.payload.replace(b"PASSED", b"FAILED"), read.payload_type, read.signatures)
        with pytest.raises(VerificationError):
            altered.verify([key], 1)
        assert problems_of_proof(target, intent, f"{signing_keys['other.pub']} {signing_keys[f'{curve}.pub']}") == []


def test_it_is_kept_once_and_signed_later(fleet: Fleet, signing_keys: dict[str, str]) -> None:
    target, intent, result = gated(fleet, smoke="passed")
    keep_proof(target, "tiny", result)
    before = stored(target)
    keep_proof(replace(target, sign=signer(signing_keys["ours"])), "tiny", result)
    assert stored(target) == before
    ours, other = signing_keys["ours.pub"], signing_keys["other.pub"]
    (problem,) = problems_of_proof(target, intent, ours) or []
    assert "[signature-missing]" in problem
    release = ReleaseRef("test", "tiny", 1)
    assert str(release) in map(str, sign(target.bucket, release, signing_keys["ours"], lambda done, total: None))
    assert stored(target)["payload"] == before["payload"] and problems_of_proof(target, intent, ours) == []
    (problem,) = problems_of_proof(target, intent, other) or []
    assert "[signature-foreign]" in problem
    verdicts = verify(target.bucket, release, None, ours, lambda done, total: None)
    assert (verdicts[-1].artifact, verdicts[-1].word) == (f"test/tiny@1/{PROOF}", "intact, and signed")


def _with_payload(document: dict[str, Any], change: Callable[[dict[str, Any]], None]) -> bytes:
    statement = json.loads(base64.b64decode(document["payload"]))
    change(statement)
    return json.dumps({**document, "payload": base64.b64encode(json.dumps(statement).encode()).decode()}).encode()


def test_it_shows_what_was_altered(fleet: Fleet, signing_keys: dict[str, str]) -> None:
    target, intent, result = gated(fleet, smoke="passed", quality="passed")
    keep_proof(replace(target, sign=signer(signing_keys["ours"])), "tiny", result)
    bucket, key, ours = target.bucket, f"targets/test/tiny/1/{PROOF}", signing_keys["ours.pub"]
    document = stored(target)
    record = bucket.get("targets/test/tiny/1/gates/quality.json")
    assert record is not None
    bucket.put("targets/test/tiny/1/gates/quality.json", record.body.replace(b'"seconds":0.0', b'"seconds":1.0'))
    (problem,) = problems_of_proof(target, intent, ours) or []
    assert "gates/quality.json is not the record" in problem
    with pytest.raises(ArtifactDamaged):
        list(sign(bucket, ReleaseRef("test", "tiny", 1), signing_keys["ours"], lambda done, total: None))
    bucket.put("targets/test/tiny/1/gates/quality.json", record.body)
    assert problems_of_proof(target, intent, ours) == []

    def worse(statement: dict[str, Any]) -> None:
        statement["predicate"]["result"] = "WARNED"

    def others(statement: dict[str, Any]) -> None:
        statement["subject"][0]["digest"]["sha256"] = "0" * 64

    for change, problem in {worse: "says WARNED", others: "of other artifacts"}.items():
        bucket.put(key, _with_payload(document, change))
        (found,) = problems_of_proof(target, intent, ours) or []
        assert "[signature-invalid]" in found
        (found,) = problems_of_proof(target, intent, "") or []
        assert problem in found
    for body in (b"", b"{}", json.dumps({**document, "payload": "?"}).encode(), json.dumps([]).encode()):
        bucket.put(key, body)
        assert len(problems_of_proof(target, intent, "") or []) == 1


def test_a_release_without_artifacts_has_none(fleet: Fleet) -> None:
    target, intent, result = gated(fleet, smoke="passed")
    fleet.store.bucket.delete(f"{intent.artifact.folder}manifest.json")
    keep_proof(target, "tiny", result)
    assert problems_of_proof(target, intent, "") is None


def test_keys_that_are_none(signing_keys: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "key").write_text("nothing")
    made = envelope(b"{}")
    for key in (str(tmp_path / "key"), str(tmp_path / "missing"), signing_keys["ours.pub"]):
        with pytest.raises(SettingsError) as caught:
            made.signed(key)
        assert caught.value.code == "signature-key"
    with pytest.raises(SettingsError) as caught:
        made.signed(signing_keys["ours"]).require_signed(signing_keys["ours"], what="it", sign="it")
    assert caught.value.code == "signature-key"
