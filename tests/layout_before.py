"""Artifacts in the layout of before, `artifacts/KIND/MODEL/IDENTITY/`, as an earlier version has left them."""

from __future__ import annotations

import json

from tasks.store.artifact import ArtifactRef
from tasks.store.artifact_store import ArtifactStore
from tasks.store.notes import NOTES


def layout_before(store: ArtifactStore, ref: ArtifactRef, model: str) -> ArtifactRef:
    """Move an artifact to where it lay for `model`, with its inputs' references as they were; returns its reference.

    Nothing was noted beside it then.
    """
    bucket, before = store.bucket, ArtifactRef(ref.kind, ref.identity, model)
    for entry in list(bucket.list(ref.folder)):
        stored = bucket.get(entry.key)
        assert stored is not None
        body = stored.body
        if entry.key == ref.folder + "manifest.json":
            manifest = json.loads(body)
            inputs = {role: ArtifactRef.parse(text) for role, text in manifest["inputs"].items()}
            inputs = {role: str(ArtifactRef(each.kind, each.identity, model)) for role, each in inputs.items()}
            body = json.dumps({**manifest, "schema_version": 1, "model": model, "inputs": inputs}).encode()
        if not entry.key.startswith(tuple(f"{ref.folder}{notes}/" for notes in NOTES)):
            bucket.put(before.folder + entry.key.removeprefix(ref.folder), body)
        bucket.delete(entry.key)
    return before
