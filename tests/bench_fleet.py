"""`make bench`: what `deploy` and the release watch cost with a catalogue of 500 models for 4 GPU architectures.

Each command is measured whole, as a process: `deploy` on an empty Prefect server and once more, `watch --dry-run` with
one new version. Requests are counted in the process that sends them, by the server that they go to.
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

import httpx
import yaml

from infra import settings
from infra.processes.sessions import free_ports, start_session, terminate
from infra.settings import CHECKOUT
from tests.index_server import index_server

MODELS = 500
GPUS = {"sm80": "NVIDIA A100-SXM4-80GB", "sm89": "NVIDIA L40S", "sm90": "NVIDIA H200", "sm100": "NVIDIA B200"}
SECONDS, REQUESTS = 10.0, 50

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
counted(httpx2.Client, "send", "package index")
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
                _measure("deploy, new", environment, "deploy"),
                _measure("deploy, nothing to do", environment, "deploy"),
                _measure("watch, to its plan", environment, "watch", "--dry-run"),
            ]
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
def _prefect_server(folder: Path, environment: dict[str, str]) -> Generator[str]:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    process = start_session(command, log=folder / "prefect.log", folder=folder, environment=environment)
    try:
        until = time.monotonic() + 120
        while not _healthy(f"http://127.0.0.1:{port}/api/health"):
            assert process.poll() is None and time.monotonic() < until, (folder / "prefect.log").read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/api"
    finally:
        terminate(process, 10)


def _healthy(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _measure(what: str, environment: dict[str, str], *arguments: str) -> bool:
    """Run a command, print what it cost, and return whether that is within the limits."""
    started = time.monotonic()
    command = [sys.executable, "-c", COUNTING, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    count: dict[str, int] = json.loads(done.stderr.splitlines()[-1])
    requests = sum(count.values())
    servers = ", ".join(f"{number} {server}" for server, number in sorted(count.items()))
    print(f"{what:22} {MODELS} models, {len(GPUS)} architectures: {seconds:5.1f} s, {requests:2} requests ({servers})")
    return seconds <= SECONDS and requests <= REQUESTS


if __name__ == "__main__":
    sys.exit(main())
