"""What a server refuses, and what the hint then speaks of. Whether trying again can help is part of it."""

from __future__ import annotations

from typing import Any, cast

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

from infra.errors import EnginehouseError, SettingsError, StoreUnavailable
from infra.s3.named_errors import named_errors


def named(error: Exception) -> EnginehouseError:
    with pytest.raises(EnginehouseError) as caught, named_errors("key"):
        raise error
    return caught.value


def answer(status: int, code: str, message: str = "") -> ClientError:
    response = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(cast(Any, response), "PutObject")


@pytest.mark.parametrize(
    ("status", "code", "message", "expected", "hint"),
    [
        (403, "AccessDenied", "", "store-denied", "AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", "", "store-denied", "AWS_ACCESS_KEY_ID"),
        (403, "RequestTimeTooSkewed", "", "store-clock", "clock"),
        (400, "ExpiredToken", "", "store-token-expired", "credentials"),
        (403, "QuotaExceeded", "", "store-full", "enginehouse gc"),
        (507, "XMinioStorageFull", "", "store-full", "enginehouse gc"),
        (507, "", "", "store-full", "enginehouse gc"),
        (400, "KMS.DisabledException", "", "store-encryption-key", "KMS"),
        (403, "SecondLevelDomainForbidden", "", "store-addressing", "addressing_style = virtual"),
        (400, "InvalidArgument", "unsupported header x-amz-checksum-crc64nvme", "store-checksum", "CRC64NVME"),
        (400, "InvalidRequest", "", "store", ""),
        (404, "NoSuchKey", "", "store-missing", ""),
        (501, "NotImplemented", "", "store-unsupported", ""),
        (412, "PreconditionFailed", "", "precondition-failed", ""),
    ],
)
def test_what_cannot_be_mended_by_trying_again(status: int, code: str, message: str, expected: str, hint: str) -> None:
    error = named(answer(status, code, message))
    assert error.code == expected and not error.retryable
    assert hint in error.hint and bool(hint) == bool(error.hint)


@pytest.mark.parametrize(
    "error",
    [
        answer(500, "InternalError"),
        answer(503, "SlowDown"),
        answer(400, "RequestTimeout"),
        EndpointConnectionError(endpoint_url="http://127.0.0.1:9"),
    ],
)
def test_what_may_go_better_later(error: Exception) -> None:
    assert isinstance(found := named(error), StoreUnavailable) and found.retryable


def test_nobody_has_said_who_asks() -> None:
    assert isinstance(named(NoCredentialsError()), SettingsError)
