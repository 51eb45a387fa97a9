"""A process that makes one artifact as every step does, on a machine of its own as far as its files go.

    python -m tests.tasks.store.artifact_maker STORE FOLDER LEASE_SECONDS WORK_SECONDS [refresh] [stops]

It prints `ready`, waits for a line, prints `working` when it does the work, and ends with the attempt it got, as JSON.
With `stops` it stops itself when all its files are uploaded and its manifest is not yet committed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from infra.s3.bucket import Bucket
from tasks.steps.context import Context
from tasks.steps.workspace import Workspace
from tasks.store.artifact import ArtifactRef
from tasks.store.artifact_store import ArtifactStore
from tasks.store.identity import Identity
from tasks.store.signing import Sign, Statement

IDENTITY = Identity.of("assemble", 1, inputs={}, fields={"serving": "of the lease tests"})
REF = ArtifactRef("repository", IDENTITY.digest)


class _Stop(Sign):
    """Signs nothing, and stops this process."""

    def __call__(self, statement: Statement) -> bytes:
        os.kill(os.getpid(), signal.SIGSTOP)
        return b"{}"


def _say(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    store, folder, lease_seconds, work_seconds, *flags = sys.argv[1:]
    sign = _Stop("no key") if "stops" in flags else None
    context = Context(
        ArtifactStore(Bucket.at(store), sign), Workspace(Path(folder)), Path(folder).name, float(lease_seconds)
    )

    def work(output: Path) -> None:
        _say("working")
        time.sleep(float(work_seconds))
        for number in range(3):
            (output / f"{number}.bin").write_bytes(os.urandom(1 << 20))
        (Path(folder).parent / f"{Path(folder).name}.worked").touch()

    context.store.find(REF)  # the client is made before the race begins
    _say("ready")
    sys.stdin.readline()
    done = context.make_once(REF, IDENTITY, work, task="test", inputs={}, refresh="refresh" in flags)
    assert done.artifact is not None
    _say(json.dumps({"attempt": done.artifact.manifest.attempt, "cached": done.cached}))


if __name__ == "__main__":
    main()
