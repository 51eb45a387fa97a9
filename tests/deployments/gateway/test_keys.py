"""Keys, and what each may ask and how much."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from deployments.gateway import keys as module
from deployments.gateway.keys import Key, Keys, entry_text, new_key
from deployments.gateway.limits import Limits
from deployments.gateway.state import TargetState
from infra.errors import GatewayError, SettingsError
from tests.deployments.gateway.house import MODEL, House, house, node, until
from tests.deployments.gateway.test_front import in_thread


def write(file: Path, *entries: Key) -> None:
    fresh = file.with_suffix(".new")
    fresh.write_text("keys:\n" + "".join(entry_text(entry) for entry in entries))
    fresh.replace(file)


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


@dataclass
class Locked:
    house: House
    file: Path
    free: str
    narrow: str
    entries: tuple[Key, ...]


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Locked]:
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.0)
    file = tmp_path / "keys.yaml"
    free, first = new_key("free")
    narrow, second = new_key("narrow", ("other",), requests=1, tokens_per_minute=60)
    write(file, first, second)
    with house(keys=Keys(file)) as made:
        made.add_node("one")
        made.public()
        yield Locked(made, file, free, narrow, (first, second))


def test_a_new_key_is_random_and_its_entry_has_only_the_hash() -> None:
    secret, entry = new_key("team-a", ("m",), 3, 600)
    other, _ = new_key("team-a")
    assert len(secret) > 40 and secret != other
    read = yaml.safe_load(entry_text(entry))
    assert read == [
        {
            "name": "team-a",
            "sha256": hashlib.sha256(secret.encode()).hexdigest(),
            "models": ["m"],
            "requests": 3,
            "tokens_per_minute": 600,
        }
    ]
    with pytest.raises(SettingsError) as wrong:
        new_key("no name\n")
    assert wrong.value.code == "gateway-keys"


def test_who_has_no_key_is_told_nothing(locked: Locked) -> None:
    for headers, code in (
        ({}, "key-missing"),
        ({"Authorization": "Basic abc"}, "key-missing"),
        (bearer("eh-guess"), "key-unknown"),
        (bearer(locked.entries[0].sha256), "key-unknown"),
    ):
        for model in (MODEL, "nobody"):
            answer = locked.house.generate("x", model=model, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (401, code)
            assert answer.headers["www-authenticate"] == "Bearer"
    with locked.house.client() as client:
        assert client.get("/v2/models").status_code == 401
        assert client.get("/ready").json() == {"ready": True, "store": True}, "load balancers have no key"
    assert locked.house.nodes["one"].asked == []


def test_who_has_no_key_has_no_body_read(locked: Locked) -> None:
    with locked.house.connect() as client:
        client.sendall(b"POST /v2/models/tiny/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n")
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 401 ")


def test_a_key_asks_its_models_alone(locked: Locked) -> None:
    assert locked.house.generate("x", headers=bearer(locked.free)).status_code == 200
    for model in (MODEL, f"{MODEL}@1", f"{MODEL}@9", "nobody"):
        refused = locked.house.generate("x", model=model, headers=bearer(locked.narrow))
        assert (refused.status_code, refused.json()["code"]) == (404, "model-unknown"), "nor learns which there are"
    with locked.house.client() as client:
        assert client.get("/v2/models", headers=bearer(locked.narrow)).json() == {"models": []}


def test_a_key_asks_the_aliases_of_its_models(locked: Locked) -> None:
    grpc = locked.house.nodes["one"].grpc
    aliases = {"ensemble": MODEL, "tensorrt_llm_bls": "other"}
    answering = node("one", grpc, {MODEL: 1, "other": 1}, aliases=aliases)
    locked.house.watch.tell(TargetState("test", {MODEL: 1, "other": 1}, (answering,), aliases))
    assert locked.house.generate("x", model="ensemble", headers=bearer(locked.free)).status_code == 200
    assert locked.house.generate("x", model="ensemble", headers=bearer(locked.narrow)).status_code == 404
    with locked.house.client() as client:
        found = client.get("/v2/models", headers=bearer(locked.narrow)).json()
    assert found == {"models": [{"name": "other"}, {"name": "tensorrt_llm_bls"}]}


def test_the_file_is_read_again_and_mistakes_change_nothing(locked: Locked) -> None:
    fresh, third = new_key("fresh")
    assert locked.house.generate("x", headers=bearer(fresh)).status_code == 401
    write(locked.file, third)
    assert locked.house.generate("x", headers=bearer(fresh)).status_code == 200
    assert locked.house.generate("x", headers=bearer(locked.free)).status_code == 401
    locked.file.write_text("keys: [{name: a, sha256: not-a-hash}]")
    assert locked.house.generate("x", headers=bearer(fresh)).status_code == 200
    locked.file.unlink()
    assert locked.house.generate("x", headers=bearer(fresh)).status_code == 200


@pytest.mark.parametrize(
    "text",
    [
        "keys: 1",
        "keys: [{name: a}]",
        "keys: [{name: a, sha256: SECRET-BY-MISTAKE}]",
        "keys: [{name: a, sha256: 0, more: 1}]",
        "{",
        "",
        json.dumps({"keys": [{"name": "a", "sha256": "0" * 64}] * 2}),
    ],
)
def test_a_file_with_mistakes_is_refused_at_the_start_without_its_words(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys.json"
    file.write_text(text)
    with pytest.raises(SettingsError) as refused:
        Keys(file)
    assert refused.value.code == "gateway-keys" and "SECRET" not in str(refused.value)


def test_a_secret_of_kubernetes_is_a_link_that_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.0)
    secrets: list[str] = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        secret, entry = new_key(name)
        write(tmp_path / name / "keys.yaml", entry)
        secrets.append(secret)
    (tmp_path / "data").symlink_to("first")
    keys = Keys(tmp_path / "data" / "keys.yaml")
    assert (found := keys.find(f"Bearer {secrets[0]}")) is not None and found.name == "first"
    (tmp_path / "fresh").symlink_to("second")
    os.replace(tmp_path / "fresh", tmp_path / "data")  # noqa: PTH105
    assert (found := keys.find(f"bearer {secrets[1]}")) is not None and found.name == "second"


def test_running_requests_of_a_key(locked: Locked) -> None:
    write(locked.file, locked.entries[0].model_copy(update={"requests": 1}))
    one = locked.house.nodes["one"]
    thread, got = in_thread(locked.house.stream, "count 10 0.1", bearer(locked.free))
    until(lambda: one.running == 1, "request")
    refused = locked.house.generate("x", headers=bearer(locked.free))
    assert (refused.status_code, refused.json()["code"]) == (429, "requests-limit")
    assert refused.headers["retry-after"] == "1"
    thread.join(20)
    assert len(got[0]) == 10
    assert locked.house.generate("x", headers=bearer(locked.free)).status_code == 200


def test_tokens_a_minute(locked: Locked) -> None:
    write(locked.file, locked.entries[0].model_copy(update={"tokens_per_minute": 60}))
    assert len(locked.house.stream("count 100 0", bearer(locked.free))) == 100, "an answer is not cut off"
    refused = locked.house.generate("x", headers=bearer(locked.free))
    assert (refused.status_code, refused.json()["code"]) == (429, "tokens-limit")
    assert 35 <= int(refused.headers["retry-after"]) <= 42


def test_the_bucket_fills_by_the_clock() -> None:
    now = [0.0]
    limits = Limits(10, clock=lambda: now[0])
    key = Key(name="a", sha256="0" * 64, tokens_per_minute=60)
    with limits.request(key):
        limits.spend(key, 90)
    with pytest.raises(GatewayError) as refused, limits.request(key):
        pass
    assert refused.value.retry_after_s == 31
    now[0] += 31
    with limits.request(key):
        limits.spend(key, 1)
    now[0] += 3600
    with limits.request(key):
        limits.spend(key, 60)  # no more than a minute's have come together
    with pytest.raises(GatewayError), limits.request(key):
        pass
    assert limits.running == 0
