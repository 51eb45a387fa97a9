"""`make bench`: what `deploy` and the release watch cost with a catalogue of 500 models for 4 GPU architectures, and
`status` with 500 models on 20 nodes.

Each command is measured whole, as a process: `deploy` on an empty Prefect server and once more, `watch --dry-run` with
one new version, `status` as somebody's first look and once more. Requests are counted in the process that sends them,
by the server that they go to.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import yaml

from infra import settings
from infra.processes.sessions import free_ports, start_session, terminate
from infra.s3.bucket import Bucket
from infra.settings import CHECKOUT
from tasks.models.catalogue import load_catalogue
from tasks.models.spec import Model
from tasks.store.inventory import in_parallel
from tasks.targets.node_report import ModelReport, NodeReport, ReleaseReport
from tasks.targets.release import Intent, Result
from tasks.targets.target import Target
from tests.index_server import index_server
from tests.waiting import wait_for_server

MODELS = 500
GPUS = {"sm80": "NVIDIA A100-SXM4-80GB", "sm89": "NVIDIA L40S", "sm90": "NVIDIA H200", "sm100": "NVIDIA B200"}
SECONDS, REQUESTS = 10.0, 50
MADE = 60
"""Requests of `deploy` on an empty server: one for each flow, deployment, pool, queue and automation that it makes."""
NODES, STATUS_SECONDS, TARGET = 20, 3.0, "local"

COUNTING = """
import json, sys
from collections import Counter
import botocore.httpsession, httpx, httpx2
from deployments.cli.main import main

count = Counter()

def counted(owner, name, what):
    send = getattr(owner, name)
    def counting(*arguments, **options):
        count[what] += 1
        return send(*arguments, **options)
    setattr(owner, name, counting)

counted(httpx.AsyncClient, "send", "Prefect")
counted(httpx.Client, "send", "Prefect")
counted(httpx2.Client, "send", "Prefect" if sys.argv[1] == "status" else "package index")
counted(botocore.httpsession.URLLib3Session, "send", "store")
code = main(sys.argv[1:])
print(json.dumps(count), file=sys.stderr)
sys.exit(code)
"""


def main() -> int:
    settings.activate()
    with tempfile.TemporaryDirectory() as name, index_server() as index:
        folder = Path(name)
        _make_catalogue(folder / "models")
        index.release("1.1.0")
        index.release("1.2.1")
        (folder / "pip.conf").write_text(f"[global]\nindex-url = {index.url}\nextra-index-url =\n")
        environment = {
            **os.environ,
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PIP_CONFIG_FILE": str(folder / "pip.conf"),
            "ENGINEHOUSE_CATALOGUE": str(folder / "models"),
            "ENGINEHOUSE_STORE": f"{settings.load().store}/bench-fleet",
        }
        environment.pop("PREFECT_API_URL", None)
        with _prefect_server(folder, environment) as api:
            environment["PREFECT_API_URL"] = api
            within = [
                _measure("deploy, new", environment, "deploy", most=MADE),
                _measure("deploy, nothing to do", environment, "deploy"),
                _measure("watch, to its plan", environment, "watch", "--dry-run"),
            ]
            environment["ENGINEHOUSE_CATALOGUE"] = str(folder / "served")
            with _served_fleet(folder / "served", f"{settings.load().store}/bench-status-{time.time_ns()}") as store:
                environment["ENGINEHOUSE_STORE"] = store
                _measure("status, first look", environment, "status", "--json")
                within.append(_measure("status", environment, "status", "--json", seconds=STATUS_SECONDS))
    return 0 if all(within) else 1


def _make_catalogue(folder: Path) -> None:
    folder.mkdir()
    document = yaml.safe_load((CHECKOUT / "deployments/models/llama3-8b-instruct.yaml").read_text())
    document["updates"] = {"policy": "stable"}
    document["recipe"]["quantization"] = "none"
    for number in range(MODELS):
        for arch, gpu in GPUS.items():
            document["name"] = f"model-{number:03}-{arch}"
            document["recipe"]["runtime"] = {"tensorrt_llm": "1.1.0", "gpu": gpu, "arch": arch, "gpus": 1}
            (folder / f"{document['name']}.yaml").write_text(yaml.safe_dump(document, sort_keys=False))


@contextmanager
def _served_fleet(catalogue: Path, store: str) -> Generator[str]:
    """A store in which every model has a live release, and every node answers with it; and the models' files."""
    bucket = Bucket.at(store)
    target = Target(bucket, TARGET)
    catalogue.mkdir()
    document = yaml.safe_load((CHECKOUT / "deployments/models/llama3-8b-instruct.yaml").read_text())
    names = [f"model-{number:03}" for number in range(MODELS)]
    for name in names:
        (catalogue / f"{name}.yaml").write_text(yaml.safe_dump({**document, "name": name, "targets": [TARGET]}))
    try:
        in_parallel(lambda model: _release(target, model), load_catalogue(catalogue).models.values())
        reports = {name: ModelReport(public=1, releases={1: ReleaseReport(state="ready")}) for name in names}
        for number in range(NODES):
            about = {"http": "", "grpc": "", "triton_pid": 1, "memory_total_bytes": 1, "memory_available_bytes": 1}
            target.report(
                NodeReport.model_validate({"node": f"n{number}", "target": TARGET, "models": reports, **about})
            )
        yield store
    finally:
        in_parallel(lambda entry: bucket.delete(entry.key), list(bucket.list("")))


def _release(target: Target, model: Model) -> None:
    made = Intent(
        model=model.name,
        release=1,
        repository=f"repository/{'0' * 64}",
        digest="d",
        recipe=model.recipe.model_dump(mode="json"),
        serving=model.serving.model_dump(mode="json"),
        source=model.origin,
        flow_run="",
    )
    target.reserve(model.name, lambda number: made)
    target.conclude(model.name, Result(release=1, state="passed"))
    target.move(model.name, lambda current: current.promoted(1))


@contextmanager
def _prefect_server(folder: Path, environment: dict[str, str]) -> Generator[str]:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    process = start_session(command, log=folder / "prefect.log", folder=folder, environment=environment)
    try:
        wait_for_server(process, f"http://127.0.0.1:{port}/api/health", folder / "prefect.log", 40)
        yield f"http://127.0.0.1:{port}/api"
    finally:
        terminate(process, 10)


def _measure(
    what: str, environment: dict[str, str], *arguments: str, seconds: float = SECONDS, most: int = REQUESTS
) -> bool:
    """Run a command, print what it cost, and return whether that is within the limits."""
    started = time.monotonic()
    command = [sys.executable, "-c", COUNTING, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    took = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    count: dict[str, int] = json.loads(done.stderr.splitlines()[-1])
    requests = sum(count.values())
    servers = ", ".join(f"{number} {server}" for server, number in sorted(count.items()))
    print(f"{what:22} {MODELS} models, {len(GPUS)} architectures: {took:5.1f} s, {requests:2} requests ({servers})")
    return took <= seconds and requests <= most


if __name__ == "__main__":
    sys.exit(main())
