"""Verifies an exported release in an environment without Enginehouse: its packages and the standard library are all.

    python -I stock_tools.py FOLDER PUBLIC_KEY PULLED [REGISTRY]

FOLDER is the export, PUBLIC_KEY a PEM file, PULLED an empty folder. With REGISTRY, `host:port` of one that takes images
without a key, the release is pushed there and pulled again. Prints a line for each thing that holds; ends by an
exception at the first that does not.
"""

# Its packages are in that environment alone.
# pyright: basic, reportMissingImports=false, reportAttributeAccessIssue=false, reportPrivateImportUsage=false

from __future__ import annotations

import hashlib
import importlib.util
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any


def main(folder: Path, public_key: Path, pulled: Path, registry: str = "") -> None:
    for name in ("tasks", "deployments", "infra"):
        assert importlib.util.find_spec(name) is None, f"Enginehouse is here: {name}"
    print("no Enginehouse in", sys.prefix)
    bill_of_materials(folder / "bom.cdx.json")
    said = envelope(folder / "provenance.intoto.json", public_key)
    layers = layout(folder / "oci")
    subjects = {each["name"]: each["digest"]["sha256"] for each in said["subject"]}
    assert layers.items() <= subjects.items()
    print(f"provenance: its subjects are the {len(layers)} layers and the manifest of the layout")
    if registry:
        round_trip(folder / "oci", registry, pulled, layers)
        for name in ("engine", "repository"):
            signature(folder / f"{name}.sig", public_key, pulled / name)


def bill_of_materials(path: Path) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    validator = JsonStrictValidator(SchemaVersion.V1_6)
    text = path.read_text()
    assert (problem := validator.validate_str(text)) is None, problem
    assert validator.validate_str(text.replace('"machine-learning-model"', '"model"')) is not None
    print(f"cyclonedx-python-lib {version('cyclonedx-python-lib')}: {path.name} is a strict CycloneDX 1.6 document")


def envelope(path: Path, public_key: Path) -> Any:
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from google.protobuf.json_format import ParseDict
    from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
    from in_toto_attestation.v1.statement import Statement
    from in_toto_attestation.v1.statement_pb2 import Statement as Message
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import VerificationError
    from securesystemslib.signer import SSlibKey

    document = json.loads(path.read_bytes())
    keyid = document["signatures"][0]["keyid"]  # reading takes it out of the document
    read = Envelope.from_dict(document)
    key = SSlibKey.from_crypto(load_pem_public_key(public_key.read_bytes()), keyid)
    assert list(read.verify([key], 1)) == [key.keyid]
    try:
        Envelope(read.payload + b" ", read.payload_type, read.signatures).verify([key], 1)
    except VerificationError:
        print(f"securesystemslib {version('securesystemslib')}: {path.name} is signed, and one more byte is refused")
    else:
        raise AssertionError("an altered envelope counts as signed")
    said = json.loads(read.payload)
    Statement.copy_from_pb(ParseDict(said, Message())).validate()
    ParseDict(said["predicate"], Provenance())
    print(f"in-toto-attestation {version('in-toto-attestation')}: a statement with {said['predicateType']}")
    return said


def layout(folder: Path) -> dict[str, str]:
    """The sha256 of each file of the release, by its name."""
    from oras.layout import NewLayout

    read = NewLayout(str(folder))
    (tagged,) = [
        each for each in json.loads((folder / "index.json").read_bytes())["manifests"] if each.get("annotations")
    ]
    tag = tagged["annotations"]["org.opencontainers.image.ref.name"]
    blobs = read.get_ordered_blobs(tag)
    assert tagged["digest"] == blobs[-1]
    manifest = json.loads((folder / "blobs" / tagged["digest"].replace(":", "/")).read_bytes())
    print(f"oras {version('oras')}: a layout whose tag {tag} has {len(blobs)} blobs")
    return {
        layer["annotations"]["org.opencontainers.image.title"]: layer["digest"].removeprefix("sha256:")
        for layer in manifest["layers"]
    }


def round_trip(folder: Path, registry: str, pulled: Path, layers: dict[str, str]) -> None:
    from oras.client import OrasClient
    from oras.layout import NewLayout

    client = OrasClient(hostname=registry, insecure=True)
    (tagged,) = [
        each for each in json.loads((folder / "index.json").read_bytes())["manifests"] if each.get("annotations")
    ]
    tag = tagged["annotations"]["org.opencontainers.image.ref.name"]
    target = f"{registry}/models/tiny:{tag}"
    answer = NewLayout(str(folder)).push_to_registry(client, target, tag=tag)
    assert answer.headers["Docker-Content-Digest"] == tagged["digest"]
    print(f"oras {version('oras')}: pushed to a registry, which calls it {tagged['digest'][:19]}… too")
    files = {str(Path(each).relative_to(pulled)): Path(each) for each in client.pull(target=target, outdir=str(pulled))}
    found = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    assert found == layers
    print(f"oras {version('oras')}: pulled {len(found)} files, each with the digest that the provenance names")


def signature(path: Path, public_key: Path, files: Path) -> None:
    program = Path(sys.executable).parent / "model_signing"
    command = [program, "verify", "key", "--signature", path, "--public_key", public_key, files]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    altered = next(each for each in files.rglob("*") if each.is_file())
    altered.write_bytes(altered.read_bytes() + b" ")
    assert subprocess.run(list(map(str, command)), capture_output=True).returncode != 0
    print(f"model-signing {version('model-signing')}: {path.name} is that of {files.name}/, and not of an altered file")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:5])
