"""Set-ups that are broken, one thing at a time: the check names it, and what it tells to type mends it."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from huggingface_hub import HfApi
from packaging.requirements import Requirement

from deployments.doctor import (
    catalogue,
    disk,
    hugging_face,
    image,
    ngc,
    nodes,
    package_index,
    pools,
    prefect_server,
    published_catalogue,
    python,
    store,
    store_clock,
    store_conditions,
    store_speed,
    toolchain,
    triton,
    triton_control,
    workers_catalogue,
)
from deployments.doctor import signing_keys as keys
from deployments.doctor.check import Check, Finding
from deployments.doctor.examine import examine
from deployments.prefect_server.desired import desired
from deployments.stack.home import Home
from deployments.stack.services import WORKERS
from infra import settings
from infra.processes import background, sessions
from infra.settings import CHECKOUT
from tasks.models.catalogue import load_model
from tasks.models.published_catalogue import files_in, publish
from tasks.sources import download
from tasks.targets.node_report import Machine, ModelReport, NodeReport, RecordVersions, ReleaseReport
from tests.deployments.doctor.prefect_double import CREDENTIAL, PrefectDouble
from tests.index_server import index_server
from tests.tasks.conftest import signing_keys as signing_keys  # a fixture
from tests.tasks.sources.hub_server import Hub
from tests.tasks.sources.loopback import Loopback
from tests.tasks.sources.ngc_server import KEY, Ngc
from tests.unconditional_server import unconditional

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from infra.s3.bucket import Bucket
    from tests.fleet import Fleet

NOBODY = "http://127.0.0.1:9"
"""Port 9 of loopback: nothing answers there."""
MODELS = CHECKOUT / "deployments" / "models"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of its own: no stack, one model, and no setting or credential of the user who runs the tests."""
    for name in list(os.environ):
        if name.startswith(("ENGINEHOUSE_", "PREFECT_", "HF_", "NGC_", "PIP_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name in ("home", "catalogue"):
        (tmp_path / name).mkdir()
    shutil.copy(MODELS / "smollm2-135m.yaml", tmp_path / "catalogue")
    monkeypatch.setenv("ENGINEHOUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ENGINEHOUSE_CATALOGUE", str(tmp_path / "catalogue"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def findings(check: Check) -> tuple[Finding, ...]:
    return examine((check,), settings.load())[0].findings


def named(found: tuple[Finding, ...] | list[Finding], code: str, remedy: str, state: str = "wrong") -> None:
    """One finding has this code and state, and tells to type `remedy`."""
    matching = [finding for finding in found if finding.code == code]
    assert [finding.state for finding in matching] == [state] and remedy in matching[0].remedy, found


def broken(check: Check, code: str, remedy: str, state: str = "wrong") -> None:
    named(findings(check), code, remedy, state)


def mended(check: Check, what: str = "") -> None:
    found = findings(check)
    assert not [finding for finding in found if finding.state == "wrong"], found
    assert any(finding.state == "fine" and what in finding.what for finding in found), found


def add_model(uri: str, name: str = "tiny") -> Path:
    """A model in the catalogue, whose weights are at `uri`."""
    text = (MODELS / "llama3-8b-instruct.yaml").read_text()
    text = text.replace("name: llama3-8b-instruct", f"name: {name}").replace("  include:", "  # include:")
    path = settings.load().catalogue / f"{name}.yaml"
    path.write_text(text.replace("hf://meta-llama/Meta-Llama-3-8B-Instruct@main", uri))
    return path


def test_a_package_of_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = [Requirement("packaging>=20"), Requirement("of-an-extra>=2; extra == 'docker'")]
    folder = tmp_path / "packaging-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: packaging\nVersion: 1.0\n")
    with monkeypatch.context() as path:
        path.setattr(sys, "path", [str(tmp_path), *sys.path])
        named(list(python.packages(needed)), "python-package", f"{sys.executable} -m pip install 'packaging>=20'")
    assert list(python.packages(needed)) == []
    mended(python.CHECK, "Enginehouse 0.")


def test_a_disk_that_is_full(home: Path) -> None:
    named([disk.disk(home / "new", 1 << 62)], "disk-space", "export ENGINEHOUSE_HOME=")
    assert disk.disk(home / "new", 1).state == "fine"


def test_a_file_of_the_catalogue_with_mistakes(home: Path) -> None:
    path = home.parent / "catalogue" / "zz.yaml"
    path.write_text("name: [")
    broken(catalogue.CHECK, "spec-invalid", "enginehouse plan zz --offline")
    path.unlink()
    mended(catalogue.CHECK, "1 models can be read")


def test_a_catalogue_that_is_not_there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = os.environ["ENGINEHOUSE_CATALOGUE"]
    monkeypatch.setenv("ENGINEHOUSE_CATALOGUE", str(home / "nowhere"))
    broken(catalogue.CHECK, "catalogue-missing", "export ENGINEHOUSE_CATALOGUE=")
    monkeypatch.setenv("ENGINEHOUSE_CATALOGUE", right)
    mended(catalogue.CHECK)


def test_a_published_catalogue_that_differs(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINEHOUSE_STORE", f"s3://{bucket.name}/{bucket.prefix}")
    folder = Path(os.environ["ENGINEHOUSE_CATALOGUE"])
    assert [finding.state for finding in findings(published_catalogue.CHECK)] == ["not made"]
    publish(bucket, files_in(folder))
    mended(published_catalogue.CHECK, "published by")
    with (folder / "smollm2-135m.yaml").open("a") as file:
        file.write("# changed here alone\n")
    broken(published_catalogue.CHECK, "catalogue-differs", "enginehouse deploy")
    publish(bucket, files_in(folder))
    mended(published_catalogue.CHECK)


def test_a_worker_that_reads_another_catalogue(home: Path) -> None:
    assert [finding.state for finding in findings(workers_catalogue.CHECK)] == ["not made"]
    (name, *_), here = WORKERS, Home(home)
    here.make()

    def start(folder: str) -> None:
        variables = {background.MARKER: str(home), "ENGINEHOUSE_CATALOGUE": folder}
        code = "import time; time.sleep(60)"
        log = here.log(name)
        started = sessions.start_session([sys.executable, "-c", code], log=log, folder=home, environment=variables)
        background.reap(started)
        background.remember(here.record(name), started.pid, {})

    try:
        start("/srv/elsewhere")
        broken(workers_catalogue.CHECK, "catalogue-other", "enginehouse down && enginehouse up")
        background.end_members(home, grace_s=5)
        start(os.environ["ENGINEHOUSE_CATALOGUE"])
        mended(workers_catalogue.CHECK, "as this machine does")
    finally:
        background.end_members(home, grace_s=5)


@pytest.fixture
def bucket(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """The real S3 server, as this machine's store."""
    monkeypatch.setenv("ENGINEHOUSE_STORE", f"s3://{bucket.name}/{bucket.prefix}")
    monkeypatch.setenv("ENGINEHOUSE_TARGET", "test")
    return bucket


def test_a_store_that_is_not_set_or_away(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as variables:
        variables.delenv("ENGINEHOUSE_STORE")
        broken(store.CHECK, "settings", "enginehouse up")
    with monkeypatch.context() as variables:
        variables.setenv("AWS_ENDPOINT_URL_S3", NOBODY)
        broken(store.CHECK, "store-unavailable", f"curl -sSI {NOBODY}")
    mended(store.CHECK, "can be listed and read")


def test_a_store_that_is_slow(bucket: Bucket) -> None:
    named([store_speed.speed(bucket, 1e15)], "store-slow", "enginehouse doctor store-speed", "notice")
    found = store_speed.speed(bucket, 1.0)
    assert found.state == "fine" and "MB/s down" in found.what
    assert list(bucket.list("")) == []


def test_credentials_that_the_store_does_not_know(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as variables:
        variables.setenv("AWS_ACCESS_KEY_ID", "somebody-else")
        broken(store.CHECK, "store-denied", "AWS_ACCESS_KEY_ID")
    mended(store.CHECK)


@pytest.mark.parametrize("header", ["If-Match", "If-None-Match"])
def test_a_store_that_ignores_conditions(
    header: str, bucket: Bucket, s3: S3Client, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with unconditional(bucket.endpoint, s3, header) as endpoint, monkeypatch.context() as variables:
        variables.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        broken(store_conditions.CHECK, "store-unconditional", "set ENGINEHOUSE_STORE_ONE_WRITER to a file")
        variables.setenv("ENGINEHOUSE_STORE_ONE_WRITER", str(home / "lock"))
        broken(store_conditions.CHECK, "store-one-writer", "unset ENGINEHOUSE_STORE_ONE_WRITER", "notice")
    mended(store_conditions.CHECK, header)


def test_a_clock_that_is_wrong(bucket: Bucket) -> None:
    for minutes, way in ((5, "ahead of"), (-5, "behind")):
        found = store_clock.clock(bucket, lambda minutes=minutes: datetime.now(UTC) + timedelta(minutes=minutes))
        named([found], "store-clock", "timedatectl set-ntp true")
        assert f" s {way} the store's" in found.what
    mended(store_clock.CHECK)


@pytest.fixture
def prefect(monkeypatch: pytest.MonkeyPatch) -> Iterator[PrefectDouble]:
    """A server that `enginehouse deploy` has been at, with a worker for each pool."""
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", CREDENTIAL)
    with PrefectDouble() as double:
        monkeypatch.setenv("PREFECT_API_URL", double.api)
        wanted = desired(settings.load(), [load_model(MODELS / "smollm2-135m.yaml")])
        double.deploy([pool.name for pool in wanted.pools], [each.name for each in wanted.deployments])
        for name, pool in double.pools.items():
            pool.workers.append(f"worker-{name}")
        yield double


def test_a_prefect_server_that_is_unknown_away_or_refuses(
    prefect: PrefectDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as variables:
        variables.delenv("PREFECT_API_URL")
        broken(prefect_server.CHECK, "prefect-missing", "export PREFECT_API_URL")
    with monkeypatch.context() as variables:
        variables.setenv("PREFECT_API_URL", f"{NOBODY}/api")
        broken(prefect_server.CHECK, "prefect-failed", "enginehouse up")
    with monkeypatch.context() as variables:
        variables.setenv("PREFECT_API_AUTH_STRING", "enginehouse:guessed")
        broken(prefect_server.CHECK, "prefect-denied", 'eval "$(enginehouse env)"')
    mended(prefect_server.CHECK, "Prefect 3.8.8")


def test_a_prefect_server_of_another_version(prefect: PrefectDouble) -> None:
    for version, code, state in (("2.20.0", "prefect-version", "wrong"), ("3.1.0", "prefect-older", "notice")):
        prefect.version = version
        broken(prefect_server.CHECK, code, "pip install prefect==3.8.8", state)
    prefect.version = "3.8.8"
    mended(prefect_server.CHECK)


def test_pools_that_are_not_as_deploy_makes_them(prefect: PrefectDouble) -> None:
    build = prefect.pools.pop("build-cpu")
    broken(pools.CHECK, "pool-missing", "enginehouse deploy")
    prefect.pools["build-cpu"] = build
    prefect.pools["default"].is_paused = True
    broken(pools.CHECK, "pool-paused", "prefect work-pool resume default")
    prefect.pools["default"].is_paused = False
    prefect.pools["default"].type = "docker"
    broken(pools.CHECK, "pool-type", "export ENGINEHOUSE_POOLS='default=docker'")
    prefect.pools["default"].type = "process"
    mended(pools.CHECK, "deployments are there")


def test_workers_and_deployments_that_are_missing(prefect: PrefectDouble) -> None:
    worker = prefect.pools["default"].workers.pop()
    broken(pools.CHECK, "pool-without-worker", "prefect worker start --pool default --type process")
    prefect.pools["default"].workers.append(worker)
    prefect.deployments.remove("rollback")
    broken(pools.CHECK, "deployment-missing", "enginehouse deploy")
    prefect.deployments.add("rollback")
    mended(pools.CHECK, "'default' has 1 workers: worker-default")


def report(fleet: Fleet, **more: Any) -> None:
    """What a node writes that lives."""
    memory = {"memory_total_bytes": 1 << 34, "memory_available_bytes": 1 << 33}
    about: dict[str, Any] = {"node": "one", "target": fleet.target.name, "http": "", "grpc": "", "triton_pid": 1}
    fleet.target.report(NodeReport(**about, **memory, **more))


def test_a_target_without_a_node(fleet: Fleet) -> None:
    broken(nodes.CHECK, "no-live-node", "enginehouse node")
    report(fleet)
    mended(nodes.CHECK, "node one of 'test': 0 of 0 models answer")


def test_a_node_whose_release_failed(fleet: Fleet) -> None:
    failed = ReleaseReport(state="failed", error="out of memory")
    report(fleet, models={"tiny": ModelReport(public=None, error="no release is ready", releases={1: failed})})
    broken(nodes.CHECK, "release-failed", "enginehouse rebuild tiny")
    broken(nodes.CHECK, "node-behind", "enginehouse rollback tiny")
    report(fleet, models={"tiny": ModelReport(public=2, releases={2: ReleaseReport(state="ready")})})
    mended(nodes.CHECK, "1 of 1 models answer")


def test_a_node_of_an_older_enginehouse_or_triton(fleet: Fleet) -> None:
    report(fleet, reads=RecordVersions(intent=1), machine=Machine(triton="24.10"))
    broken(nodes.CHECK, "node-older", "start its `enginehouse node` anew")
    broken(nodes.CHECK, "triton-weak", "25.07", "notice")
    report(fleet)
    mended(nodes.CHECK)


def test_a_triton_that_is_not_where_it_should_be(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINEHOUSE_TRITON", str(home))
    broken(triton.CHECK, "triton-missing", "unset ENGINEHOUSE_TRITON")
    (home / "bin").mkdir()
    (home / "bin" / "tritonserver").touch()
    (home / "backends" / "tensorrtllm").mkdir(parents=True)
    broken(triton.CHECK, "triton-backend", "infra/images.toml")
    (home / "backends" / "python").mkdir()
    mended(triton.CHECK, "backends python, tensorrtllm")
    monkeypatch.delenv("ENGINEHOUSE_TRITON")
    broken(triton.CHECK, "triton-weak", "25.07", "notice")
    mended(triton.CHECK)


class _Triton(BaseHTTPRequestHandler):
    """A Triton whose model control is open at `/open`, and elsewhere restricted, as Triton says it."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path.endswith("/v2/health/live") else 404)
        self.end_headers()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200 if self.path == "/open/v2/repository/index" else 403)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_triton_into_which_anybody_may_load(monkeypatch: pytest.MonkeyPatch) -> None:
    with Loopback(ThreadingHTTPServer(("127.0.0.1", 0), _Triton)) as server:
        monkeypatch.setenv("ENGINEHOUSE_TRITON_HTTP", f"{server.url}/open")
        broken(triton_control.CHECK, "triton-open", "enginehouse node")
        monkeypatch.setenv("ENGINEHOUSE_TRITON_HTTP", NOBODY)
        broken(triton_control.CHECK, "triton-down", "enginehouse up")
        monkeypatch.setenv("ENGINEHOUSE_TRITON_HTTP", server.url)
        mended(triton_control.CHECK, "is restricted (403)")


def test_a_toolchain_that_is_not_there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINEHOUSE_TOOLCHAIN", f"venv:{home}")
    broken(toolchain.CHECK, "toolchain-missing", "set ENGINEHOUSE_TOOLCHAIN")
    monkeypatch.setenv("ENGINEHOUSE_TOOLCHAIN", "venv")
    mended(toolchain.CHECK)


def test_a_list_of_images_that_cannot_be_read(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = home / "images.toml"
    table.write_text("[[image]]\nreference = 1\n")
    monkeypatch.setenv("ENGINEHOUSE_IMAGES", str(table))
    broken(image.CHECK, "settings", "infra/images.toml")
    table.write_text('[[image]]\nreference = "nowhere:1"\ntensorrt_llm = "0.9.0"\n')
    add_model("hf://org/tiny@main")
    broken(image.CHECK, "image-missing", "export ENGINEHOUSE_IMAGES=", "notice")
    monkeypatch.delenv("ENGINEHOUSE_IMAGES")
    mended(image.CHECK)


def test_a_hub_that_does_not_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    add_model("hf://org/tiny@main")
    with Hub() as hub:
        check = Check("hub", "", lambda here: hugging_face.hub(here, HfApi(endpoint=hub.url)))
        hub.push("org/tiny", {"config.json": b"{}"}, gated=True)
        broken(check, "source-gated", "hf auth login")
        monkeypatch.setenv("HF_TOKEN", "hf_expired")
        broken(check, "hub-token", "hf auth login")
        hub.tokens.add("hf_expired")
        mended(check, "the token is that of somebody")


def test_a_key_that_ngc_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    add_model("ngc://nvidia/nemo/tiny@1.0")
    monkeypatch.setattr(download, "PAUSE_S", 0.01)
    with Ngc() as server:
        for name in ("NGC_CLI_API_URL", "NGC_CLI_AUTH_URL"):
            monkeypatch.setenv(name, server.url)
        server.upload("nvidia/nemo/tiny", "1.0", {"config.json": b"{}"})
        monkeypatch.setenv("NGC_API_KEY", "nvapi-revoked")
        broken(ngc.CHECK, "source-gated", "Set NGC_API_KEY")
        monkeypatch.setenv("NGC_API_KEY", KEY)
        mended(ngc.CHECK, "can be read")


@pytest.mark.slow  # pip tells its configuration within a second of computing
def test_a_package_index_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [finding.state for finding in findings(package_index.CHECK)] == ["not made"]
    path = add_model("hf://org/tiny@main")
    path.write_text(path.read_text() + "updates: {policy: stable}\n")
    with index_server() as index:
        index.release("1.1.0")
        monkeypatch.setenv("PIP_INDEX_URL", index.url)
        index.broken = True
        broken(package_index.CHECK, "source-unavailable", "pip config list")
        index.broken = False
        mended(package_index.CHECK, "the newest is 1.1.0")


def test_keys_that_are_open_foreign_or_none(
    signing_keys: dict[str, str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("model_signing", reason="the extra `signing` is not installed")
    private = Path(shutil.copy(signing_keys["ours"], home / "key"))
    private.chmod(0o644)
    monkeypatch.setenv("ENGINEHOUSE_SIGNING_KEY", str(private))
    monkeypatch.setenv("ENGINEHOUSE_SIGNING_PUBLIC_KEY", signing_keys["other.pub"])
    broken(keys.CHECK, "signing-key-open", f"chmod 600 {private}")
    broken(keys.CHECK, "signature-foreign", f"openssl ec -in {private} -pubout")
    private.chmod(0o600)
    monkeypatch.setenv("ENGINEHOUSE_SIGNING_PUBLIC_KEY", f"{signing_keys['other.pub']} {signing_keys['ours.pub']}")
    mended(keys.CHECK, "signs")
    private.write_text(hashlib.sha256(b"no key").hexdigest())
    broken(keys.CHECK, "signature-key", "ENGINEHOUSE_SIGNING_KEY names a PEM file")
