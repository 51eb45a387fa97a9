"""`make bench`: an artifact of BENCH_GIB (4) GiB in 9 files to an S3 server and back, against `aws s3 cp` and boto3.

Each transfer is a process, measured whole, with its peak memory. Ours hashes and verifies; `aws s3 cp --recursive`
(from the package `awscli`, in a virtual environment of its own) and boto3 with many connections do not. All three use
the same server in turns, each round a new one, and their medians are compared.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.processes.sessions import free_ports, terminate
from infra.s3 import seaweedfs
from infra.s3.bucket import Bucket
from tasks.store.artifact import ArtifactRef, Producer
from tasks.store.artifact_store import ArtifactStore
from tasks.store.identity import Identity

GIB = float(os.environ.get("BENCH_GIB", "4"))
FILES, ROUNDS = 9, 3
AWS_RATIO, BOTO_RATIO = 1.0, 0.9
PEAK_MB, GROWTH, AGAIN_SECONDS = 400, 1.2, 0.5
BUCKET, KEY = "bench", "bench"

IDENTITY = Identity.of("build", 1, inputs={}, fields={"bench": "transfers"})
REF = ArtifactRef("engine", IDENTITY.digest)


def publish(folder: Path) -> None:
    """Our upload, as the steps do it: the store is asked first. Prints the seconds that the call took."""
    started = time.monotonic()
    store = ArtifactStore(Bucket.at(os.environ["ENGINEHOUSE_STORE"]))
    if store.find(REF) is None:
        store.publish(REF, IDENTITY, folder, inputs={}, producer=Producer(task="build", code="bench"))
    print(time.monotonic() - started)


def bring(folder: Path) -> None:
    store = ArtifactStore(Bucket.at(os.environ["ENGINEHOUSE_STORE"]))
    store.download(store.need(REF), folder)


def boto_up(folder: Path) -> None:
    client, config = _tuned_boto()
    for path in sorted(folder.iterdir()):
        client.upload_file(str(path), BUCKET, f"boto/{path.name}", Config=config)


def boto_down(folder: Path) -> None:
    client, config = _tuned_boto()
    folder.mkdir()
    for entry in client.list_objects_v2(Bucket=BUCKET, Prefix="boto/")["Contents"]:
        client.download_file(BUCKET, entry["Key"], str(folder / Path(entry["Key"]).name), Config=config)


def _tuned_boto() -> tuple[Any, Any]:
    import boto3
    from boto3.s3.transfer import TransferConfig
    from botocore.config import Config

    boto: Any = boto3
    config = TransferConfig(multipart_threshold=16 << 20, multipart_chunksize=16 << 20, max_concurrency=8)
    return boto.client("s3", config=Config(max_pool_connections=16)), config


OWN: Mapping[str, Callable[[Path], None]] = {
    "publish": publish,
    "bring": bring,
    "boto-up": boto_up,
    "boto-down": boto_down,
}


@dataclass(frozen=True)
class Transfer:
    """A process that has ended: seconds of the whole, the most memory that it held, its standard output."""

    seconds: float
    peak_mb: float
    output: str


def run(*command: str | Path) -> Transfer:
    """Run a process to its end."""
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output)
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0, command
        output.seek(0)
        # Linux counts ru_maxrss in KiB.
        return Transfer(time.monotonic() - started, usage.ru_maxrss * 1024 / 1e6, output.read())


def own(action: str, folder: Path) -> Transfer:
    """Run an action of this module as a process."""
    return run(sys.executable, "-m", "tests.bench_transfers", action, folder)


def make(folder: Path, gib: float) -> Path:
    """Fill `folder` with FILES files that do not compress, `gib` GiB in all."""
    folder.mkdir()
    for number in range(FILES):
        with (folder / f"rank{number}.engine").open("wb") as file:
            for _ in range(int(gib * 1024 / FILES)):
                file.write(os.urandom(1 << 20))
    return folder


def round_of(number: int, aws: Path, source: Path, work: Path) -> dict[str, Transfer]:
    """All three up and down on a new server, in an order that changes by round; then ours up a second time."""
    ports = dict(zip(seaweedfs.PORT_NAMES, free_ports(len(seaweedfs.PORT_NAMES)), strict=True))
    url, log, prefix = seaweedfs.endpoint_url(ports), work / "log", f"s3://{BUCKET}/aws/"
    ways: dict[str, dict[str, Callable[[Path], Transfer]]] = {
        "up": {
            "aws": lambda folder: run(aws, "s3", "cp", "--quiet", "--recursive", folder, prefix),
            "boto": lambda folder: own("boto-up", folder),
            "our": lambda folder: own("publish", folder),
        },
        "down": {
            "aws": lambda folder: run(aws, "s3", "cp", "--quiet", "--recursive", prefix, folder),
            "boto": lambda folder: own("boto-down", folder),
            "our": lambda folder: own("bring", folder),
        },
    }
    ran: dict[str, Transfer] = {}
    process = seaweedfs.launch(work / "data", log, ports, KEY, KEY)
    try:
        seaweedfs.wait_ready(url, KEY, KEY, log=log, process=process)
        seaweedfs.create_bucket(url, KEY, KEY, BUCKET)
        os.environ["AWS_ENDPOINT_URL_S3"] = url
        for way, movers in ways.items():
            names = [*movers][number % 3 :] + [*movers][: number % 3]
            for name in names:
                folder = source if way == "up" else work / name
                os.sync()  # else this transfer would pay for what the one before has left to write
                ran[f"{name} {way}"] = movers[name](folder)
                if way == "down":
                    shutil.rmtree(folder)
        ran["our again"] = own("publish", source)
        return ran
    finally:
        terminate(process, 10)


def measure(folder: Path) -> int:
    venv.create(folder / "aws", with_pip=True)
    install = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "awscli")
    subprocess.run([folder / "aws/bin/python", *install], check=True)
    aws = folder / "aws/bin/aws"
    rounds: list[dict[str, Transfer]] = []
    peaks: list[float] = []
    for size, count in ((GIB / 4, 1), (GIB, ROUNDS)):
        source = make(folder / f"{size:g}", size)
        for number in range(count):
            with tempfile.TemporaryDirectory(dir=folder) as work:
                rounds.append(round_of(number, aws, source, Path(work)))
            print(f"{size:g} GiB, round {number + 1}: " + speeds(rounds[-1], size), flush=True)
        peaks.append(max(ran[name].peak_mb for ran in rounds[-count:] for name in ("our up", "our down")))
        for path in source.iterdir():
            path.unlink()
    full = rounds[1:]
    within = True
    for way in ("up", "down"):
        ours = statistics.median(ran[f"our {way}"].seconds for ran in full)
        for rival, least in (("aws", AWS_RATIO), ("boto", BOTO_RATIO)):
            ratio = statistics.median(ran[f"{rival} {way}"].seconds for ran in full) / ours
            print(f"{way:4} {ratio:.2f} times the speed of {rival} (at least {least})")
            within &= ratio >= least
    again = max(float(ran["our again"].output) for ran in full)
    print(f"again, with nothing to send: {again:.2f} s (at most {AGAIN_SECONDS})")
    print(f"peak memory: {peaks[0]:.0f} MB at {GIB / 4:g} GiB, {peaks[1]:.0f} MB at {GIB:g} GiB (under {PEAK_MB})")
    return 0 if within and again <= AGAIN_SECONDS and peaks[1] < min(PEAK_MB, GROWTH * peaks[0]) else 1


def speeds(ran: Mapping[str, Transfer], gib: float) -> str:
    return ", ".join(f"{name} {gib * 1024 / one.seconds:.0f} MiB/s" for name, one in ran.items() if name != "our again")


def main() -> int:
    if sys.argv[1:]:
        OWN[sys.argv[1]](Path(sys.argv[2]))
        return 0
    os.environ |= {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": KEY,
        "AWS_DEFAULT_REGION": seaweedfs.REGION,
        "ENGINEHOUSE_STORE": f"s3://{BUCKET}/store",
    }
    with tempfile.TemporaryDirectory(prefix="enginehouse-bench-") as name:
        return measure(Path(name))


if __name__ == "__main__":
    sys.exit(main())
