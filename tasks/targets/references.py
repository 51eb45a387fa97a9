"""References: what people write to name an artifact, a release, or a model's public name."""

from __future__ import annotations

import re
from dataclasses import dataclass

from infra.errors import UsageError
from infra.s3.bucket import Bucket
from tasks.store.artifact import ArtifactRef, parts
from tasks.store.inventory import all_identities, identities, manifest_at
from tasks.targets.release import Intent
from tasks.targets.target import Target

_RELEASE = re.compile(r"(?P<model>.+?)(@|--r)(?P<release>\d+)")
"""`MODEL@N`, or the name by which Triton knows the release."""
_IDENTITY = re.compile(r"[0-9a-f]{6,64}")
"""Six digits distinguish thousands of artifacts, and keep short words from being taken for an identity."""


@dataclass(frozen=True)
class ReleaseRef:
    """Release `release` of a model on a target."""

    target: str
    model: str
    release: int

    def __str__(self) -> str:
        return f"{self.target}/{self.model}@{self.release}"


@dataclass(frozen=True)
class PublicName:
    """The name by which clients call a model on a target: whichever release is public."""

    target: str
    model: str

    def __str__(self) -> str:
        return f"{self.target}/{self.model}"


Reference = ArtifactRef | ReleaseRef | PublicName


def find(bucket: Bucket, text: str, target: str) -> Reference:
    """What `text` names: `KIND/IDENTITY`, an unambiguous beginning of an identity, `MODEL@N`, or `MODEL`.

    `KIND/MODEL/IDENTITY` says where an artifact lies in the layout of before; it may have been made again since.

    Releases and public names are looked for on `target`. Raises UsageError, code `reference-unknown`,
    `reference-ambiguous` or `release-missing`.
    """
    if "/" in text:
        try:
            kind, model, start = parts(text)
        except ValueError:
            raise _unknown(text) from None
        if not model:
            return _only(bucket, text, all_identities(bucket, [kind], start))
        return _only(bucket, text, [ref for place in (model, "") for ref in identities(bucket, kind, place, start)])
    records = Target(bucket, target)
    if released := _RELEASE.fullmatch(text):
        number = int(released["release"])
        records.intent(released["model"], number)
        return ReleaseRef(target, released["model"], number)
    if records.current(text)[1] is not None:
        return PublicName(target, text)
    if _IDENTITY.fullmatch(text):
        return _only(bucket, text, all_identities(bucket, start=text))
    raise _unknown(text)


def release_of(bucket: Bucket, reference: ReleaseRef | PublicName) -> Intent:
    """What the release is; of a public name the one that it answers with.

    Raises UsageError, code `release-missing`.
    """
    target = Target(bucket, reference.target)
    if isinstance(reference, ReleaseRef):
        return target.intent(reference.model, reference.release)
    if (live := target.live(reference.model)) is None:
        raise UsageError(
            f"{reference} answers with no release",
            hint=f"name one: {reference.model}@N; `enginehouse releases {reference.model}` lists them",
            code="release-missing",
        )
    return live


def _only(bucket: Bucket, text: str, places: list[ArtifactRef]) -> ArtifactRef:
    """The one artifact that lies in these places, by the first that has a manifest."""
    found = list(dict.fromkeys(places))
    if not found:
        raise _unknown(text)
    if len(found) > 1:
        raise UsageError(
            f"{len(found)} artifacts begin with '{text}': " + ", ".join(str(ref) for ref in found[:5]),
            hint="write more of the identity, or KIND before it",
            code="reference-ambiguous",
        )
    return next((place for place in places if manifest_at(bucket, place) is not None), found[0])


def _unknown(text: str) -> UsageError:
    return UsageError(
        f"the store has nothing called '{text}'",
        hint="name an artifact (engine/IDENTITY, or the beginning of its identity), a release (MODEL@2), "
        "or a model that was released on this target",
        code="reference-unknown",
    )
