"""A real MLflow server: its own client registers models, its own webhooks announce them, and its files are fetched."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import uvicorn
import yaml

from deployments.webhooks.receiver import Receiver, WatchedCatalogue, server_config
from infra.errors import SourceError
from infra.processes.sessions import free_ports
from infra.s3.bucket import Bucket
from tasks.finetuned.event import Event, changed_by, pinned_source
from tasks.models.catalogue import load_catalogue
from tasks.models.overrides import override
from tasks.models.source import Source
from tasks.sources.dispatch import fetch, resolve
from tasks.sources.resolved import Access
from tasks.steps.register import register_public
from tests.fleet import Fleet
from tests.tasks.gguf.small_models import write
from tests.tasks.gguf.test_split import CONTENT
from tests.tasks.sources.mlflow_server import MlflowServer, running_mlflow
from tests.tasks.steps.test_register import model as registering
from tests.tasks.steps.test_sources import checkpoint, whole_checkpoint

SECRET = "only-on-loopback"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with running_mlflow(tmp_path_factory.mktemp("mlflow")) as running:
        yield running


def ignore(_done: int, _total: int) -> None:
    pass


def folder_of(path: Path, files: dict[str, bytes]) -> str:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return str(path)


def test_what_its_client_logs_is_fetched_as_its_client_does(mlflow: MlflowServer, tmp_path: Path) -> None:
    logged = {
        "MLmodel": b"flavors:\n  transformers:\n    model_binary: model\n",
        "requirements.txt": b"transformers\n",
        "model/config.json": b"{}",
        "model/model.safetensors": b"\x02" + bytes(7) + b"{}",
        "components/tokenizer/tokenizer.json": b"{}",
    }
    access = Access(mlflow=mlflow.url)
    made = mlflow.ask(
        log="tuned", folder=folder_of(tmp_path / "logged", logged), register="hf", alias=["hf", "best", "1"]
    )
    assert made["version"] == "1" and made["place"].startswith("mlflow-artifacts:/")
    pins: list[Any] = []
    for number, uri in enumerate(["models:/hf@best", "models:/hf/1", f"models:/{made['logged']}", made["place"]]):
        resolved = resolve(Source(uri=uri), access)
        pins.append(resolved.pin["files"])
        files = fetch(resolved, tmp_path / str(number), ignore, access)
        assert {file.path: (tmp_path / str(number) / file.path).read_bytes() for file in files} == {
            name.rpartition("/")[2]: data for name, data in logged.items() if "/" in name
        }
    assert pins == [pins[0]] * 4
    mlflow.ask(download="models:/hf@best", to=str(tmp_path / "theirs"))
    for name, data in logged.items():
        assert (tmp_path / "theirs" / name).read_bytes() == data
    for uri in ("models:/hf@nobody", "models:/hf/9", f"models:/m-{'0' * 32}"):
        with pytest.raises(SourceError) as caught:
            resolve(Source(uri=uri), access)
        assert caught.value.code == "source-missing"


def test_its_client_finds_what_is_public_by_the_alias(mlflow: MlflowServer, fleet: Fleet) -> None:
    asked = registering()

    def registered() -> Any:
        register_public(fleet.target, asked, mlflow.url)
        return mlflow.ask(registered=["tiny", "live"])

    made = fleet.rebuild()
    fleet.release(made)
    first = registered()
    assert (first["version"], first["versions"]) == ("1", 1) and first["source"].startswith("s3://")
    assert first["tags"]["enginehouse.release"] == "test/tiny@1"
    assert first["tags"]["enginehouse.repository"] == str(made.repository)
    assert registered() == first
    fleet.release(fleet.rebuild(quantization="nvfp4"))
    second = registered()
    assert (second["version"], second["tags"]["enginehouse.release"]) == ("2", "test/tiny@2")
    fleet.target.move("tiny", lambda current: current.promoted(1))
    assert registered() == {**first, "versions": 2}


@contextmanager
def receiving(receiver: Receiver) -> Generator[str]:
    (port,) = free_ports(1)
    server = uvicorn.Server(server_config(receiver, "127.0.0.1", port))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def test_an_alias_that_is_given_leads_to_the_checkpoint(mlflow: MlflowServer, bucket: Bucket, tmp_path: Path) -> None:
    """Its webhooks arrive signed; of a model that is followed by its alias, a mere version is nothing."""
    catalogue = tmp_path / "catalogue"
    catalogue.mkdir()
    prompt = {"name": "count", "text": "Count.", "max_tokens": 4, "expect": {"min_tokens": 1}}
    for name, changes in {
        "by-alias": {"source": {"uri": "models:/sql@champion"}},
        "sql": {"source": {"uri": "hf://org/base@main"}, "accepts": ["models:/sql/*"]},
    }.items():
        document = {"name": name, "recipe": {"kind": "llamacpp", "dtype": "float16"}, "prompts": [prompt], **changes}
        (catalogue / f"{name}.yaml").write_text(yaml.safe_dump(document))
    (tmp_path / "logged").mkdir()
    write(tmp_path / "logged" / "model.gguf", CONTENT, tensors_per_part=2)
    sent: list[Event] = []

    async def send(id: UUID, event: Event) -> None:
        sent.append(event)

    with receiving(Receiver(bucket, {"mlflow": SECRET.encode()}, WatchedCatalogue(lambda: catalogue), send)) as address:
        events = ["model_version.created", "model_version_alias.created"]
        mlflow.ask(webhook=f"{address}/mlflow", events=events, secret=SECRET)
        mlflow.ask(log="tuned", folder=str(tmp_path / "logged"), register="sql", alias=["sql", "champion", "1"])
        until = time.monotonic() + 60
        while len(sent) < 2 and time.monotonic() < until:
            time.sleep(0.1)
    by_model = {event.model: event for event in sent}
    assert by_model["sql"].source == "models:/sql/1" and by_model["sql"].version == 1

    models, access = load_catalogue(catalogue).models, Access(mlflow=mlflow.url)
    event = by_model["by-alias"]
    chosen, asked = changed_by(event, models)
    assert (asked, event.moved) == ("models:/sql/1", "models:/sql@champion")
    assert pinned_source("models:/sql@champion", resolve(chosen.source, access).pin) == asked
    assert checkpoint(bucket, tmp_path, override(chosen, source=asked).model, access) == whole_checkpoint(tmp_path)
