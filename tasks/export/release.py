"""Export a release: one folder that other programs verify.

FOLDER/oci/                      an OCI image layout: the files of the release, and what is said of it
FOLDER/provenance.intoto.json    SLSA provenance in a DSSE envelope
FOLDER/bom.cdx.json              CycloneDX ML-BOM
FOLDER/engine.sig, repository.sig   signatures of the two artifacts, where the store has them, as `model_signing` reads

The same two documents are in the layout too, as artifacts that refer to the release's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from infra.files import replace_file
from infra.progress import Progress
from tasks.export.bill_of_materials import bill_of_materials
from tasks.export.contents import Contents, contents_of
from tasks.export.layout import Layout
from tasks.export.oci import model_image, referring_image
from tasks.export.provenance import statement
from tasks.store.artifact import signature_key
from tasks.store.attestation import Envelope, envelope
from tasks.store.identity import canonical
from tasks.targets.target import Target

PROVENANCE, BOM = "provenance.intoto.json", "bom.cdx.json"
_IN_TOTO, _DSSE, _CYCLONEDX = (
    "application/vnd.in-toto+json",
    "application/vnd.dsse.envelope.v1+json",
    "application/vnd.cyclonedx+json",
)


@dataclass(frozen=True)
class Exported:
    """A folder that is whole. `digest` is that of the release's manifest in the layout, `sha256:…`; `size` in bytes."""

    release: str
    folder: Path
    digest: str
    files: int
    size: int
    signed: bool

    def document(self) -> dict[str, JsonValue]:
        """What `enginehouse export --json` prints."""
        return {
            "release": self.release,
            "folder": str(self.folder),
            "digest": self.digest,
            "files": self.files,
            "size": self.size,
            "signed": self.signed,
        }


def export(
    target: Target,
    model: str,
    release: int,
    folder: Path,
    *,
    signing_key: str = "",
    public_keys: str = "",
    progress: Progress = lambda done, total: None,
) -> Exported:
    """Write the release to `folder`. Called again, it goes on with what is there and right.

    The provenance is signed with the private key in the file `signing_key`, if there is one. With `public_keys`, files
    as words, only a signed release is exported. Raises UsageError `release-missing` or `export-folder`, SettingsError
    `signature-key`, ArtifactDamaged, SignatureRefused and StoreError.
    """
    contents = contents_of(target, model, release, public_keys)
    image = model_image(contents)
    provenance = _signed(envelope(statement(contents, image)), signing_key)
    bom = bill_of_materials(contents, image)
    layout = Layout(folder, image)
    layout.begin()
    layout.bring(target.bucket, contents.files, progress)
    replace_file(folder / PROVENANCE, provenance)
    replace_file(folder / BOM, bom)
    _keep_signatures(target, contents, folder)
    referring = (
        referring_image(image, PROVENANCE, provenance, _IN_TOTO, _DSSE),
        referring_image(image, BOM, bom, _CYCLONEDX, _CYCLONEDX),
    )
    layout.finish(str(release), referring)
    return Exported(
        contents.name,
        folder,
        image.manifest.descriptor.digest,
        len(contents.files),
        sum(file.size for file in contents.files),
        bool(signing_key),
    )


def _signed(made: Envelope, signing_key: str) -> bytes:
    signed = made.signed(signing_key) if signing_key else made
    return canonical(signed.model_dump(mode="json"))


def _keep_signatures(target: Target, contents: Contents, folder: Path) -> None:
    """The signatures of the artifacts as they lie in the store: they are on the files, by their paths."""
    for artifact in (contents.engine, contents.repository):
        stored = target.bucket.get(signature_key(artifact.ref, artifact.manifest.attempt))
        path = folder / f"{artifact.ref.kind}.sig"
        if stored is None:
            path.unlink(missing_ok=True)
        else:
            replace_file(path, stored.body)
