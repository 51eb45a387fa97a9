"""Notes beside an artifact: empty objects whose keys say what its own manifest cannot, since it came later.

artifacts/KIND/IDENTITY/outputs/KIND/IDENTITY.json   the other artifact is made from this one
artifacts/KIND/IDENTITY/releases/TARGET/MODEL.json   of a repository: it is released under this name
artifacts/KIND/IDENTITY/models/MODEL.json            of a snapshot: this model was fetched from it

Each is put before what it speaks of. So what exists is noted, and what is noted may not exist. They lie beside the
artifact of the layout of now, also where the artifact itself lies in the one of before.
"""

from __future__ import annotations

from collections.abc import Iterable

from infra.s3.bucket import Bucket
from tasks.store.artifact import ArtifactRef, recorded

_OUTPUTS, _RELEASES, _MODELS = "outputs", "releases", "models"
NOTES = (_OUTPUTS, _RELEASES, _MODELS)
"""The folders of notes, beside those of attempts."""


def note_output(bucket: Bucket, output: ArtifactRef, inputs: Iterable[ArtifactRef]) -> None:
    """Write down beside each of `inputs` that `output` is made from it."""
    for ref in inputs:
        bucket.put(_key(ref, _OUTPUTS, str(output.own)), b"{}")


def outputs(bucket: Bucket, ref: ArtifactRef) -> list[ArtifactRef]:
    """What was made from `ref`, or begun to be, in the layout of now. Raises ArtifactDamaged for a foreign key."""
    return [recorded(name) for name in _noted(bucket, ref, _OUTPUTS)]


def note_release(bucket: Bucket, repository: ArtifactRef, target: str, model: str) -> None:
    """Write down that this repository is released under `model` on `target`."""
    bucket.put(_key(repository, _RELEASES, f"{target}/{model}"), b"{}")


def released_as(bucket: Bucket, repository: ArtifactRef) -> list[tuple[str, str]]:
    """The targets and models that this repository was released on, or was about to be.

    Earlier versions noted none: what they released lies in the layout of before, and is of the model that has it there.
    """
    return [
        (target, model) for target, _, model in (name.partition("/") for name in _noted(bucket, repository, _RELEASES))
    ]


def note_model(bucket: Bucket, snapshot: ArtifactRef, model: str) -> None:
    """Write down that `model` was fetched from this snapshot, which other models may share."""
    bucket.put(_key(snapshot, _MODELS, model), b"{}")


def has_fetched(bucket: Bucket, snapshot: ArtifactRef, model: str) -> bool:
    """Whether `model` was ever fetched from this snapshot, whatever became of its files since."""
    before = ArtifactRef(snapshot.kind, snapshot.identity, model)
    keys = (_key(snapshot, _MODELS, model), before.folder + "manifest.json")
    return any(bucket.get(key) is not None for key in keys)


def _key(ref: ArtifactRef, notes: str, name: str) -> str:
    return f"{ref.own.folder}{notes}/{name}.json"


def _noted(bucket: Bucket, ref: ArtifactRef, notes: str) -> list[str]:
    folder = f"{ref.own.folder}{notes}/"
    return [entry.key.removeprefix(folder).removesuffix(".json") for entry in bucket.list(folder)]
