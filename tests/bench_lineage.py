"""`make bench`: what `lineage` of one artifact and `gc --dry-run` cost in a store of 10,000 artifacts.

The store is an S3 server of its own, filled with small artifacts whose records look like real ones: MODELS models, each
rebuilt REBUILDS times, every tenth rebuild released. Times are those of the whole command.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from infra.processes.sessions import free_ports, terminate
from infra.s3 import seaweedfs
from infra.s3.bucket import Bucket
from tasks.store.artifact import ArtifactRef, Kind, Manifest, ManifestFile, Producer
from tasks.store.identity import Identity
from tasks.store.inventory import in_parallel
from tasks.store.notes import note_output
from tasks.targets.release import Intent, Result
from tasks.targets.target import Target

MODELS, REBUILDS = 25, 100
ROUNDS = 5
LINEAGE_SECONDS, GC_SECONDS = 2.0, 30.0
STEPS: tuple[tuple[str, Kind], ...] = (
    ("fetch", "snapshot"),
    ("convert", "checkpoint"),
    ("build", "engine"),
    ("assemble", "repository"),
)


def chain(model: str, rebuild: int) -> Iterator[tuple[ArtifactRef, Identity, dict[str, str]]]:
    """The artifacts of one rebuild, in the order of their making, with identities and inputs."""
    inputs: dict[str, Identity] = {}
    refs: dict[str, str] = {}
    for step, kind in STEPS:
        fields = {
            "kind": "llamacpp",
            "rebuild": f"{model} {rebuild}",
            "runtime": {"gguf": "0.19.0", "architecture": "cpu"},
        }
        identity = Identity.of(step, 1, inputs=inputs, fields=cast(Any, fields))
        ref = ArtifactRef(kind, identity.digest)
        yield ref, identity, refs
        inputs, refs = {kind: identity}, {kind: str(ref)}


def fill(bucket: Bucket, number: int) -> ArtifactRef:
    """Put one rebuild into the store; returns its engine."""
    model, rebuild = f"model-{number % MODELS}", number // MODELS
    made: dict[str, ArtifactRef] = {}
    for ref, identity, inputs in chain(model, rebuild):
        made[ref.kind] = ref
        body = ref.identity.encode()
        etag = bucket.put(f"{ref.folder}attempt/model.gguf", body)
        manifest = Manifest(
            kind=ref.kind,
            model=model,
            identity=dict(identity.document),
            inputs=inputs,
            attempt="attempt",
            files=(ManifestFile(path="model.gguf", size=len(body), sha256="0" * 64, etag=etag),),
            producer=Producer(task=ref.kind, code="enginehouse 0.1.0"),
            created=datetime.now(UTC),
        )
        note_output(bucket, ref, map(ArtifactRef.parse, inputs.values()))
        bucket.create(ref.folder + "manifest.json", manifest.model_dump_json(indent=1).encode())
    if rebuild % 10 == 0:
        target = Target(bucket, "bench")
        intent = Intent(
            model=model,
            release=rebuild // 10 + 1,
            repository=str(made["repository"]),
            digest="d",
            recipe={},
            source="s",
            flow_run="",
        )
        target.reserve(model, lambda release: intent.model_copy(update={"release": release}))
        target.conclude(model, Result(release=intent.release, state="passed"))
        target.move(model, lambda current: current.promoted(intent.release))
    return made["engine"]


def timed(*arguments: str) -> tuple[float, str]:
    """Seconds that the command took, and its standard output."""
    started = time.monotonic()
    command = [sys.executable, "-m", "deployments.cli.main", *arguments]
    done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE)
    return time.monotonic() - started, done.stdout


def measure(bucket: Bucket) -> int:
    started = time.monotonic()
    engines = in_parallel(lambda number: fill(bucket, number), range(MODELS * REBUILDS))
    count = len(engines) * len(STEPS)
    print(f"a store of {count:,} artifacts of {MODELS} models, made in {time.monotonic() - started:.0f} s")
    names = [str(engines[(len(engines) - 1) * part // (ROUNDS - 1)]) for part in range(ROUNDS)]
    lineages = [timed("lineage", name, "--format", "json") for name in names]
    assert all(len(json.loads(output)["things"]) >= 4 for _, output in lineages)
    lineage = max(seconds for seconds, _ in lineages)
    print(
        f"lineage of one:  median {statistics.median(seconds for seconds, _ in lineages):.2f} s, "
        f"longest {lineage:.2f} s (at most {LINEAGE_SECONDS:g})"
    )
    gc, output = timed("gc", "--dry-run", "--grace", "0", "--json")
    survey = json.loads(output)
    assert len(survey["garbage"]) + len(survey["kept"]) == count, output[:1000]
    print(
        f"gc --dry-run:    {gc:.2f} s (at most {GC_SECONDS:g}): {len(survey['garbage']):,} may go, "
        f"{len(survey['kept']):,} stay"
    )
    return 0 if lineage <= LINEAGE_SECONDS and gc <= GC_SECONDS else 1


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="enginehouse-bench-") as name:
        folder = Path(name)
        ports = dict(zip(seaweedfs.PORT_NAMES, free_ports(len(seaweedfs.PORT_NAMES)), strict=True))
        log, url, key = folder / "log", seaweedfs.endpoint_url(ports), "bench"
        process = seaweedfs.launch(folder / "data", log, ports, key, key)
        try:
            seaweedfs.wait_ready(url, key, key, log=log, process=process)
            seaweedfs.create_bucket(url, key, key, "bench")
            os.environ |= {
                "AWS_ENDPOINT_URL_S3": url,
                "AWS_ACCESS_KEY_ID": key,
                "AWS_SECRET_ACCESS_KEY": key,
                "AWS_DEFAULT_REGION": seaweedfs.REGION,
                "ENGINEHOUSE_STORE": "s3://bench/store",
                "ENGINEHOUSE_TARGET": "bench",
            }
            return measure(Bucket.at("s3://bench/store"))
        finally:
            terminate(process, 10)


if __name__ == "__main__":
    sys.exit(main())
