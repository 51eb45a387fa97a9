"""Signatures of artifacts and intents, in the form of the library `model-signing`: a bundle over an in-toto statement.

A statement has a name and the sha256 of each file. That of an artifact is named KIND/IDENTITY/ATTEMPT (in the layout of
before KIND/MODEL/IDENTITY), that of an intent by its key in the store: a signature is valid for nothing else. The
library's own command verifies a downloaded artifact: `model_signing verify key`. Keys are elliptic curve keys in PEM
files (P-256, P-384, P-521), as `openssl ecparam -genkey` makes them. Several public keys may be valid at once, while
one takes another's place.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from infra.errors import SettingsError, SignatureRefused
from tasks.store.artifact import ArtifactRef, Manifest
from tasks.store.identity import Identity


@dataclass(frozen=True)
class Statement:
    """What a signature says: these files, hexadecimal sha256 by path, are what is called `name`."""

    name: str
    files: Mapping[str, str]


@dataclass(frozen=True)
class Sign:
    """Signs with the private key in the file `key`."""

    key: str

    def __call__(self, statement: Statement) -> bytes:
        """The signature. Raises SettingsError, code `signature-key` or `signature-library`."""
        config = _library("signing").Config().set_hashing_config(_KnownDigests(statement))
        with tempfile.TemporaryDirectory() as folder:
            signature = Path(folder) / "signature.json"
            try:
                config.use_elliptic_key_signer(private_key=self.key).sign(".", signature)
            except (OSError, ValueError, TypeError) as error:
                raise SettingsError(
                    f"cannot sign with '{self.key}': {error}",
                    hint="ENGINEHOUSE_SIGNING_KEY names a PEM file with an elliptic curve key and no password",
                    code="signature-key",
                ) from error
            return signature.read_bytes()


def artifact_statement(ref: ArtifactRef, manifest: Manifest) -> Statement:
    # Nodes that know the layout of before alone read signatures of the form that they know.
    name = str(ref) if ref.model else f"{ref}/{manifest.attempt}"
    return Statement(name, {file.path: file.sha256 for file in manifest.files})


def record_statement(key: str, body: bytes) -> Statement:
    """Of a record that is created once, at `key` in the store."""
    return Statement(key, {key.rpartition("/")[2]: hashlib.sha256(body).hexdigest()})


def signer(key: str) -> Sign | None:
    """What signs with the private key in the file `key`; None if `key` is empty."""
    return Sign(key) if key else None


def require_signed_artifact(public_keys: str, ref: ArtifactRef, manifest: Manifest, signature: bytes | None) -> None:
    """As `require_signed`, for this artifact, these files and the inputs of its identity."""
    require_signed(public_keys, artifact_statement(ref, manifest), signature, what=str(ref), sign=str(ref))
    require_own_identity(ref, manifest)


def require_signed(public_keys: str, statement: Statement, signature: bytes | None, *, what: str, sign: str) -> None:
    """Check that `signature` was made for `statement`, with the private key of one of `public_keys`: files, as words.

    `what` names it in messages, and `enginehouse sign SIGN` signs it.
    Raises SignatureRefused, code `signature-missing`, `signature-foreign` (another key), `signature-invalid` (altered)
    or `signature-other` (of other files, or of something else); SettingsError, code `signature-key`, if a public key is
    not the file of a key.
    """
    if signature is None:
        raise SignatureRefused(
            f"{what} is not signed, and this machine serves only what is signed",
            hint=f"inspect it, then sign it on a machine with the private key: enginehouse sign {sign}",
            code="signature-missing",
        )
    foreign: SignatureRefused | None = None
    for public_key in public_keys.split():
        try:
            _verify(public_key, statement, signature, what)
        except SignatureRefused as error:
            if error.code != "signature-foreign":
                raise
            foreign = error
        else:
            return
    assert foreign is not None  # there is a public key
    raise foreign


def _verify(public_key: str, statement: Statement, signature: bytes, what: str) -> None:
    try:
        config = _library("verifying").Config().use_elliptic_key_verifier(public_key=public_key)
    except (OSError, ValueError, TypeError) as error:
        raise SettingsError(
            f"'{public_key}' is not a public key: {error}",
            hint="ENGINEHOUSE_SIGNING_PUBLIC_KEY names a PEM file, or several",
            code="signature-key",
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "signature.json"
        path.write_bytes(signature)
        try:
            config.set_hashing_config(_KnownDigests(statement)).verify(".", path)
        except Exception as error:  # the library raises many kinds, and what cannot be verified is refused
            raise _refused(what, error) from error
    signed = json.loads(base64.b64decode(json.loads(signature)["dsseEnvelope"]["payload"]))
    named = signed["subject"][0]["name"]
    if named != statement.name:
        raise SignatureRefused(f"the signature of {what} is for {named}", code="signature-other")


def require_own_identity(ref: ArtifactRef, manifest: Manifest) -> None:
    """Check that a manifest belongs to the artifact in whose folder it lies, and names the inputs of its identity.

    Raises SignatureRefused, code `signature-other`.
    """
    document = manifest.identity
    inputs = document.get("inputs")
    named = {role: f"sha256:{reference.rpartition('/')[2]}" for role, reference in manifest.inputs.items()}
    other_model = bool(ref.model) and manifest.model != ref.model
    if Identity(document).digest != ref.identity or manifest.kind != ref.kind or other_model:
        raise SignatureRefused(f"the manifest of {ref} belongs to another artifact", code="signature-other")
    if inputs != named:
        raise SignatureRefused(f"the manifest of {ref} names other inputs than its identity", code="signature-other")


def _refused(what: str, error: Exception) -> SignatureRefused:
    message = str(error)
    if message.startswith("Key mismatch"):
        return SignatureRefused(
            f"{what} is signed with another key than this node's",
            hint="find out who signed it before anything else; ENGINEHOUSE_SIGNING_PUBLIC_KEY names this node's keys",
            code="signature-foreign",
        )
    if message.startswith("Signature mismatch"):
        return SignatureRefused(f"the signature of {what} is for other files: {message}", code="signature-other")
    return SignatureRefused(f"the signature of {what} was altered: {message or type(error).__name__}")


class _KnownDigests:
    """Takes the place of the library's hashing of a folder. The manifest has the digests; `verify` checks the bytes."""

    def __init__(self, statement: Statement) -> None:
        library, digest = _library("manifest"), _library("_hashing.hashing").Digest
        self._manifest = library.Manifest(
            statement.name,
            [
                library.FileManifestItem(path=PurePosixPath(path), digest=digest("sha256", bytes.fromhex(sha256)))
                for path, sha256 in statement.files.items()
            ],
            library.SerializationType.from_args({"method": "files", "hash_type": "sha256", "allow_symlinks": False}),
        )

    def hash(self, folder: Path, *, files_to_hash: object = None) -> Any:
        return self._manifest

    def add_ignored_paths(self, *, model_path: Path, paths: object) -> None:
        """Ignore no path, whatever the signature asks for: its files then differ from the artifact's."""


def _library(module: str) -> Any:
    try:
        return importlib.import_module(f"model_signing.{module}")
    except ImportError:
        raise SettingsError(
            "the package model-signing is not installed", hint="pip install -e '.[signing]'", code="signature-library"
        ) from None
