"""A public release of the catalogue's small model, of artifacts of a few bytes, by the real steps of a roll-out."""

from __future__ import annotations

import json
from pathlib import Path

from infra.s3.bucket import Bucket
from infra.settings import CHECKOUT
from tasks.kinds.protocol import LIMITS_FILE
from tasks.models.catalogue import load_model
from tasks.steps.context import Context
from tasks.steps.plan import Plan
from tasks.steps.promote import promote
from tasks.steps.roll_out import roll_out
from tasks.steps.workspace import Workspace
from tasks.store.artifact import Producer
from tasks.store.artifact_store import ArtifactStore
from tasks.store.identity import Identity
from tasks.targets.release import Result
from tests.following_node import following

FILE = CHECKOUT / "deployments" / "models" / "smollm2-135m.yaml"
MODEL = load_model(FILE)
SNAPSHOT = Identity({"source": "some"})


def released(bucket: Bucket, folder: Path) -> Context:
    """Release 1 is public on target `test`. `folder` is an empty one."""
    plan, store = Plan.of(MODEL, SNAPSHOT), ArtifactStore(bucket)
    files = folder / "files"
    files.mkdir()
    (files / LIMITS_FILE).write_text(json.dumps({"cache_bytes_per_token": 1 << 20}))
    producer = Producer(task="test", code="test")
    store.publish(plan.engine_ref, plan.engine, files, inputs={}, producer=producer)
    inputs = {"engine": plan.engine_ref}
    store.publish(plan.repository_ref, plan.repository, files, inputs=inputs, producer=producer)
    context = Context(store, Workspace(folder / "work"), "run", 5.0)
    target = context.target("test")
    with following(target):
        rolled = roll_out(context, plan, "test")
        target.conclude(MODEL.name, Result(release=rolled.release, state="passed"))
        promote(target, MODEL.name, rolled.release)
    return context
