"""Every byte against its manifest, signatures, and a node that places nothing altered or unsigned."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from infra.errors import ArtifactDamaged, SettingsError, SignatureRefused, UsageError
from tasks.serving.settings import ServingSettings
from tasks.store.artifact import Artifact, ArtifactRef, signature_key
from tasks.store.artifact_store import ArtifactStore
from tasks.store.identity import Identity
from tasks.store.record import record_bytes
from tasks.store.signing import artifact_statement, require_signed_artifact, signer
from tasks.store.verify import bring, check_signature, problems_in_folder, problems_in_store
from tasks.targets.node_report import ReleaseReport
from tasks.targets.references import ReleaseRef
from tasks.targets.verification import sign, verify
from tasks.triton.repository import write_release
from tests.recording_node import running_node

if TYPE_CHECKING:
    from tests.fleet import Fleet


def flip(path: Path) -> None:
    """One bit of one byte, in a file that may be read-only."""
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def add(path: Path) -> None:
    path.write_text("print('not ours')")


def replace_by_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


DAMAGE: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "flipped": ("data.bin", flip, "'data.bin' was altered: its sha256 is "),
    "missing": ("deep/limits.json", Path.unlink, "'deep/limits.json' is missing"),
    "extra": ("deep/extra.py", add, "'deep/extra.py' is extra"),
    "link": ("data.bin", replace_by_link, "'data.bin' is a link"),
}
"""What happens to which file, and how the problem then begins."""


@pytest.fixture
def engine(fleet: Fleet) -> Artifact:
    return fleet.store.need(fleet.rebuild().engine)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_folder(fleet: Fleet, engine: Artifact, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "copy"
    fleet.store.download(engine, folder)
    seen: list[tuple[int, int]] = []
    assert problems_in_folder(engine.manifest, folder, lambda done, total: seen.append((done, total))) == []
    assert seen[-1] == (engine.manifest.size, engine.manifest.size)
    path, change, problem = DAMAGE[damage]
    change(folder / path)
    problems = problems_in_folder(engine.manifest, folder)
    assert len(problems) == 1 and problems[0].startswith(problem)


def test_the_store(fleet: Fleet, engine: Artifact) -> None:
    bucket, attempt = fleet.store.bucket, f"{engine.ref.folder}{engine.manifest.attempt}/"
    assert problems_in_store(bucket, engine) == []
    record = bucket.get(attempt + "data.bin")
    assert record is not None
    bucket.put(attempt + "data.bin", record.body[:-1] + b"?")
    bucket.delete(attempt + "deep/limits.json")
    bucket.put(attempt + "deep/extra.py", b"print('not ours')")
    found = problems_in_store(bucket, engine)
    expected = ("'data.bin' was altered", "'deep/limits.json' is missing", "'deep/extra.py' is extra")
    assert [problem.startswith(start) for problem, start in zip(found, expected, strict=True)] == [True] * 3


def test_a_release_is_its_repository_and_its_engine(fleet: Fleet, tmp_path: Path) -> None:
    made = fleet.rebuild()
    fleet.release(made)
    bucket = fleet.store.bucket
    from tasks.targets.references import find

    public = find(bucket, "tiny", "test")
    verdicts = verify(bucket, public, None, "", lambda done, total: None)
    assert [verdict.artifact for verdict in verdicts] == [str(made.repository), str(made.engine)]
    assert all(verdict.word == "intact" for verdict in verdicts)
    with pytest.raises(UsageError) as caught:
        verify(bucket, public, tmp_path, "", lambda done, total: None)
    assert caught.value.code == "not-on-node"
    for ref in (made.repository, made.engine):
        _, folder = bring(fleet.store, ref, tmp_path / "artifacts")
    flip(folder / "data.bin")
    verdicts = verify(bucket, public, tmp_path, "", lambda done, total: None)
    assert [len(verdict.problems) for verdict in verdicts] == [0, 1]


def test_a_damaged_copy_is_named_put_aside_and_downloaded_again(fleet: Fleet, engine: Artifact, tmp_path: Path) -> None:
    for _ in range(2):
        _, folder = bring(fleet.store, engine.ref, tmp_path)
        flip(folder / "data.bin")
        folder.chmod(0o755)
        (folder / "deep").chmod(0o555)  # as an engine that is served where it lies
        with pytest.raises(ArtifactDamaged) as caught:
            bring(fleet.store, engine.ref, tmp_path)
        assert caught.value.code == "artifact-damaged" and caught.value.retryable
        assert str(engine.ref) in caught.value.message and "'data.bin'" in caught.value.message
    _, folder = bring(fleet.store, engine.ref, tmp_path)
    assert problems_in_folder(engine.manifest, folder) == []
    assert sorted(path.name for path in folder.parent.iterdir()) == sorted([folder.name, f"{folder.name}.damaged"])


# Signatures


@pytest.fixture
def keys(signing_keys: dict[str, str]) -> dict[str, str]:
    return signing_keys


def signed_with(fleet: Fleet, key: str) -> Fleet:
    """The same store, published to by a machine that has a key."""
    make = signer(key)
    return type(fleet)(ArtifactStore(fleet.store.bucket, make), replace(fleet.target, sign=make), fleet.folder)


def code_of(fleet: Fleet, artifact: Artifact, key: str) -> str:
    with pytest.raises(SignatureRefused) as caught:
        check_signature(fleet.store.bucket, artifact, key)
    return caught.value.code


def test_what_is_published_with_a_key_is_signed(fleet: Fleet, keys: dict[str, str], tmp_path: Path) -> None:
    made = signed_with(fleet, keys["ours"]).rebuild()
    artifact = fleet.store.need(made.engine)
    check_signature(fleet.store.bucket, artifact, keys["ours.pub"])
    assert code_of(fleet, artifact, keys["other.pub"]) == "signature-foreign"
    # The library's own command verifies a downloaded folder.
    record = fleet.store.bucket.get(signature_key(artifact.ref, artifact.manifest.attempt))
    assert record is not None
    (tmp_path / "signature").write_bytes(record.body)
    fleet.store.download(artifact, tmp_path / "engine")
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(tmp_path / "engine")]
    command += ["--signature", str(tmp_path / "signature"), "--public_key", keys["ours.pub"]]
    assert subprocess.run(command, capture_output=True).returncode == 0
    flip(tmp_path / "engine" / "data.bin")
    assert subprocess.run(command, capture_output=True).returncode != 0


def test_what_is_not_signed_can_be_once_it_was_looked_at(fleet: Fleet, keys: dict[str, str]) -> None:
    made = fleet.rebuild()
    artifact = fleet.store.need(made.engine)
    assert code_of(fleet, artifact, keys["ours.pub"]) == "signature-missing"
    assert list(sign(fleet.store.bucket, made.engine, keys["ours"], lambda done, total: None)) == [made.engine]
    check_signature(fleet.store.bucket, artifact, keys["ours.pub"])
    attempt = _attempt(fleet, made.repository)
    fleet.store.bucket.put(f"{made.repository.folder}{attempt}/data.bin", b"?")
    with pytest.raises(ArtifactDamaged) as caught:
        list(sign(fleet.store.bucket, made.repository, keys["ours"], lambda done, total: None))
    assert caught.value.code == "artifact-damaged" and "'data.bin'" in caught.value.message
    assert fleet.store.bucket.get(signature_key(made.repository, attempt)) is None


def _attempt(fleet: Fleet, ref: ArtifactRef) -> str:
    return fleet.store.need(ref).manifest.attempt


def test_a_signature_fits_nothing_else(fleet: Fleet, keys: dict[str, str]) -> None:
    ours = signed_with(fleet, keys["ours"])
    artifact, other = (fleet.store.need(ours.rebuild(slots=slots).repository) for slots in (1, 2))
    signature = fleet.store.bucket.get(signature_key(artifact.ref, artifact.manifest.attempt))
    assert signature is not None

    def code(ref: ArtifactRef, manifest: object, body: bytes) -> str:
        with pytest.raises(SignatureRefused) as caught:
            require_signed_artifact(keys["ours.pub"], ref, type(artifact.manifest).model_validate(manifest), body)
        return caught.value.code

    require_signed_artifact(keys["ours.pub"], artifact.ref, artifact.manifest, signature.body)
    # Another artifact's signature; that artifact's manifest with it; equal files under another name; other inputs.
    assert code(other.ref, other.manifest, signature.body) == "signature-other"
    assert code(other.ref, artifact.manifest, signature.body) == "signature-other"
    renamed = ArtifactRef("repository", artifact.ref.identity, "renamed")
    assert code(renamed, artifact.manifest, signature.body) == "signature-other"
    engine = {"engine": f"engine/{'0' * 64}"}
    assert code(artifact.ref, artifact.manifest.model_copy(update={"inputs": engine}), signature.body) == (
        "signature-other"
    )
    # A manifest whose files were exchanged, and a signature that was altered.
    files = tuple(file.model_copy(update={"sha256": "0" * 64}) for file in artifact.manifest.files)
    assert code(artifact.ref, artifact.manifest.model_copy(update={"files": files}), signature.body) == (
        "signature-other"
    )
    for body in (b"", b"{}", signature.body.replace(b'"sig":"ME', b'"sig":"MF'), signature.body[:-20]):
        assert code(artifact.ref, artifact.manifest, body) == "signature-invalid"


def test_keys_that_are_none(fleet: Fleet, engine: Artifact, keys: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "key").write_text("nothing")
    for key in (str(tmp_path / "key"), str(tmp_path / "missing"), keys["ours.pub"]):
        make = signer(key)
        assert make is not None
        with pytest.raises(SettingsError) as caught:
            make(artifact_statement(engine.ref, engine.manifest))
        assert caught.value.code == "signature-key"
    for key in (str(tmp_path / "key"), str(tmp_path / "missing"), keys["ours"]):
        with pytest.raises(SettingsError) as caught:
            require_signed_artifact(key, engine.ref, engine.manifest, b"{}")
        assert caught.value.code == "signature-key"
    assert signer("") is None


# The node


def reported(fleet: Fleet, *states: str) -> ReleaseReport:
    """The node's report of release 1, once it is in one of `states`, or has an error."""
    until = time.monotonic() + 60
    while True:
        for node in fleet.target.nodes():
            report = node.models["tiny"].releases.get(1) if "tiny" in node.models else None
            if report is not None and (report.state in states or report.error):
                return report
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture
def servable(fleet: Fleet, keys: dict[str, str]) -> ArtifactRef:
    """Release 1 with real Triton models, signed with our key; returns its engine."""
    ours = signed_with(fleet, keys["ours"])
    folder = fleet.folder / "models"
    write_release(
        folder,
        ServingSettings(
            engine="llamacpp",
            engine_path="engine/data.bin",
            slots=1,
            context_tokens=64,
            chat_template=False,
            request_timeout_s=5,
        ),
    )
    made = ours.rebuild()
    identity = Identity.of("assemble", 9, inputs={"engine": _identity(fleet, made.engine)}, fields={})
    repository = ours.publish("repository", "tiny", identity, folder)
    ours.release(type(made)(made.snapshot, made.checkpoint, made.engine, repository))
    return made.engine


def _identity(fleet: Fleet, ref: ArtifactRef) -> Identity:
    return Identity(fleet.store.need(ref).manifest.identity)


LOADED = ["tiny--r1--llm", "tiny--r1"]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_node_places_nothing_altered(
    fleet: Fleet,
    servable: ArtifactRef,
    keys: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
) -> None:
    path, change, problem = DAMAGE[damage]
    _, folder = bring(fleet.store, servable, tmp_path / "node" / "artifacts")
    change(folder / path)
    with running_node(fleet, tmp_path / "node", monkeypatch, keys["ours.pub"]) as triton:
        error = reported(fleet, "ready", "failed").error
    assert problem in error and "[artifact-damaged]" in error and str(servable) in error
    assert triton.loads == [] and list((tmp_path / "node" / "models").iterdir()) == []
    # The damaged copy is put aside, so the next try is made with what the store has.
    fleet.target.bucket.delete("targets/test/nodes/one.json")
    with running_node(fleet, tmp_path / "node", monkeypatch, keys["ours.pub"]) as triton:
        assert reported(fleet, "ready").error == ""
    assert triton.loads[:2] == LOADED


def test_what_an_earlier_triton_was_given_is_placed_again(
    fleet: Fleet, servable: ArtifactRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed = tmp_path / "node" / "models" / LOADED[0] / "1" / "engine" / "data.bin"
    with running_node(fleet, tmp_path / "node", monkeypatch):
        assert reported(fleet, "ready").error == ""
    whole = placed.read_bytes()
    flip(placed)
    fleet.target.bucket.delete("targets/test/nodes/one.json")
    with running_node(fleet, tmp_path / "node", monkeypatch) as triton:
        assert reported(fleet, "ready").error == ""
    assert triton.loads[:2] == LOADED and placed.read_bytes() == whole


@pytest.mark.parametrize("signature", ["signature-foreign", "signature-missing", "signature-invalid"])
def test_a_node_with_a_key_places_nothing_signed_by_another(
    fleet: Fleet,
    servable: ArtifactRef,
    keys: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    signature: str,
) -> None:
    artifact = fleet.store.need(servable)
    key = signature_key(servable, artifact.manifest.attempt)
    if signature == "signature-foreign":
        list(sign(fleet.store.bucket, servable, keys["other"], lambda done, total: None))
    elif signature == "signature-missing":
        fleet.store.bucket.delete(key)
    else:
        fleet.store.bucket.put(key, b"{}")
    with running_node(fleet, tmp_path / "node", monkeypatch, keys["ours.pub"]) as triton:
        report = reported(fleet, "ready", "failed")
    assert report.state == "failed" and f"[{signature}]" in report.error and str(servable) in report.error
    assert triton.loads == [] and not (tmp_path / "node" / "artifacts" / servable.identity).exists()


def intent_of(fleet: Fleet, key: str, **changes: object) -> str:
    """Release 1's intent with other values, signed with `key` where there is one; returns its key in the store."""
    name = "targets/test/tiny/1/intent.json"
    fleet.store.bucket.put(name, record_bytes(fleet.target.intent("tiny", 1).model_copy(update=changes)))
    if key and (make := signer(key)):
        fleet.target.sign_intent("tiny", 1, make)
    return name


@pytest.mark.parametrize("signed", ["signature-missing", "signature-foreign", "signature-other"])
def test_a_node_with_a_key_places_only_what_a_signed_intent_names(
    fleet: Fleet,
    servable: ArtifactRef,
    keys: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    signed: str,
) -> None:
    """Any release of the store is signed; the intent that says which model answers with it must be too."""
    intent_of(fleet, keys["other"] if signed == "signature-foreign" else "", ranks=3, source="by somebody else")
    if signed == "signature-other":  # the signature of another release's intent, in the place of this one's
        bucket, ours = fleet.store.bucket, signed_with(fleet, keys["ours"])
        ours.release(ours.rebuild("other"), public=False)
        (foreign,) = [entry.key for entry in bucket.list("targets/test/other/1/signatures/")]
        stored, body = bucket.get(foreign), bucket.get("targets/test/tiny/1/intent.json")
        assert stored is not None and body is not None
        bucket.put(f"targets/test/tiny/1/signatures/{hashlib.sha256(body.body).hexdigest()}.json", stored.body)
    with running_node(fleet, tmp_path / "node", monkeypatch, keys["ours.pub"]) as triton:
        report = reported(fleet, "ready", "failed")
        assert f"[{signed}]" in report.error and triton.loads == []
        if signed == "signature-missing":
            assert "enginehouse sign tiny@1 --target test" in report.hint
    # Signed by whoever has the key, it is placed.
    intent_of(fleet, keys["ours"], ranks=0)
    fleet.target.bucket.delete("targets/test/nodes/one.json")
    with running_node(fleet, tmp_path / "node", monkeypatch, keys["ours.pub"]) as triton:
        assert reported(fleet, "ready").error == ""
    assert triton.loads[:2] == LOADED


def test_two_keys_are_valid_while_one_takes_the_others_place(fleet: Fleet, keys: dict[str, str]) -> None:
    both = f"{keys['ours.pub']} {keys['other.pub']}"
    for key in ("ours", "other"):
        made = signed_with(fleet, keys[key]).rebuild(key, commit=key * 8)
        signed_with(fleet, keys[key]).release(made)
        artifact = fleet.store.need(made.engine)
        check_signature(fleet.store.bucket, artifact, both)
        assert fleet.target.trusted_intent(key, 1, both).model == key
        assert code_of(fleet, artifact, keys["other.pub" if key == "ours" else "ours.pub"]) == "signature-foreign"
    fleet.store.bucket.put(signature_key(made.engine, artifact.manifest.attempt), b"{}")
    assert code_of(fleet, artifact, both) == "signature-invalid"


def test_signing_a_release_signs_its_intent_too(fleet: Fleet, keys: dict[str, str]) -> None:
    made = fleet.rebuild()
    fleet.release(made)
    release = ReleaseRef("test", "tiny", 1)
    before = verify(fleet.store.bucket, release, None, keys["ours.pub"], lambda done, total: None)
    assert ["[signature-missing]" in verdict.word for verdict in before] == [True] * 3
    assert list(sign(fleet.store.bucket, release, keys["ours"], lambda done, total: None)) == [
        made.repository,
        made.engine,
        release,
    ]
    after = verify(fleet.store.bucket, release, None, keys["ours.pub"], lambda done, total: None)
    assert [verdict.word for verdict in after] == ["intact, and signed"] * 3
    # What is signed is the bytes in the store, whatever fields a later version adds to the record.
    assert fleet.target.trusted_intent("tiny", 1, keys["ours.pub"]) == fleet.target.intent("tiny", 1)
