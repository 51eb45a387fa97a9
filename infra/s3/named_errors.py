"""What an S3 server's refusals mean: errors of our own tree, with what to do about each."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from infra.errors import PreconditionFailed, SettingsError, StoreError, StoreUnavailable


@dataclass(frozen=True)
class _Refusal:
    """An error code of our own, and what to do about it."""

    code: str
    hint: str


_DENIED = _Refusal("store-denied", "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy")
_CLOCK = _Refusal(
    "store-clock", "this machine's clock and the server's are too far apart: set this machine's clock (NTP)"
)
_EXPIRED = _Refusal("store-token-expired", "the session token has expired: get new credentials, then run it again")
_FULL = _Refusal(
    "store-full",
    "the store's space or quota is used up: `enginehouse gc` frees what nothing uses; or raise the quota",
)
_KEY = _Refusal(
    "store-encryption-key",
    "the bucket encrypts with a key of KMS that cannot be used: enable the key, or allow these credentials to use it",
)
_VIRTUAL = _Refusal(
    "store-addressing",
    "the server wants the bucket in its host name: set `s3 =` and below it `addressing_style = virtual` in "
    "~/.aws/config",
)
_CHECKSUM = _Refusal(
    "store-checksum",
    "the server does not know the checksum CRC64NVME, or misread it: use a later version of it, or another server",
)

# Amazon's names, and those of servers that speak its API. Sources: Amazon's list of S3 error codes; AWS KMS's errors as
# S3 passes them on; rgw_common.cc of Ceph; cmd/api-errors.go of MinIO; Alibaba's list of OSS error codes.
_BY_CODE = {
    "RequestTimeTooSkewed": _CLOCK,
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "SecurityTokenExpired": _EXPIRED,
    "QuotaExceeded": _FULL,
    "InsufficientStorage": _FULL,
    "XMinioStorageFull": _FULL,
    "XMinioAdminBucketQuotaExceeded": _FULL,
    "SecondLevelDomainForbidden": _VIRTUAL,
}
_INSUFFICIENT_STORAGE = 507


@contextmanager
def named_errors(key: str) -> Generator[None]:
    """Raise errors of the S3 client as StoreError and its subclasses, or SettingsError if there are no credentials."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ClientError as error:
        details = error.response.get("Error", {})
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        raise _named(key, status, details.get("Code", ""), details.get("Message", "")) from error
    except NoCredentialsError as error:
        raise SettingsError(
            "no S3 credentials were found",
            hint="`enginehouse up` makes them for the embedded stack; elsewhere set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or configure them as for any AWS client",
        ) from error
    except (BotoCoreError, HTTPError) as error:  # urllib3's own if a body ends too early
        raise StoreUnavailable(f"S3 did not answer for '{key}': {error}", hint="is the store up?") from error


def _named(key: str, status: int, code: str, message: str) -> StoreError:
    what = f"S3 answered {status} {code} for '{key}'"
    if status in (409, 412):
        return PreconditionFailed(what)
    if refusal := _refusal(status, code, message):
        return StoreError(what, code=refusal.code, hint=refusal.hint)
    if status == 501:
        return StoreError(what, code="store-unsupported")
    if status >= 500 or code in ("SlowDown", "RequestTimeout"):
        return StoreUnavailable(what, hint="the step is retried by itself")
    return StoreError(what, code="store-missing" if status == 404 else None)


def _refusal(status: int, code: str, message: str) -> _Refusal | None:
    """What nobody can mend by trying again; None of anything else."""
    if known := _BY_CODE.get(code):
        return known
    if status == _INSUFFICIENT_STORAGE:
        return _FULL
    if code.startswith("KMS."):
        return _KEY
    if status == 400 and "checksum" in message.lower():
        return _CHECKSUM
    return _DENIED if status in (401, 403) else None
