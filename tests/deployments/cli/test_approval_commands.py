"""`enginehouse approve` and `reject` without a Prefect server: the record is made."""

from __future__ import annotations

import getpass
import json

import pytest

from deployments.cli.main import main
from infra.s3.bucket import Bucket
from tasks.targets.approval import ApprovalRequest
from tasks.targets.approvals import Approvals
from tasks.targets.current import Current
from tasks.targets.release import Intent, Result
from tasks.targets.target import Target


@pytest.fixture
def target(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Target:
    """A target on which release 1 of `tiny` waits for a person."""
    monkeypatch.setenv("ENGINEHOUSE_STORE", f"s3://{bucket.name}/{bucket.prefix}")
    monkeypatch.setenv("ENGINEHOUSE_TARGET", "test")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    target = Target(bucket, "test")

    def intent(number: int) -> Intent:
        repository = f"repository/{number:064x}"
        return Intent(
            model="tiny", release=number, repository=repository, digest="d", recipe={}, source="s", flow_run=""
        )

    target.reserve("tiny", intent)
    target.move("tiny", lambda current: current.with_candidate(1))
    Approvals(target, "tiny", 1).ask(ApprovalRequest(release=1, timeout_s=3600))
    target.conclude("tiny", Result(release=1, state="passed"))
    return target


def test_an_approval_is_on_record_before_any_server_knows(target: Target, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["approve", "tiny", "--note", "fine", "--json"]) == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert (told["state"], told["note"], told["flow_run"], told["first"]) == ("approved", "fine", None, True)
    assert told["by"].startswith(f"{getpass.getuser()}@")
    assert "the approval is on record; `enginehouse rebuild tiny` promotes it" in printed.err
    assert main(["reject", "tiny"]) == 2  # somebody was quicker
    assert f"was approved by {told['by']}: fine" in capsys.readouterr().err
    assert target.current("tiny")[0] == Current(candidates=(1,))


def test_a_rejection_ends_the_candidate(target: Target, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reject", "tiny", "--by", "a@b", "--release", "1"]) == 0
    assert capsys.readouterr().out == "tiny release 1 on 'test' was rejected by a@b\n"
    assert target.current("tiny")[0] == Current()
    assert main(["approve", "tiny"]) == 2
    assert "approval-missing" in capsys.readouterr().err
