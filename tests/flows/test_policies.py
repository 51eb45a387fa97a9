"""The S3 policies against what a whole stack asks of S3: each call is allowed, and nothing else is."""

from __future__ import annotations

import fnmatch
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from infra.s3.bucket import Bucket
from infra.settings import CHECKOUT
from tasks.garbage.collect import collect, survey
from tasks.steps.promote import promote

if TYPE_CHECKING:
    from tests.flows.conftest import House

pytestmark = pytest.mark.slow

BUCKET = "arn:aws:s3:::enginehouse"
# Of a process, by its flow or its module: see the recorder.
ROLES = {
    "build_engine": "build",
    "rebuild": "rebuild",
    "rollback": "rebuild",
    "watch_releases": "rebuild",
    "finetuned": "rebuild",
    "reconcile": "rebuild",
    "deployments.cli.main rebuild": "rebuild",
    "deployments.cli.main rollback": "rebuild",
    "deployments.cli.main deploy": "deploy",
    "collect_garbage": "gc",
    "deployments.cli.main gc": "gc",
    "-m deployments.node.agent": "node",
    "-m deployments.gateway.serve": "gateway",
}
ACTIONS = {
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject",
    "PutObject": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "DeleteObject": "s3:DeleteObject",
    "ListObjectsV2": "s3:ListBucket",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "ListParts": "s3:ListMultipartUploadParts",
}
# Grants that this stack has no use for, and what has.
ELSEWHERE = {
    "TensorRT-LLM": {
        ("build", "s3:GetObject", "timing-caches/*"),
        ("build", "s3:PutObject", "timing-caches/*"),
        ("build", "s3:GetObject", "toolchains/*"),
        ("build", "s3:PutObject", "toolchains/*"),
        ("rebuild", "s3:GetObject", "toolchains/*"),
    },
    "the release watch": {
        ("rebuild", "s3:GetObject", "release-watch.json"),
        ("rebuild", "s3:PutObject", "release-watch.json"),
    },
    "an upload that was killed, or that another was quicker than": {
        (role, action, pattern)
        for role in ("build", "rebuild")
        for action, pattern in (
            ("s3:DeleteObject", "artifacts/*"),
            ("s3:ListBucketMultipartUploads", "*"),
            ("s3:ListMultipartUploadParts", "artifacts/*"),
        )
    },
    "the lineage of an engine that lies in the layout of before too": {
        ("build", "s3:GetObject", "targets/*"),
        ("build", "s3:ListBucket", "targets/*"),
    },
    "a process that is not the first to try conditional writes": {
        (role, "s3:GetObject", "conditional-writes") for role in ("build", "deploy", "node", "rebuild")
    },
    "a GET of a key that is not there": {("deploy", "s3:ListBucket", "catalogue/*")},
    "a server that wants bare ETags": {("gc", "s3:PutObject", "conditional-writes")},
    "fine-tuning events": {
        ("rebuild", "s3:GetObject", "events/*"),
        ("rebuild", "s3:PutObject", "events/*"),
        ("rebuild", "s3:ListBucket", "events/*"),
        ("rebuild", "s3:GetObject", "finetuned/*"),
        ("rebuild", "s3:PutObject", "finetuned/*"),
    },
}


@dataclass(frozen=True)
class Grant:
    """One action on one pattern of keys; of a listing, on one pattern of its prefix."""

    action: str
    pattern: str

    def allows(self, action: str, key: str) -> bool:
        return action == self.action and fnmatch.fnmatchcase(key, self.pattern)


def grants(policy: Path) -> Iterator[Grant]:
    document = json.loads(policy.read_text())
    assert document["Version"] == "2012-10-17"
    for statement in document["Statement"]:
        assert statement["Effect"] == "Allow" and not any("*" in action for action in statement["Action"])
        for resource in statement["Resource"]:
            condition = statement.get("Condition", {}).get("StringLikeIfExists", {}).get("s3:prefix")
            if resource == BUCKET:
                patterns: list[str] = condition or ["*"]
            else:
                assert resource.startswith(f"{BUCKET}/") and condition is None
                patterns = [resource.removeprefix(f"{BUCKET}/")]
            yield from (Grant(action, pattern) for action in statement["Action"] for pattern in patterns)


def calls(house: House) -> dict[str, set[tuple[str, str]]]:
    """What each role has asked of S3 until now: actions and keys."""
    found: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for line in Path(house.environment["S3_CALLS"]).read_text().splitlines():
        call: dict[str, Any] = json.loads(line)
        for who, role in ROLES.items():
            # Sources have rights of their own.
            if call["who"].startswith(who) and not call["key"].startswith("training/"):
                found[role].add((ACTIONS[call["operation"]], call["key"]))
    return found


def collected(bucket: Bucket) -> set[tuple[str, str]]:
    """What garbage collection asks of S3 where nothing was used for long: in this process, since no clock is moved."""
    found: set[tuple[str, str]] = set()

    def note(params: dict[str, Any], model: Any, **_: object) -> None:
        found.add((ACTIONS[model.name], params.get("Key", params.get("Prefix", ""))))

    events = bucket.client.meta.events
    events.register("provide-client-params.s3", note)
    try:
        collect(bucket, survey(bucket, 0, running_seconds=0, expired_seconds=0), "test", 20)
    finally:
        events.unregister("provide-client-params.s3", note)
    return found


def test_each_call_is_allowed_and_each_grant_is_used(house: House, live: dict[str, Any]) -> None:
    for quantization in ("q4_0", "q4_1"):
        house.rebuild("smollm2-135m", "--recipe", f"quantization={quantization}")
    house.run("rollback", "smollm2-135m")
    house.run("gc", "--grace", "0")
    for change in ("created smollm2-135m.yaml", "unchanged"):
        assert change in house.run("deploy")
    # A worker that has no files of its own: the same models, so the same work.
    store = {"ENGINEHOUSE_CATALOGUE_FROM": "store", "ENGINEHOUSE_CATALOGUE": "/nowhere"}
    elsewhere = replace(house, environment={**house.environment, **store})
    elsewhere.rebuild("smollm2-135m", "--until", "upload")
    # Two of the three releases stay; and a killed build has left something.
    promote(house.target, "smollm2-135m", live["release"])
    house.wait(lambda: len(house.node().models["smollm2-135m"].releases) == 2, 60, "node that let one go")
    bucket, lost = house.store.bucket, f"artifacts/engine/{'ab' * 32}/lost"
    bucket.create(f"{lost}/file", b"half")
    bucket.client.create_multipart_upload(Bucket=bucket.name, Key=f"{lost}/large")

    asked = calls(house)
    asked["gc"] |= collected(bucket)
    assert set(asked) == set(ROLES.values())
    elsewhere = {grant for granted in ELSEWHERE.values() for grant in granted}
    for role, found in asked.items():
        granted = tuple(grants(CHECKOUT / f"infra/policies/{role}.json"))
        denied = {call for call in found if not any(grant.allows(*call) for grant in granted)}
        assert denied == set(), role
        unused = {(role, grant.action, grant.pattern) for grant in granted if not any(grant.allows(*c) for c in found)}
        assert unused - elsewhere == set()
    assert {policy.stem for policy in (CHECKOUT / "infra/policies").glob("*.json")} == set(asked)
