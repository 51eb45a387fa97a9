"""Attestations: what is said of artifacts in a form that other programs read, signed like the artifacts themselves.

An envelope (DSSE 1.0) around an in-toto statement. The key is that of `signing`; without one nobody has signed, and the
envelope says so with an empty list.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from infra.errors import ArtifactDamaged, SettingsError, SignatureRefused

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey, EllipticCurvePublicKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Signed(_Frozen):
    """One signature. `keyid` is the sha256 of the public key's PEM text, as `model-signing` names keys."""

    keyid: str = ""
    sig: str


class Envelope(_Frozen):
    """A payload in base64, and who has signed it."""

    payloadType: Literal["application/vnd.in-toto+json"]
    payload: str
    signatures: tuple[Signed, ...] = ()

    @classmethod
    def read(cls, body: bytes, what: str) -> Envelope:
        """Raises ArtifactDamaged, code `record-invalid`, naming it as `what`."""
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            raise ArtifactDamaged(f"{what} is no envelope of a statement", code="record-invalid") from error

    @property
    def statement(self) -> bytes:
        """The statement as it was signed."""
        return base64.b64decode(self.payload)

    def signed(self, key: str) -> Envelope:
        """The same with a signature of the private key in the file `key`, in place of others.

        Raises SettingsError, code `signature-key`.
        """
        private = _private_key(key)
        signature = private.sign(_encoded(self.statement), _ecdsa(private.public_key()))
        by = Signed(keyid=_key_id(private.public_key()), sig=base64.b64encode(signature).decode())
        return self.model_copy(update={"signatures": (by,)})

    def require_signed(self, public_keys: str, *, what: str, sign: str) -> None:
        """Check that the private key of one of `public_keys` has signed: files, as words.

        `what` names it in messages, and `enginehouse sign SIGN` signs it. Raises SignatureRefused, code
        `signature-missing`, `signature-foreign` or `signature-invalid`, and SettingsError, code `signature-key`.
        """
        if not self.signatures:
            raise SignatureRefused(
                f"{what} is not signed",
                hint=f"inspect it, then sign it on a machine with the private key: enginehouse sign {sign}",
                code="signature-missing",
            )
        ours = {_key_id(key): key for key in map(_public_key, public_keys.split())}
        known = [signed for signed in self.signatures if signed.keyid in ours]
        if not known:
            raise SignatureRefused(f"{what} is signed with another key than this machine's", code="signature-foreign")
        if not any(self._holds(signed, ours[signed.keyid]) for signed in known):
            raise SignatureRefused(f"{what} was altered after it was signed", code="signature-invalid")

    def _holds(self, signed: Signed, key: EllipticCurvePublicKey) -> bool:
        from cryptography.exceptions import InvalidSignature

        try:
            key.verify(base64.b64decode(signed.sig), _encoded(self.statement), _ecdsa(key))
        except (InvalidSignature, ValueError):
            return False
        return True


def envelope(statement: bytes) -> Envelope:
    """An envelope that nobody has signed yet."""
    return Envelope(payloadType=PAYLOAD_TYPE, payload=base64.b64encode(statement).decode())


def _encoded(statement: bytes) -> bytes:
    """What is signed: DSSE's pre-authentication encoding."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(statement), statement)


def _ecdsa(key: EllipticCurvePublicKey) -> ECDSA:
    """With the hash of the curve's size, as Sigstore's specification pairs them."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA

    size = key.curve.key_size
    return ECDSA(hashes.SHA256() if size == 256 else hashes.SHA384() if size == 384 else hashes.SHA512())


def _key_id(key: EllipticCurvePublicKey) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _private_key(file: str) -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(Path(file).read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise _no_key(file) from error
    if not isinstance(key, EllipticCurvePrivateKey):
        raise _no_key(file)
    return key


def _public_key(file: str) -> EllipticCurvePublicKey:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(Path(file).read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise _no_key(file) from error
    if not isinstance(key, EllipticCurvePublicKey):
        raise _no_key(file)
    return key


def _no_key(file: str) -> SettingsError:
    return SettingsError(
        f"'{file}' is not an elliptic curve key",
        hint="ENGINEHOUSE_SIGNING_KEY and ENGINEHOUSE_SIGNING_PUBLIC_KEY name PEM files without a password",
        code="signature-key",
    )
