"""What is public is registered with MLflow: once, with an alias that follows, and again after it was missed.

The registry answers as MLflow 3.17 does. The real one is asked in `tests/deployments/webhooks/test_mlflow.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from deployments.webhooks.senders import SENDERS
from infra.errors import EnginehouseError, SpecError
from infra.s3.bucket import Bucket
from infra.settings import CHECKOUT
from tasks.finetuned.renamed import Renames
from tasks.models.catalogue import load_model
from tasks.models.spec import Model
from tasks.steps.register import Registered, register_public
from tasks.targets.target import Target
from tests.fleet import Fleet
from tests.tasks.sources.loopback import Loopback

TINY = load_model(CHECKOUT / "deployments" / "models" / "smollm2-135m.yaml")


class Registry(Loopback):
    """Registered models in memory."""

    def __init__(self) -> None:
        self.versions: dict[str, list[dict[str, Any]]] = {}
        self.aliases: dict[tuple[str, str], str] = {}
        self.status = 0  # what it answers in place of all else
        self.posts = 0
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                self._answer(registry.get(parts.path, {name: each[0] for name, each in parse_qs(parts.query).items()}))

            def do_POST(self) -> None:
                registry.posts += 1
                document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._answer(registry.post(self.path, document))

            def _answer(self, found: tuple[int, Any]) -> None:
                status, document = (registry.status, dict[str, Any]()) if registry.status else found
                body = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        super().__init__(ThreadingHTTPServer(("127.0.0.1", 0), Handler))

    def get(self, path: str, query: Mapping[str, str]) -> tuple[int, Any]:
        if path == "/api/2.0/mlflow/registered-models/alias":
            version = self.aliases.get((query["name"], query["alias"]))
            if version is None:
                return (400 if query["name"] in self.versions else 404), {}
            return 200, {"model_version": self.versions[query["name"]][int(version) - 1]}
        assert path == "/api/2.0/mlflow/model-versions/search"
        asked = re.fullmatch(r"name='([^']*)' and tags\.`([\w.]+)`='([^']*)'", query["filter"])
        assert asked is not None
        name, key, value = asked.groups()
        wanted = {"key": key, "value": value}
        return 200, {"model_versions": [each for each in self.versions.get(name, []) if wanted in each["tags"]]}

    def post(self, path: str, document: Mapping[str, Any]) -> tuple[int, Any]:
        name = document["name"]
        match path.removeprefix("/api/2.0/mlflow/"):
            case "registered-models/create":
                if name in self.versions:
                    return 400, {"error_code": "RESOURCE_ALREADY_EXISTS"}
                self.versions[name] = []
                return 200, {"registered_model": {"name": name}}
            case "model-versions/create":
                version = str(len(self.versions[name]) + 1)
                self.versions[name].append({"version": version, "source": document["source"], "tags": document["tags"]})
                return 200, {"model_version": self.versions[name][-1]}
            case other:
                assert other == "registered-models/alias"
                self.aliases[name, document["alias"]] = document["version"]
                return 200, {}


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as running:
        yield running


def model(**mlflow: Any) -> Model:
    return Model.model_validate(
        {**TINY.model_dump(by_alias=True), "name": "tiny", "targets": ("test",), "mlflow": mlflow}
    )


def test_the_alias_follows_the_public_name(fleet: Fleet, registry: Registry) -> None:
    asked = model()
    assert register_public(fleet.target, asked, registry.url) is None and registry.posts == 0
    made = fleet.rebuild()
    fleet.release(made)
    done = register_public(fleet.target, asked, f"{registry.url}/")
    assert done == Registered("test/tiny@1", "tiny", "live", "1") and "version 1 of 'tiny'" in str(done)
    (version,) = registry.versions["tiny"]
    engine = fleet.store.need(made.engine)
    bucket = fleet.store.bucket
    assert version["source"] == f"s3://{bucket.name}/{bucket.prefix}{made.engine.folder}{engine.manifest.attempt}"
    tags = {tag["key"]: tag["value"] for tag in version["tags"]}
    assert tags["enginehouse.release"] == "test/tiny@1" and tags["enginehouse.repository"] == str(made.repository)
    posts = registry.posts
    assert register_public(fleet.target, asked, registry.url) is None and registry.posts == posts
    fleet.release(fleet.rebuild(quantization="nvfp4"))
    assert register_public(fleet.target, asked, registry.url) == Registered("test/tiny@2", "tiny", "live", "2")
    fleet.target.move("tiny", lambda current: current.promoted(1))
    assert register_public(fleet.target, asked, registry.url) == Registered("test/tiny@1", "tiny", "live", "1")
    assert len(registry.versions["tiny"]) == 2 and registry.aliases == {("tiny", "live"): "1"}


def test_names_are_those_of_the_file(fleet: Fleet, registry: Registry) -> None:
    fleet.release(fleet.rebuild())
    asked = model(name="Tiny served", alias="prod").model_copy(update={"targets": ("test", "other")})
    assert register_public(fleet.target, asked, registry.url) == Registered(
        "test/tiny@1", "Tiny served", "prod-test", "1"
    )
    assert register_public(fleet.target, model().model_copy(update={"mlflow": None}), "") is None


@pytest.mark.parametrize(
    ("status", "code"), [(503, "source-unavailable"), (403, "registry-refused"), (401, "registry-refused")]
)
def test_what_a_registry_says_is_an_error_that_says_what_to_do(
    fleet: Fleet, registry: Registry, status: int, code: str
) -> None:
    fleet.release(fleet.rebuild())
    registry.status = status
    with pytest.raises(EnginehouseError) as caught:
        register_public(fleet.target, model(), registry.url)
    assert caught.value.code == code and caught.value.hint
    registry.status = 0
    assert register_public(fleet.target, model(), registry.url) is not None
    with pytest.raises(EnginehouseError) as caught:
        register_public(fleet.target, model(), "")
    assert caught.value.code == "settings"


class Moving(Target):
    """A target whose public name is moved by somebody else while it is registered."""

    def live(self, model: str) -> Any:
        found = super().live(model)
        if found is not None and found.release == 1 and 2 in self.releases(model):
            self.move(model, lambda current: current.promoted(2))
        return found


def test_a_name_that_moves_meanwhile_is_registered_in_the_end(fleet: Fleet, registry: Registry) -> None:
    fleet.release(fleet.rebuild())
    fleet.release(fleet.rebuild(quantization="nvfp4"), public=False)
    moving = Moving(fleet.target.bucket, fleet.target.name)
    assert register_public(moving, model(), registry.url) == Registered("test/tiny@2", "tiny", "live", "2")
    assert registry.aliases == {("tiny", "live"): "2"}


def test_a_release_is_no_new_weights(bucket: Bucket) -> None:
    asked = {"tiny": model().model_copy(update={"accepts": ("models:/tiny/*", "s3://store/**")})}
    data: dict[str, Any] = {"name": "tiny", "version": "3", "source": "s3://store/engine", "tags": {}}
    document: Any = {"entity": "model_version", "action": "created", "data": data}
    renames = Renames(bucket)
    assert len(list(SENDERS["mlflow"].events(document, asked, renames))) == 1
    data["tags"] = {"enginehouse.release": "test/tiny@1"}
    assert list(SENDERS["mlflow"].events(document, asked, renames)) == []


@pytest.mark.parametrize(
    "field", ["alias: latest", "alias: v1", "alias: a b", "name: a/b", "name: 'a:b'", "version: 1", "name: base"]
)
def test_what_cannot_be_registered_is_an_error_of_the_file(tmp_path: Path, field: str) -> None:
    text = (CHECKOUT / "deployments" / "models" / "smollm2-135m.yaml").read_text()
    source = "source: {uri: 'models:/base@best'}\n"
    text = re.sub(r"^source:\n( .*\n)+", source, text, flags=re.MULTILINE)
    path = tmp_path / "smollm2-135m.yaml"
    path.write_text(f"{text}\nmlflow: {{name: served}}\n")
    assert load_model(path).mlflow is not None
    path.write_text(f"{text}\nmlflow: {{{field}}}\n")
    with pytest.raises(SpecError) as caught:
        load_model(path)
    assert caught.value.code == "spec-invalid" and "mlflow" in str(caught.value)
