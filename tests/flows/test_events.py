"""From an event to a new release that is live, untouched by hand."""

from __future__ import annotations

import base64
import hmac
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from infra.errors import TritonError
from infra.processes.sessions import free_ports
from infra.s3.upload import upload_files
from infra.triton.client import TritonClient
from tasks.finetuned.arrivals import Arrival, arrive, read_arrival
from tests.flows import tuned_weights
from tests.tasks.lora.small_adapters import nearest, write_adapter
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from tests.flows.conftest import House

pytestmark = pytest.mark.slow

TUNED = "smollm2-tuned"
SECRET = "only-on-loopback"
ACCEPTED = "s3://enginehouse/training/**"


@pytest.fixture(scope="module")
def tuned(house: House) -> Iterator[str]:
    """A live model that takes weights from a folder of the store."""
    describe(house)
    house.rebuild(TUNED)
    yield TUNED
    (house.catalogue / f"{TUNED}.yaml").unlink()


def describe(house: House, **expected: Any) -> None:
    """Write the model's file; its first prompt expects what is given, or what the catalogue's does."""

    def change(document: dict[str, Any]) -> None:
        document["accepts"] = [ACCEPTED]
        document["prompts"][0]["expect"].update(expected)

    house.add_model(TUNED, change)


def train(house: House, folder: Path, original: Path, name: str, factor: float) -> str:
    """What a training job leaves in the bucket; returns its address."""
    weights = tuned_weights.make(original, folder / f"{name}.gguf", factor)
    upload_files(house.store.bucket, f"training/{name}/", {"model.gguf": weights}, lambda count: None)
    return f"s3://enginehouse/training/{name}"


def curl(house: House, payload: object) -> str:
    """Send an event as the README says; returns its id."""
    id = str(uuid.uuid4())
    event = {
        "id": id,
        "occurred": datetime.now(UTC).isoformat(),
        "event": "enginehouse.finetuned",
        "resource": {"prefect.resource.id": f"enginehouse.model.{TUNED}"},
        "payload": payload,
    }
    url, credential = (house.prefect_variables[f"PREFECT_API_{name}"] for name in ("URL", "AUTH_STRING"))
    command = [
        "curl",
        "-sS",
        "--fail",
        "-u",
        credential,
        f"{url}/events",
        "-H",
        "Content-Type: application/json",
        "-d",
        json.dumps([event]),
    ]
    subprocess.run(command, check=True)
    return id


SCRIPT = """
import json, sys
from prefect.events import emit_event

payload = json.loads(sys.argv[1])
model = f"enginehouse.model.{payload['model']}"
event = emit_event("enginehouse.finetuned", resource={"prefect.resource.id": model}, payload=payload)
print(event.id)
"""


def from_a_training_script(house: House, payload: object) -> str:
    """The same from Python, as the README says."""
    environment = {**house.environment, **house.prefect_variables}
    command = [sys.executable, "-c", SCRIPT, json.dumps(payload)]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def receiver(house: House) -> Generator[Callable[[object, str], httpx.Response]]:
    """A receiver of webhooks. Yields what sends it a payload, signed with a secret, and returns its answer."""
    (port,) = free_ports(1)
    house.environment.update(OUR_WEBHOOK=SECRET, ENGINEHOUSE_WEBHOOK_SECRETS="generic=env:OUR_WEBHOOK")
    process = house.start("webhooks", "--port", str(port))
    until = time.monotonic() + 60 * PATIENCE

    def deliver(payload: object, secret: str) -> httpx.Response:
        body, id, timestamp = json.dumps(payload), str(uuid.uuid4()), str(int(time.time()))
        digest = hmac.digest(secret.encode(), f"{id}.{timestamp}.{body}".encode(), "sha256")
        headers = {"Delivery-Id": id, "Timestamp": timestamp, "Signature": f"v1,{base64.b64encode(digest).decode()}"}
        headers = {f"X-Enginehouse-{name}": value for name, value in headers.items()}
        while True:
            try:
                return httpx.post(f"http://127.0.0.1:{port}/generic", content=body, headers=headers, timeout=30)
            except httpx.ConnectError:
                assert process.poll() is None and time.monotonic() < until, "the receiver does not start"
                time.sleep(0.2)

    try:
        yield deliver
    finally:
        process.terminate()
        process.communicate()


def decided(house: House, event: str) -> Arrival:
    def known() -> Arrival | None:
        return read_arrival(house.store.bucket, event)

    house.wait_long(lambda: (arrival := known()) is not None and arrival.state != "received", f"decision on {event}")
    arrival = known()
    assert arrival is not None
    return arrival


def rebuilds(house: House) -> list[dict[str, Any]]:
    """What events have started."""
    return house.prefect("POST", "/flow_runs/filter", {"flow_runs": {"tags": {"all_": ["finetuned"]}}})


def test_an_event_by_curl_becomes_a_live_release_once(
    house: House, tuned: str, tmp_path: Path, smollm2_gguf: Path
) -> None:
    source = train(house, tmp_path, smollm2_gguf, "run-1", 1.5)
    before = house.ask(tuned)

    event = curl(house, {"model": tuned, "source": source, "recipe": {"quantization": "q8_0"}})
    house.wait_long(lambda: house.node().models[tuned].public == 2, "release of the new weights")
    arrival = decided(house, event)
    assert (arrival.state, arrival.model) == ("accepted", tuned)
    assert house.target.intent(tuned, 2).source == source
    assert house.ask(tuned) != before

    # The same once more; a forged webhook comes to nothing.
    payload = {"model": tuned, "source": source}
    with receiver(house) as deliver:
        refused, taken = deliver(payload, "forged"), deliver(payload, SECRET)
    assert (refused.status_code, refused.json()["code"], taken.status_code) == (401, "signature-invalid", 202)
    again = decided(house, taken.json()["events"][0]["event"])
    assert (again.state, again.revision) == ("duplicate", arrival.revision)
    assert [run["id"] for run in rebuilds(house)] == [arrival.flow_run]

    # Whoever rebuilds it later gets the same weights, though the file names others.
    report = house.rebuild(tuned)
    assert (report["state"], report["release"]) == ("unchanged", 2)
    assert house.target.releases(tuned) == [1, 2]


@pytest.mark.long
def test_every_way_to_tell_of_weights(house: House, tuned: str, tmp_path: Path, smollm2_gguf: Path) -> None:
    source = train(house, tmp_path, smollm2_gguf, "run-1", 1.5)
    payload = {"model": tuned, "source": source}
    first = decided(house, curl(house, payload))
    command = json.loads(house.run("finetuned", tuned, "--source", source, "--json"))
    for again in (from_a_training_script(house, payload), command["event"]):
        assert (decided(house, again).state, decided(house, again).revision) == ("duplicate", first.revision)
    # What the file does not accept, and what is no event, is refused and kept.
    for unwanted, code in (
        ({"model": tuned, "source": "file:///etc/passwd"}, "event-source"),
        ({"model": tuned, "weights": 7}, "event-malformed"),
    ):
        wrong = decided(house, curl(house, unwanted))
        assert (wrong.state, wrong.code) == ("refused", code)
    house.run("finetuned", tuned, "--source", "file:///etc/passwd", code=2)
    # One that Prefect never heard of waits in the store for the next reconcile.
    arrive(house.store.bucket, missed := str(uuid.uuid4()), {**payload, "sender": "generic"})
    reconcile = house.prefect("GET", "/deployments/name/reconcile/reconcile")
    parameters = {"parameters": {"undecided_seconds": 0}}
    house.prefect("POST", f"/deployments/{reconcile['id']}/create_flow_run", parameters)
    assert decided(house, missed).state == "duplicate"


@pytest.mark.long
def test_weights_that_the_gates_refuse_are_not_taken_again(
    house: House, tuned: str, tmp_path: Path, smollm2_gguf: Path
) -> None:
    live, answer = house.node().models[tuned].public, house.ask(tuned)
    assert live is not None
    describe(house, contains=["what no model says"])
    event = curl(house, {"model": tuned, "source": train(house, tmp_path, smollm2_gguf, "run-2", 0.5)})
    run = decided(house, event).flow_run
    house.wait_long(lambda: house.prefect("GET", f"/flow_runs/{run}")["state_type"] == "FAILED", "end of the rebuild")
    assert "[gate-refused]" in house.prefect("GET", f"/flow_runs/{run}")["state"]["message"]
    assert (house.node().models[tuned].public, house.ask(tuned)) == (live, answer)

    describe(house)
    report = house.rebuild(tuned)
    assert (report["state"], report["release"]) == ("unchanged", live)


@pytest.mark.long
def test_an_adapter_is_merged_into_the_weights_of_the_file(house: House, tuned: str, tmp_path: Path) -> None:
    before, answer = house.target.releases(tuned)[-1], house.ask(tuned)
    files = tuned_weights.make_adapter(tmp_path)
    upload_files(house.store.bucket, "training/lora/", files, lambda count: None)
    source = "s3://enginehouse/training/lora"
    event = curl(house, {"model": tuned, "source": source})
    house.wait_long(lambda: (house.node().models[tuned].public or 0) > before, "release with the adapter")
    assert decided(house, event).state == "accepted"
    assert house.ask(tuned) != answer

    live = house.node().models[tuned].public
    assert live is not None
    intent = house.target.intent(tuned, live)
    assert intent.source.startswith("pip://") and intent.source.endswith(f" with {source}")
    lineage = house.run("lineage", tuned)
    assert lineage.count("source ") == 2 and "pip " in lineage and "s3 " in lineage
    report = house.rebuild(tuned)
    assert (report["state"], report["release"]) == ("unchanged", live)


@pytest.mark.long
def test_each_request_chooses_an_adapter_of_the_file(house: House, tuned: str, tmp_path: Path) -> None:
    """With llama.cpp itself: the engine stays, the answers differ as the adapters do, and a batch mixes them."""
    name, shapes = f"{tuned}-by-request", {"self_attn.q_proj": (576, 576), "mlp.down_proj": (576, 1536)}
    adapters = {
        each: f"file://{write_adapter(tmp_path / each, shapes, layers=30, seed=at, size=1.2)}"
        for at, each in enumerate(("french", "sql"))
    }

    def release() -> tuple[int, str]:
        report = house.rebuild(name)
        assert report["state"] == "promoted"
        made = house.store.need(house.target.intent(name, report["release"]).artifact)
        return report["release"], made.manifest.inputs["engine"]

    house.add_model(name)
    _, engine = release()
    house.add_model(name, lambda document: document.update(adapters=adapters))
    try:
        number, same = release()
        assert same == engine and house.target.intent(name, number).adapters == adapters
        client = TritonClient(house.variables["ENGINEHOUSE_TRITON_HTTP"])
        asked = {"text_input": "Name a colour.", "max_tokens": 8, "temperature": 0.0}

        def answer(adapter: str) -> str:
            return client.generate(name, {**asked, "lora_name": adapter}).text

        alone = [answer(adapter) for adapter in ("", *adapters)]
        assert len(set(alone)) == 3 and alone[0] == client.generate(name, asked).text
        with ThreadPoolExecutor(6) as pool:
            mixed = list(pool.map(answer, ["", *adapters] * 2))
        # A batch of another size rounds otherwise: each begins as its own answer does, for longer than as another's.
        assert [nearest(one, alone) for one in mixed] == alone * 2
        with pytest.raises(TritonError, match="this model has french, sql"):
            answer("latin")
        assert house.rebuild(name)["state"] == "unchanged"
    finally:
        (house.catalogue / f"{name}.yaml").unlink()
