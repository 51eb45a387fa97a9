"""What container images really hold: one record for each digest, `toolchains/sha256-HEX.json`, created once.

A toolchain that runs in the image reports it. Planning on other machines goes by that report.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from packaging.version import Version
from pydantic import Field

from infra.errors import SettingsError, UsageError
from infra.s3.bucket import Bucket
from infra.toolchains.versions import Versions
from tasks.store.cell import WriteOnce
from tasks.store.record import Record
from tasks.trtllm.fits import is_tensorrt
from tasks.trtllm.recipe import Runtime


class ImageReport(Versions, Record):
    """The versions in an image. GPUs and driver belong to the machine, and are not part of the report."""

    digest: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    reported: datetime = Field(default_factory=lambda: datetime.now(UTC))


def image_key(digest: str) -> str:
    """The key of an image's report in the store. `digest` is `sha256:…`."""
    return f"toolchains/{digest.replace(':', '-')}.json"


def keep_report(bucket: Bucket, runtime: Mapping[str, str]) -> ImageReport | None:
    """Store what a toolchain reported of its image. Returns the stored report, or None if `runtime` names no image.

    `runtime` is a report as `tasks.trtllm.tools.run.described` writes it. The first report of an image counts. Raises
    SettingsError `report-differs` if another was stored for the same digest, and StoreError.
    """
    if not (digest := runtime.get("container", "")):
        return None
    report = ImageReport.model_validate({"digest": digest, **Versions.taken_from(runtime).by_name})
    first = _report(bucket, digest).create(report)
    before = first.by_name
    differences = [
        f"{name} {version or 'missing'}, not {before[name] or 'missing'}"
        for name, version in report.by_name.items()
        if version != before[name]
    ]
    if differences:
        raise SettingsError(
            f"the image {digest} does not hold what was reported of it on {first.reported:%Y-%m-%d %H:%M}: "
            f"{'; '.join(differences)}",
            hint="an image never changes: ENGINEHOUSE_CONTAINER_DIGEST must be the digest of this worker's image, and "
            f"ENGINEHOUSE_TOOLCHAIN its Python. The first report is {image_key(digest)} in the store",
            code="report-differs",
        )
    return first


def known_report(bucket: Bucket, digest: str) -> ImageReport | None:
    """The report of the image with this digest, `sha256:…`. Returns None if nobody has run the image."""
    return _report(bucket, digest).read()


def _report(bucket: Bucket, digest: str) -> WriteOnce[ImageReport]:
    return WriteOnce(bucket, image_key(digest), ImageReport)


def reported_image(bucket: Bucket, runtime: Runtime | None) -> ImageReport | None:
    """The report of the image that a runtime names. Returns None if it names none, or nobody has run the image."""
    return known_report(bucket, runtime.image_digest) if runtime is not None and runtime.image_digest else None


def planned_in_image(runtime: Runtime, report: ImageReport) -> Runtime:
    """The runtime with the TensorRT of its image. Raises UsageError `version-mismatch` if the two disagree."""
    if Version(report.tensorrt_llm) != runtime.version:
        raise _mismatch(report, "TensorRT-LLM", report.tensorrt_llm, "tensorrt_llm", runtime.tensorrt_llm)
    if runtime.tensorrt and not is_tensorrt(runtime.tensorrt, report.tensorrt):
        raise _mismatch(report, "TensorRT", report.tensorrt or "of no known version", "tensorrt", runtime.tensorrt)
    return runtime.model_copy(update={"tensorrt": report.tensorrt}) if report.tensorrt else runtime


def _mismatch(report: ImageReport, what: str, held: str, field: str, wanted: str) -> UsageError:
    return UsageError(
        f"the image {report.digest} holds {what} {held}, and recipe.runtime.{field} is {wanted}",
        hint=f"correct recipe.runtime.{field}, or name another image in recipe.runtime.image",
        code="version-mismatch",
    )
