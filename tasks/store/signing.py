"""Signatures of artifacts, in the form of the library `model-signing`: a Sigstore bundle over an in-toto statement.

The statement names the artifact, KIND/MODEL/IDENTITY, and the sha256 of each of its files, so a signature is valid for
no other artifact. The library's own command verifies a downloaded folder: `model_signing verify key`. Keys are elliptic
curve keys in PEM files (P-256, P-384, P-521), as `openssl ecparam -genkey` makes them.
"""

from __future__ import annotations

import base64
import importlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from infra.errors import SettingsError, SignatureRefused
from tasks.store.artifact import ArtifactRef, Manifest
from tasks.store.identity import Identity

Sign = Callable[[ArtifactRef, Manifest], bytes]


def signer(key: str) -> Sign | None:
    """A function that signs with the private key in the file `key`; None if `key` is empty.

    The function raises SettingsError, code `signature-key` or `signature-library`.
    """
    if not key:
        return None

    def sign(ref: ArtifactRef, manifest: Manifest) -> bytes:
        config = _library("signing").Config().set_hashing_config(_KnownDigests(ref, manifest))
        with tempfile.TemporaryDirectory() as folder:
            signature = Path(folder) / "signature.json"
            try:
                config.use_elliptic_key_signer(private_key=key).sign(".", signature)
            except (OSError, ValueError, TypeError) as error:
                raise SettingsError(
                    f"cannot sign with '{key}': {error}",
                    hint="ENGINEHOUSE_SIGNING_KEY names a PEM file with an elliptic curve key and no password",
                    code="signature-key",
                ) from error
            return signature.read_bytes()

    return sign


def require_signed(public_key: str, ref: ArtifactRef, manifest: Manifest, signature: bytes | None) -> None:
    """Check that `signature` was made with the private key of `public_key`, for this artifact and these files.

    Raises SignatureRefused, code `signature-missing`, `signature-foreign` (another key), `signature-invalid`
    (altered) or `signature-other` (of other files, or of another artifact); SettingsError, code `signature-key`, if
    `public_key` is not the file of a key.
    """
    if signature is None:
        raise SignatureRefused(
            f"{ref} is not signed, and this machine serves only what is signed",
            hint=f"inspect it, then sign it on a machine with the private key: enginehouse sign {ref}",
            code="signature-missing",
        )
    try:
        config = _library("verifying").Config().use_elliptic_key_verifier(public_key=public_key)
    except (OSError, ValueError, TypeError) as error:
        raise SettingsError(
            f"'{public_key}' is not a public key: {error}",
            hint="ENGINEHOUSE_SIGNING_PUBLIC_KEY names a PEM file",
            code="signature-key",
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "signature.json"
        path.write_bytes(signature)
        try:
            config.set_hashing_config(_KnownDigests(ref, manifest)).verify(".", path)
        except Exception as error:  # the library raises many kinds, and what cannot be verified is refused
            raise _refused(ref, error) from error
    statement = json.loads(base64.b64decode(json.loads(signature)["dsseEnvelope"]["payload"]))
    named = statement["subject"][0]["name"]
    if named != str(ref):
        raise SignatureRefused(f"the signature of {ref} is for {named}", code="signature-other")
    require_own_identity(ref, manifest)


def require_own_identity(ref: ArtifactRef, manifest: Manifest) -> None:
    """Check that a manifest belongs to the artifact in whose folder it lies, and names the inputs of its identity.

    Raises SignatureRefused, code `signature-other`.
    """
    document = manifest.identity
    inputs = document.get("inputs")
    named = {role: f"sha256:{reference.rpartition('/')[2]}" for role, reference in manifest.inputs.items()}
    if Identity(document).digest != ref.identity or (manifest.kind, manifest.model) != (ref.kind, ref.model):
        raise SignatureRefused(f"the manifest of {ref} belongs to another artifact", code="signature-other")
    if inputs != named:
        raise SignatureRefused(f"the manifest of {ref} names other inputs than its identity", code="signature-other")


def _refused(ref: ArtifactRef, error: Exception) -> SignatureRefused:
    message = str(error)
    if message.startswith("Key mismatch"):
        return SignatureRefused(
            f"{ref} is signed with another key than this node's",
            hint="find out who signed it before anything else; ENGINEHOUSE_SIGNING_PUBLIC_KEY names this node's key",
            code="signature-foreign",
        )
    if message.startswith("Signature mismatch"):
        return SignatureRefused(f"the signature of {ref} is for other files: {message}", code="signature-other")
    return SignatureRefused(f"the signature of {ref} was altered: {message or type(error).__name__}")


class _KnownDigests:
    """Takes the place of the library's hashing of a folder. The manifest has the digests; `verify` checks the bytes."""

    def __init__(self, ref: ArtifactRef, manifest: Manifest) -> None:
        library, digest = _library("manifest"), _library("_hashing.hashing").Digest
        self._manifest = library.Manifest(
            str(ref),
            [
                library.FileManifestItem(
                    path=PurePosixPath(file.path), digest=digest("sha256", bytes.fromhex(file.sha256))
                )
                for file in manifest.files
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
