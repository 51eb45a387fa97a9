"""An export has the release's bytes under their digests, says where they come from, and is whole or none at all."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from google.protobuf.json_format import ParseDict
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey  # pyright: ignore[reportPrivateImportUsage]

from infra.errors import EnginehouseError
from tasks.export.release import BOM, PROVENANCE, Exported, export
from tasks.store.artifact_store import ArtifactStore
from tasks.store.signing import signer
from tests.fleet import Fleet
from tests.tasks.export.released_model import released
from tests.tasks.targets.test_proof import signing_keys

__all__ = ["signing_keys"]

# They have no types.
_statements: Any = import_module("in_toto_attestation.v1.statement")
_messages: Any = import_module("in_toto_attestation.v1.statement_pb2")
_provenance: Any = import_module("in_toto_attestation.predicates.provenance.v1.provenance_pb2")


def read(path: Path) -> Any:
    return json.loads(path.read_bytes())


def blob(folder: Path, descriptor: Any) -> bytes:
    """The bytes of a blob, which are those that the descriptor names."""
    algorithm, _, digest = descriptor["digest"].partition(":")
    body = (folder / "oci" / "blobs" / algorithm / digest).read_bytes()
    assert (hashlib.new(algorithm, body).hexdigest(), len(body)) == (digest, descriptor["size"])
    return body


def manifests(folder: Path) -> list[Any]:
    """Those of the index, in its order."""
    index = read(folder / "oci" / "index.json")
    assert index["schemaVersion"] == 2 and index["mediaType"] == "application/vnd.oci.image.index.v1+json"
    return [json.loads(blob(folder, each)) for each in index["manifests"]]


def exported(fleet: Fleet, folder: Path, **options: Any) -> Exported:
    return export(fleet.target, "tiny", 1, folder, **options)


def test_each_file_is_a_layer_as_it_is(fleet: Fleet, tmp_path: Path) -> None:
    made = released(fleet, tmp_path / "weights")
    folder = tmp_path / "out"
    done = exported(fleet, folder)
    assert read(folder / "oci" / "oci-layout") == {"imageLayoutVersion": "1.0.0"}
    model, *referring = manifests(folder)
    (tagged, *_) = read(folder / "oci" / "index.json")["manifests"]
    assert tagged["annotations"] == {"org.opencontainers.image.ref.name": "1"} and tagged["digest"] == done.digest
    assert model["artifactType"] == tagged["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    stored = {
        f"{ref.kind}/{file.path}": fleet.store.read(artifact, file.path)
        for ref in (made.engine, made.repository)
        for artifact in [fleet.store.need(ref)]
        for file in artifact.manifest.files
    }
    titled = {each["annotations"]["org.opencontainers.image.title"]: blob(folder, each) for each in model["layers"]}
    assert titled == stored and done.files == 4 and done.size == sum(map(len, stored.values()))
    kinds = {each["annotations"]["org.cncf.model.filepath"]: each["mediaType"] for each in model["layers"]}
    assert kinds["engine/data.bin"] == "application/vnd.cncf.model.weight.v1.raw"
    assert kinds["engine/deep/limits.json"] == "application/vnd.cncf.model.weight.config.v1.raw"
    config = json.loads(blob(folder, model["config"]))
    assert config["modelfs"]["diffIds"] == [each["digest"] for each in model["layers"]]
    assert config["descriptor"] | {"createdAt": ""} == {
        "createdAt": "",
        "name": "tiny",
        "version": "1",
        "family": "llama",
        "sourceURL": f"pkg:huggingface/org/tiny@{'a' * 40}",
        "revision": "a" * 40,
        "licenses": ["Apache-2.0"],
    }
    assert (config["config"]["precision"], config["config"]["quantization"]) == ("bfloat16", "fp8")
    bodies = [(each["subject"]["digest"], blob(folder, each["layers"][0])) for each in referring]
    assert bodies == [(done.digest, (folder / name).read_bytes()) for name in (PROVENANCE, BOM)]
    blob(folder, referring[0]["config"])
    assert exported(fleet, tmp_path / "again") == replace(done, folder=tmp_path / "again")


def test_its_provenance_is_read_and_verified_by_other_code(
    fleet: Fleet, tmp_path: Path, signing_keys: dict[str, str]
) -> None:
    made = released(fleet, tmp_path / "weights")
    folder = tmp_path / "out"
    done = exported(fleet, folder, signing_key=signing_keys["ours"])
    envelope = Envelope.from_dict(read(folder / PROVENANCE))  # pyright: ignore[reportUnknownMemberType]
    public = load_pem_public_key(Path(signing_keys["ours.pub"]).read_bytes())
    key = SSlibKey.from_crypto(public, keyid=read(folder / PROVENANCE)["signatures"][0]["keyid"])
    assert done.signed and list(envelope.verify([key], 1)) == [key.keyid]
    altered = Envelope(envelope.payload.replace(b"fp8", b"fp4"), envelope.payload_type, envelope.signatures)
    with pytest.raises(VerificationError):
        altered.verify([key], 1)

    said = json.loads(envelope.payload)
    message = _statements.Statement.copy_from_pb(ParseDict(said, _messages.Statement()))  # an unknown field is an error
    message.validate()
    ParseDict(said["predicate"], _provenance.Provenance())
    assert said["predicateType"] == "https://slsa.dev/provenance/v1"
    model = manifests(folder)[0]
    assert [f"sha256:{each['digest']['sha256']}" for each in said["subject"]] == [
        done.digest,
        *(layer["digest"] for layer in model["layers"]),
    ]
    definition, details = said["predicate"]["buildDefinition"], said["predicate"]["runDetails"]
    assert definition["externalParameters"]["recipe"]["quantization"] == "fp8"
    assert definition["externalParameters"]["source"] == "hf://org/tiny@main"
    needed = {each["name"]: each for each in definition["resolvedDependencies"]}
    assert needed["org/tiny"]["digest"] == {"gitCommit": "a" * 40}
    readme = (tmp_path / "weights" / "README.md").read_bytes()
    assert needed[f"{made.snapshot}/README.md"]["digest"] == {"sha256": hashlib.sha256(readme).hexdigest()}
    assert needed["tensorrt_llm 1.1.0"]["uri"] == "pkg:pypi/tensorrt-llm@1.1.0" and "NVIDIA H200" in needed
    assert details["metadata"]["invocationId"] == "some-run"
    assert [each["name"] for each in details["byproducts"]] == [str(made.checkpoint)]
    assert base64.b64decode(read(folder / PROVENANCE)["payload"]) == envelope.payload


def test_its_bill_of_materials_names_each_part(fleet: Fleet, tmp_path: Path) -> None:
    made = released(fleet, tmp_path / "weights")
    done = exported(fleet, tmp_path / "out")
    bom = read(tmp_path / "out" / BOM)
    model = bom["metadata"]["component"]
    assert (bom["bomFormat"], bom["specVersion"], model["type"]) == ("CycloneDX", "1.6", "machine-learning-model")
    assert model["hashes"] == [{"alg": "SHA-256", "content": done.digest.removeprefix("sha256:")}]
    assert model["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    parameters = model["modelCard"]["modelParameters"]
    assert (parameters["architectureFamily"], parameters["modelArchitecture"]) == ("llama", "LlamaForCausalLM")
    assert parameters["datasets"] == [{"type": "dataset", "name": "org/texts"}]
    metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert metrics == [{"type": "same: next-token agreement", "value": "0.98125"}]
    assert [each["name"] for each in model["pedigree"]["ancestors"]] == ["org/tiny", "org/base"]
    parts = {each["bom-ref"]: each for each in bom["components"]}
    assert len(parts) == len(bom["components"]) and bom["dependencies"][0]["dependsOn"] == list(parts)
    layers = {each["annotations"]["org.cncf.model.filepath"]: each for each in manifests(tmp_path / "out")[0]["layers"]}
    files = {name: part["hashes"][0]["content"] for name, part in parts.items() if part["type"] == "file"}
    assert files == {name: layer["digest"].removeprefix("sha256:") for name, layer in layers.items()}
    assert parts["runtime/tensorrt_llm"]["version"] == "1.1.0" and parts["runtime/NVIDIA H200"]["type"] == "device"
    assert str(made.engine) in str(model["modelCard"]["properties"])


def test_a_killed_export_is_no_layout_and_goes_on(fleet: Fleet, tmp_path: Path) -> None:
    released(fleet, tmp_path / "weights")
    folder = tmp_path / "out"

    def killed(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        exported(fleet, folder, progress=killed)
    assert not (folder / "oci" / "index.json").exists()
    blobs = folder / "oci" / "blobs" / "sha256"
    large = sorted(path for path in blobs.iterdir() if path.stat().st_size == 6400)
    assert large
    large[0].write_bytes(b"?" * 6400)
    kept = {path: path.stat().st_mtime_ns for path in large[1:]}
    (blobs / ("0" * 64)).write_bytes(b"of an earlier call")
    exported(fleet, folder)
    whole = manifests(folder)
    assert {blob(folder, layer) for layer in whole[0]["layers"]} and not (blobs / ("0" * 64)).exists()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    large[0].write_bytes(b"?")
    exported(fleet, folder)  # a whole one too
    assert manifests(folder)[0] == whole[0] and len(large[0].read_bytes()) == 6400


def test_what_cannot_be_exported_says_why(fleet: Fleet, tmp_path: Path, signing_keys: dict[str, str]) -> None:
    made = released(fleet, tmp_path / "weights")

    def refused(folder: Path, release: int = 1, **options: Any) -> EnginehouseError:
        with pytest.raises(EnginehouseError) as caught:
            export(fleet.target, "tiny", release, folder, **options)
        assert caught.value.hint
        return caught.value

    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "bom.cdx.json").write_text("mine")
    for name in ("file", "full"):
        assert refused(tmp_path / name).code == "export-folder"
    assert (tmp_path / "full" / "bom.cdx.json").read_text() == "mine"
    exported(fleet, tmp_path / "out")
    fleet.release(fleet.rebuild(quantization="nvfp4"))
    assert refused(tmp_path / "out", 2).code == "export-folder"
    assert refused(tmp_path / "other", 9).code == "release-missing"
    assert refused(tmp_path / "other", public_keys=signing_keys["ours.pub"]).code == "signature-missing"
    assert refused(tmp_path / "other", signing_key=str(tmp_path / "file")).code == "signature-key"
    attempt = fleet.store.need(made.engine).manifest.attempt
    fleet.store.bucket.delete(f"{made.engine.folder}{attempt}/data.bin")
    assert refused(tmp_path / "other").code == "artifact-damaged"
    assert not (tmp_path / "other").exists()


def test_signatures_of_the_artifacts_come_with_it(fleet: Fleet, tmp_path: Path, signing_keys: dict[str, str]) -> None:
    signing = replace(fleet, store=ArtifactStore(fleet.store.bucket, signer(signing_keys["ours"])))
    signing = replace(signing, target=replace(fleet.target, sign=signer(signing_keys["ours"])))
    released(signing, tmp_path / "weights")
    exported(fleet, tmp_path / "out", public_keys=signing_keys["ours.pub"])
    for name in ("engine", "repository"):
        assert read(tmp_path / "out" / f"{name}.sig")["dsseEnvelope"]["signatures"]
