"""Webhooks as Hugging Face, MLflow and others send them, true and forged, against the receiver and a real store."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
import uvicorn
import yaml

from deployments.webhooks.receiver import LARGEST_BODY, Receiver, WatchedCatalogue, secrets, server_config
from infra import settings
from infra.errors import SettingsError
from infra.processes.sessions import free_ports
from infra.s3.bucket import Bucket
from tasks.finetuned.arrivals import read_arrival, undecided
from tasks.finetuned.event import Event

SECRET = b"only-on-loopback"
COMMIT = "c" * 40


@dataclass
class House:
    """A receiver, and what it sent to Prefect."""

    receiver: Receiver
    folder: Path
    sent: list[Event] = field(default_factory=list[Event])

    def post(self, sender: str, body: bytes, headers: Mapping[str, str]) -> httpx.Response:
        async def post() -> httpx.Response:
            transport = httpx.ASGITransport(self.receiver.application())
            async with httpx.AsyncClient(transport=transport, base_url="http://receiver") as client:
                return await client.post(f"/{sender}", content=body, headers=headers)

        return asyncio.run(post())

    def hub(self, document: Any, secret: bytes = SECRET) -> httpx.Response:
        return self.post("huggingface", json.dumps(document).encode(), {"X-Webhook-Secret": secret.decode()})

    def signed(self, sender: str, document: Any, id: str = "delivery-1") -> httpx.Response:
        body = json.dumps(document).encode()
        return self.post(sender, body, sign(sender, body, id))


def sign(
    sender: str, body: bytes, id: str = "delivery-1", timestamp: str = "", secret: bytes = SECRET
) -> dict[str, str]:
    """The headers that MLflow sends, written from its description."""
    prefix = {"mlflow": "X-MLflow", "generic": "X-Enginehouse"}[sender]
    timestamp = timestamp or str(int(time.time()))
    content = b".".join([id.encode(), timestamp.encode(), body])
    digest = base64.b64encode(hmac.new(secret, content, hashlib.sha256).digest()).decode()
    return {f"{prefix}-Delivery-Id": id, f"{prefix}-Timestamp": timestamp, f"{prefix}-Signature": f"v1,{digest}"}


@pytest.fixture
def house(bucket: Bucket, tmp_path: Path) -> House:
    for name, changes in {
        "follows": {"source": {"uri": "hf://org/base@main"}},
        "pinned": {"source": {"uri": f"hf://org/base@{COMMIT}"}},
        "tuned": {"source": {"uri": "s3://weights/base"}, "accepts": ["s3://weights/tuned/**", "hf://team/tuned-*@*"]},
    }.items():
        prompt = {"name": "count", "text": "Count.", "max_tokens": 4, "expect": {"min_tokens": 1}}
        document = {"name": name, "recipe": {"kind": "llamacpp"}, "prompts": [prompt], **changes}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(document))
    sent: list[Event] = []

    async def send(id: UUID, event: Event) -> None:
        sent.append(event)

    by_sender: dict[str, bytes] = {"huggingface": SECRET, "mlflow": SECRET, "generic": SECRET}
    return House(Receiver(bucket, by_sender, WatchedCatalogue(lambda: tmp_path), send), tmp_path, sent)


def push(repository: str = "org/base", **changes: Any) -> dict[str, Any]:
    """A push to a model's repository, as the hub sends it."""
    return {
        "event": {"action": "update", "scope": "repo.content"},
        "repo": {"type": "model", "name": repository, "id": "621ffd", "private": False, "headSha": "d" * 40},
        "updatedRefs": [{"ref": "refs/heads/main", "oldSha": COMMIT, "newSha": "d" * 40}],
        "webhook": {"id": "7", "version": 3},
        **changes,
    }


def version(**data: Any) -> dict[str, Any]:
    """A new model version, as MLflow sends it."""
    version: dict[str, Any] = {
        "name": "tuned",
        "version": "1",
        "source": "s3://weights/tuned/7",
        "run_id": "r",
        "tags": {},
        **data,
    }
    return {
        "entity": "model_version",
        "action": "created",
        "timestamp": "2026-11-28T07:00:00+00:00",
        "data": {**version, **data},
    }


def test_a_push_to_the_hub_reaches_who_follows_or_accepts_it(house: House) -> None:
    answer = house.hub(push())
    assert answer.status_code == 202 and [each["state"] for each in answer.json()["events"]] == ["received"]
    assert [(event.model, event.source, event.sender) for event in house.sent] == [
        ("follows", f"hf://org/base@{'d' * 40}", "huggingface")
    ]
    assert house.hub(push("team/tuned-7")).status_code == 202
    assert (house.sent[1].model, house.sent[1].source) == ("tuned", f"hf://team/tuned-7@{'d' * 40}")


def move(old: str, new: str) -> dict[str, Any]:
    """A repository that is renamed, as the hub sends it."""
    event = {"action": "move", "scope": "repo"}
    return {**push(old, event=event), "movedTo": {"name": new, "owner": {"id": "61d2f"}}}


def test_a_renamed_repository_is_followed_under_its_present_name(house: House) -> None:
    assert house.hub(push("org/new")).json() == {"events": []}
    assert house.hub(move("org/base", "org/between")).json() == {"events": []}
    assert house.hub(move("org/between", "other/new")).json() == {"events": []}
    for name in ("org/between", "other/new", "org/base"):
        house.hub(push(name))
    assert [(event.model, event.source) for event in house.sent] == [("follows", f"hf://org/base@{'d' * 40}")] * 3
    assert house.hub(push("org/new")).json() == house.hub(push("../x")).json() == {"events": []}


def test_what_was_renamed_beside_the_catalogue_is_not_kept(house: House) -> None:
    dataset = {**move("org/base", "org/new"), "repo": {"type": "dataset", "name": "org/base"}}
    for document in (move("somebody/else", "org/new"), move("org/base", "no name"), dataset):
        assert house.hub(document).json() == {"events": []}
    assert not list(house.receiver.bucket.list("finetuned/"))


@pytest.mark.parametrize(
    "document",
    [
        push("somebody/else"),
        push(event={"action": "create", "scope": "discussion.comment"}),
        push(updatedRefs=[{"ref": "refs/heads/dev"}]),
        push(repo={"type": "dataset", "name": "org/base", "headSha": "d" * 40}),
    ],
)
def test_what_is_not_about_weights_is_nothing(house: House, document: Any) -> None:
    answer = house.hub(document)
    assert (answer.status_code, answer.json(), house.sent) == (200, {"events": []}, [])


def test_mlflow_and_others_sign_what_they_send(house: House) -> None:
    answer = house.signed("mlflow", version())
    assert answer.status_code == 202
    tags = {
        "enginehouse.model": "tuned",
        "enginehouse.source": "s3://weights/tuned/8",
        "enginehouse.recipe.dtype": "bfloat16",
    }
    registered = version(name="Team's model", source="models:/m-1", tags=tags)
    assert house.signed("mlflow", registered, id="delivery-2").status_code == 202
    generic = {"model": "tuned", "source": "s3://weights/tuned/9", "recipe": {"quantization": "q4_0"}}
    assert house.signed("generic", generic).status_code == 202
    assert [(event.model, event.source, event.options) for event in house.sent] == [
        ("tuned", "s3://weights/tuned/7", {}),
        ("tuned", "s3://weights/tuned/8", {"dtype": "bfloat16"}),
        ("tuned", "s3://weights/tuned/9", {"quantization": "q4_0"}),
    ]
    # MLflow's own test of a webhook, and a model that is not here.
    assert house.signed("mlflow", version(name="example_model"), id="delivery-3").json() == {"events": []}
    assert [event.sender for event in house.sent] == ["mlflow", "mlflow", "generic"]


def test_mlflow_3_names_what_its_registry_knows(house: House) -> None:
    def change(name: str, **changes: Any) -> None:
        document = yaml.safe_load((house.folder / "tuned.yaml").read_text()) | {"name": name} | changes
        (house.folder / f"{name}.yaml").write_text(yaml.safe_dump(document))

    change("sql", accepts=["models:/sql/*"])
    change("by-alias", source={"uri": "models:/chat@champion/model"}, accepts=[])
    change("chat", source={"uri": "models:/chat@champion"}, accepts=[])
    change("fixed", source={"uri": "models:/chat/3"}, accepts=[])
    logged = "models:/m-0123456789abcdef0123456789abcdef"
    for number, source in enumerate([logged, "mlflow-artifacts:/1/models/m-1/artifacts", "models:/123"]):
        data = version(name="sql", version=str(number + 1), source=source)
        assert house.signed("mlflow", data, id=f"v{number}").status_code == 202
    assert house.signed("mlflow", version(name="chat", source=logged), id="v9").json() == {"events": []}

    alias = {"entity": "model_version_alias", "action": "created", "timestamp": "2026-11-28T07:00:00+00:00"}
    data = {"name": "chat", "alias": "champion", "version": "4"}
    assert house.signed("mlflow", {**alias, "data": data}, id="a1").status_code == 202
    for number, other in enumerate([{"alias": "challenger"}, {"name": "other"}]):
        assert house.signed("mlflow", {**alias, "data": {**data, **other}}, id=f"o{number}").json() == {"events": []}
    deleted = {**alias, "action": "deleted", "data": {"name": "chat", "alias": "champion"}}
    assert house.signed("mlflow", deleted, id="o8").json() == {"events": []}
    assert house.signed("mlflow", {**alias, "data": {**data, "version": "x"}}, id="o9").status_code == 400
    assert [(event.model, event.source, event.series, event.moved) for event in house.sent] == [
        ("sql", "models:/sql/1", "mlflow:sql", None),
        ("sql", "models:/sql/2", "mlflow:sql", None),
        ("sql", "models:/sql/3", "mlflow:sql", None),
        ("by-alias", "models:/chat/4/model", None, "models:/chat@champion/model"),
        ("chat", "models:/chat/4", None, "models:/chat@champion"),
    ]


def test_a_secret_or_signature_that_is_wrong_is_refused_before_the_body_is_read(house: House) -> None:
    body = json.dumps(version()).encode()
    good = sign("mlflow", body)
    stale = sign("mlflow", body, timestamp=str(int(time.time()) - 400))
    early = sign("mlflow", body, timestamp=str(int(time.time()) + 400))
    for sender, sent, headers, status, code in (
        ("huggingface", b"{", {"X-Webhook-Secret": "other"}, 401, "signature-invalid"),
        ("huggingface", b"{", httpx.Headers([(b"X-Webhook-Secret", b"\xfc")]), 401, "signature-invalid"),
        ("huggingface", b"{", {}, 401, "signature-missing"),
        ("mlflow", b"{", good, 401, "signature-invalid"),
        ("mlflow", body, sign("mlflow", body, secret=b"other"), 401, "signature-invalid"),
        ("mlflow", body, {**good, "X-MLflow-Delivery-Id": "delivery-2"}, 401, "signature-invalid"),
        ("mlflow", body, {**good, "X-MLflow-Timestamp": str(int(time.time()) + 1)}, 401, "signature-invalid"),
        ("mlflow", body, sign("generic", body), 401, "signature-missing"),
        ("mlflow", body, stale, 401, "timestamp-old"),
        ("mlflow", body, early, 401, "timestamp-old"),
        ("mlflow", body, sign("mlflow", body, timestamp="soon"), 401, "timestamp-old"),
        ("generic", b"x" * (LARGEST_BODY + 1), good, 413, "event-large"),
        ("github", body, good, 404, "sender-unknown"),
    ):
        answer = house.post(sender, sent, headers)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert not house.sent and not list(house.receiver.bucket.list("events/"))


def test_what_is_malformed_or_not_accepted_is_answered_and_kept(house: House) -> None:
    def refused(answer: httpx.Response, status: int, code: str) -> None:
        body = answer.json()
        assert (answer.status_code, body["code"], body["state"]) == (status, code, "refused")
        arrival = read_arrival(house.receiver.bucket, body["event"])
        assert arrival is not None and (arrival.state, arrival.code, arrival.reason) == (
            "refused",
            code,
            body["message"],
        )
        assert arrival.said

    headers = {"X-Webhook-Secret": SECRET.decode()}
    refused(house.post("huggingface", b"{", headers), 400, "event-malformed")
    refused(house.post("huggingface", b"[" * 100_000, headers), 400, "event-malformed")
    refused(house.hub([1]), 400, "event-malformed")
    refused(house.hub(push(repo={"type": "model", "name": "org/base", "headSha": "main"})), 400, "event-malformed")
    refused(house.signed("mlflow", version(source=7)), 400, "event-malformed")
    for number, (source, code) in enumerate(
        [("file:///etc/passwd", "event-source"), ("s3://weights/base", "event-source")]
    ):
        refused(house.signed("generic", {"model": "tuned", "source": source}, id=f"d{number}"), 422, code)
    refused(house.signed("mlflow", version(tags={"enginehouse.model": "no"}), id="d9"), 422, "event-model")
    assert not house.sent


@pytest.mark.parametrize(
    "value",
    [b'"\\ud800"', b"NaN", b"1e999", b"[" * 900 + b"]" * 900, b"[" * 220 + b"]" * 220, b"9" * 5000],
    ids=["surrogate", "nan", "1e999", "900-deep", "220-deep", "5000-digits"],
)
def test_what_cannot_be_kept_as_it_is_is_answered_and_kept_as_text(house: House, value: bytes) -> None:
    for sender, body in (
        ("generic", b'{"model": "tuned", "source": "s3://weights/tuned/7", "recipe": {"dtype": %s}}' % value),
        ("mlflow", json.dumps(version(tags={"x": "VALUE"})).encode().replace(b'"VALUE"', value)),
        ("generic", value),
    ):
        answer = house.post(sender, body, sign(sender, body, id=f"{sender}-{len(body)}"))
        assert (answer.status_code, answer.json()["code"]) == (400, "event-malformed")
        arrival = read_arrival(house.receiver.bucket, answer.json()["event"])
        assert arrival is not None and arrival.state == "refused"
        assert str(arrival.said["text"]).startswith(body.decode()[:1000])
    assert not house.sent and not list(undecided(house.receiver.bucket, 0))


def test_a_push_names_its_branch_and_a_version_its_number(house: House) -> None:
    house.hub(push())
    house.signed("mlflow", version(version="12"))
    house.signed("mlflow", version(version=None), id="d2")
    assert [(event.branch, event.series, event.version) for event in house.sent] == [
        ("main", None, None),
        (None, "mlflow:tuned", 12),
        (None, None, None),
    ]
    for number, wrong in enumerate(("0", "newest", -1, 1.5)):
        assert house.signed("mlflow", version(version=wrong), id=f"d3{number}").status_code == 400


def test_nothing_from_outside_begins_a_line_of_the_log(house: House, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert house.post("a%0aFORGED", b"{}", {}).status_code == 404
        assert house.post("a%1b[31m%E2%80%A8b", b"{}", {}).status_code == 404
        (house.folder / "tuned.yaml").write_text("name: [")
        assert house.signed("generic", {"model": "tuned", "a\nFORGED": 1}).status_code == 400
        assert house.signed("generic", {"model": "tuned", "source": "s3://a/b"}, id="d2").status_code == 503
    lines = [record.getMessage() for record in caplog.records if record.name == "enginehouse.webhooks"]
    assert len(lines) == 4 and "a\\nFORGED" in lines[0] and "\\x1b[31m\\u2028b" in lines[1]
    assert all(line.isprintable() for line in lines)


def test_requests_that_are_never_finished_are_ended(house: House) -> None:
    (port,) = free_ports(1)
    server = uvicorn.Server(server_config(replace(house.receiver, patience_s=0.5), "127.0.0.1", port))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        head = b"POST /generic HTTP/1.1\r\nHost: receiver\r\nContent-Length: 100\r\n"
        begun = time.monotonic()
        unfinished = [
            (socket.create_connection(("127.0.0.1", port)), part)
            for part in (b"", b"POST /gen", head, head + b"\r\n", head + b"\r\n{") * 20
        ]
        for connection, part in unfinished:
            connection.sendall(part)
        # Others are answered meanwhile, and none keeps its connection.
        body = json.dumps({"model": "tuned", "source": "s3://weights/tuned/7"}).encode()
        answer = httpx.post(f"http://127.0.0.1:{port}/generic", content=body, headers=sign("generic", body))
        assert (answer.status_code, answer.headers["connection"]) == (202, "close")
        for connection, part in unfinished:
            connection.settimeout(10)
            said = b""
            while more := connection.recv(4096):
                said += more
            assert (b" 408 " in said and b"event-slow" in said) if b"\r\n\r\n" in part else said == b""
            connection.close()
        assert time.monotonic() - begun > 0.4
    finally:
        server.should_exit = True
        thread.join()


def test_the_same_delivery_again_is_the_same_event(house: House) -> None:
    first = house.signed("mlflow", version()).json()
    assert house.signed("mlflow", version()).json() == first
    assert len(list(house.receiver.bucket.list("events/"))) == 1


def test_an_event_that_prefect_misses_is_not_lost(house: House) -> None:
    async def away(id: UUID, event: Event) -> None:
        raise httpx.ConnectError("connection refused")

    broken = replace(house.receiver, send=away)
    house = House(broken, house.folder)
    answer = house.signed("generic", {"model": "tuned", "source": "s3://weights/tuned/7"})
    assert answer.status_code == 202
    (waiting,) = undecided(broken.bucket, 0)
    assert waiting.id == answer.json()["events"][0]["event"]


def test_a_changed_file_counts_at_once_and_a_broken_one_is_no_fault_of_the_sender(house: House) -> None:
    path = house.folder / "tuned.yaml"
    document = yaml.safe_load(path.read_text())
    payload = {"model": "tuned", "source": "s3://elsewhere/x"}
    assert house.signed("generic", payload).status_code == 422
    path.write_text(yaml.safe_dump({**document, "accepts": ["s3://elsewhere/*"]}))
    assert house.signed("generic", payload, id="d2").status_code == 202
    path.write_text("name: [")
    assert house.signed("generic", payload, id="d3").status_code == 503
    assert house.hub(push("team/tuned-7")).status_code == 503  # it may be for the model of the broken file
    assert house.hub(push()).status_code == 202  # this one is for another


def test_settings_say_where_secrets_are_and_never_what(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(value: str) -> Callable[[], object]:
        monkeypatch.setenv("ENGINEHOUSE_WEBHOOK_SECRETS", value)
        return lambda: secrets(settings.load())

    monkeypatch.setenv("HUB_SECRET", "s3cr3t")
    assert load("huggingface=env:HUB_SECRET")() == {"huggingface": b"s3cr3t"}
    for wrong in ("huggingface=s3cr3t", "huggingface=env:NOT_SET", "github=env:HUB_SECRET", ""):
        with pytest.raises(SettingsError) as caught:
            load(wrong)()
        assert "s3cr3t" not in str(caught.value) + caught.value.hint
