"""What every step is given: the store, a local workspace, the flow run that asks."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from infra.s3.bucket import Bucket
from infra.settings import Settings
from tasks.steps.workspace import Workspace
from tasks.store.artifact import Artifact, ArtifactRef, Producer
from tasks.store.artifact_store import ArtifactStore
from tasks.store.identity import Identity
from tasks.store.lease import held
from tasks.store.reporter import Peak, Reporter
from tasks.store.signing import signer
from tasks.targets.target import Target

INTO_THE_STORE = "its files go to the store"
"""What a step says between making files and bringing them to the store: its bytes begin anew there."""


@dataclass(frozen=True)
class Done:
    """What a step returns that makes an artifact. `artifact` is None while it lies only on this machine's disk."""

    artifact: Artifact | None
    cached: bool


@dataclass(frozen=True)
class Context:
    """What one step is given, and how it makes an artifact once."""

    store: ArtifactStore
    workspace: Workspace
    flow_run: str
    """Id of the Prefect flow run, or empty outside of one."""
    lease_seconds: float
    """How long a lease lives without renewal."""
    reporter: Reporter = field(default_factory=Reporter)
    started: float = field(default_factory=time.monotonic)
    """Seconds on the monotonic clock."""

    @classmethod
    def of(cls, settings: Settings, flow_run: str, work: str, reporter: Reporter | None = None) -> Context:
        """The context of a step on this machine. `work` names the workspace: the identity of what is made in it."""
        return cls(
            ArtifactStore(Bucket.at(settings.store), signer(settings.signing_key)),
            Workspace(settings.home / "work" / work),
            flow_run,
            settings.lease_seconds,
            reporter or Reporter(),
        )

    def target(self, name: str) -> Target:
        return Target(self.store.bucket, name, sign=self.store.sign)

    def producer(self, task: str, runtime: Mapping[str, str] | None = None, peak: Peak | None = None) -> Producer:
        """Who made an artifact, in how many seconds since this context began, and with which peak of memory.

        The peak of the host's memory is the higher one of this process and `peak`.
        """
        tools = peak or Peak()
        return Producer(
            task=task,
            code=f"enginehouse {version('enginehouse')}",
            runtime=dict(runtime or {}),
            flow_run=self.flow_run,
            seconds=round(time.monotonic() - self.started, 3),
            # Linux counts ru_maxrss in KiB.
            peak_memory_bytes=max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, tools.host_bytes),
            peak_gpu_bytes=tools.gpu_bytes,
        )

    def make_once(
        self,
        ref: ArtifactRef,
        identity: Identity,
        work: Callable[[Path], object],
        *,
        task: str,
        inputs: Mapping[str, ArtifactRef],
        refresh: bool,
        model: str = "",
    ) -> Done:
        """Return the artifact in the store, `cached` if the store had it. If not, let `work` fill its folder.

        One process at a time makes an artifact, under its lease: processes of one machine share the workspace. Raises
        StoreError.
        """
        if not refresh and (found := self.store.find(ref)):
            return Done(found, cached=True)
        with held(self.store.bucket, ref.identity, self.flow_run, self.lease_seconds):
            known = self.store.look_up(ref)
            if not refresh and known.artifact is not None:
                return Done(known.artifact, cached=True)
            if refresh:
                self.workspace.drop(ref)
            folder = self.workspace.make(ref, work)
            self.reporter.say(INTO_THE_STORE)
            artifact = self.store.publish(
                ref,
                identity,
                folder,
                inputs=inputs,
                producer=self.producer(task),
                model=model,
                progress=self.reporter.progress,
                replaces=known.attempt,
            )
            self.workspace.remove()
        return Done(artifact, cached=False)
