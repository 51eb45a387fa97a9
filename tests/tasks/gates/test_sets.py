"""Files of gates, on this machine and on a real S3 server."""

from __future__ import annotations

import hashlib

import pytest

from infra.errors import UsageError
from infra.s3.bucket import Bucket
from tasks.gates.sets import read_set
from tasks.models.gate_specs.set_source import SetSource


def test_a_set_of_a_bucket_is_read_and_its_pin_holds(bucket: Bucket) -> None:
    body = '{"text": "Größe"}\n'.encode()
    bucket.put("sets/passages.jsonl", body)
    uri = f"s3://{bucket.name}/{bucket.prefix}sets/passages.jsonl"
    pinned = SetSource(uri=uri, sha256=hashlib.sha256(body).hexdigest())
    assert read_set(pinned).text == body.decode()
    bucket.put("sets/passages.jsonl", b"changed")
    with pytest.raises(UsageError) as caught:
        read_set(pinned)
    assert caught.value.code == "set-changed"
    with pytest.raises(UsageError) as caught:
        read_set(SetSource(uri=f"{uri}.missing"))
    assert caught.value.code == "set-missing"
