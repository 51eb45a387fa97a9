"""A store that holds what rebuilds would have left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import JsonValue

from tasks.store.artifact import ArtifactRef, Producer
from tasks.store.artifact_store import ArtifactStore
from tasks.store.identity import Identity
from tasks.targets.release import Intent, Result
from tasks.targets.target import Target


@dataclass(frozen=True)
class Made:
    """The four artifacts of one rebuild, and the model that it was for."""

    snapshot: ArtifactRef
    checkpoint: ArtifactRef
    engine: ArtifactRef
    repository: ArtifactRef
    model: str = "tiny"


@dataclass(frozen=True)
class Fleet:
    """A store that rebuilds have filled with small artifacts, whose identities are as real ones."""

    store: ArtifactStore
    target: Target
    folder: Path

    def rebuild(
        self,
        model: str = "tiny",
        *,
        commit: str = "a" * 40,
        quantization: str = "fp8",
        tensorrt_llm: str = "1.1.0",
        gpu: str = "NVIDIA H200",
        slots: int = 4,
        adapter: str | None = None,
    ) -> Made:
        runtime: dict[str, JsonValue] = {"tensorrt_llm": tensorrt_llm}
        pin: dict[str, JsonValue] = {"scheme": "hf", "repository": "org/tiny", "commit": commit, "files": []}
        snapshot = Identity.of("fetch", 1, inputs={}, fields={"source": pin})
        weights = {"snapshot": snapshot}
        if adapter is not None:
            pin = {"scheme": "hf", "repository": "org/lora", "commit": adapter, "files": []}
            weights["adapter"] = Identity.of("fetch", 1, inputs={}, fields={"source": pin})
            self.publish("snapshot", model, weights["adapter"])
        checkpoint = Identity.of(
            "convert",
            1,
            inputs=weights,
            fields={"kind": "trt-engine", "quantization": quantization, "runtime": runtime},
        )
        engine = Identity.of(
            "build",
            1,
            inputs={"checkpoint": checkpoint},
            fields={"kind": "trt-engine", "max_batch_size": 8, "runtime": {**runtime, "gpu": gpu}},
        )
        repository = Identity.of(
            "assemble", 1, inputs={"engine": engine}, fields={"serving": {"slots": slots}, "code": "sha256:0"}
        )
        return Made(
            self.publish("snapshot", model, snapshot),
            self.publish("checkpoint", model, checkpoint),
            self.publish("engine", model, engine),
            self.publish("repository", model, repository),
            model,
        )

    def publish(self, kind: Any, model: str, identity: Identity, folder: Path | None = None) -> ArtifactRef:
        """An artifact of two small files, or those of `folder`, unless the store has it.

        Its inputs are of the kinds that its identity names.
        """
        ref = ArtifactRef(kind, identity.digest)
        if self.store.find(ref) is None:
            if folder is None:
                folder = self.folder / identity.digest
                (folder / "deep").mkdir(parents=True, exist_ok=True)
                (folder / "data.bin").write_bytes(identity.digest.encode() * 100)
                (folder / "deep" / "limits.json").write_text("{}")
            inputs = {
                role: ArtifactRef("snapshot" if role == "adapter" else cast(Any, role), digest.removeprefix("sha256:"))
                for role, digest in cast(dict[str, str], identity.document["inputs"]).items()
            }
            producer = Producer(task=kind, code="test", flow_run="some-run")
            self.store.publish(ref, identity, folder, inputs=inputs, producer=producer, model=model)
        return ref

    def release(
        self,
        made: Made,
        *,
        passed: bool = True,
        public: bool = True,
        serving: dict[str, JsonValue] | None = None,
        traceparent: str = "",
    ) -> int:
        """A release of the rebuild; public, or only tested."""
        model = made.model
        number = self.target.reserve(
            model,
            lambda number: Intent(
                model=model,
                release=number,
                repository=str(made.repository),
                digest="d",
                recipe={},
                serving=serving or {},
                traceparent=traceparent,
                source="hf://org/tiny",
                flow_run="some-run",
            ),
        ).release
        self.target.conclude(model, Result(release=number, state="passed" if passed else "refused"))
        if public:
            self.target.move(model, lambda current: current.promoted(number))
        return number
