"""The TensorRT-LLM with which a worker on this machine would build, as found in it."""

from __future__ import annotations

from collections.abc import Iterator

from deployments.doctor.check import Check, Finding, fine, not_made, wrong
from infra.errors import SettingsError
from infra.settings import Settings
from infra.toolchains.added import listed
from infra.toolchains.choose import toolchain


def _look(settings: Settings) -> Iterator[Finding]:
    if settings.toolchain == "venv":
        yield from _environments(settings)
        return
    try:
        report = toolchain(settings, "").report()
    except SettingsError as error:
        # The default names a place that only images with TensorRT-LLM have.
        if settings.toolchain == "local" and error.code == "toolchain-missing":
            yield not_made(f"no engine of TensorRT-LLM is built here: {error.message}")
            return
        raise
    held = ", ".join(f"{name} {found}" for name, found in report.by_name.items() if found)
    yield fine(f"{settings.toolchain}: {held}; image {report.container_digest or 'of no known digest'}")


def _environments(settings: Settings) -> Iterator[Finding]:
    for each in listed(settings.home / "toolchains"):
        if each.state == "ready":
            yield fine(f"TensorRT-LLM {each.version} is ready in {each.path}")
        elif each.state != "absent":
            yield wrong(
                "toolchain-broken",
                f"the environment of TensorRT-LLM {each.version} in {each.path} is {each.state}",
                f"enginehouse toolchain add {each.version}",
            )
    yield fine("a version that is missing here is made when it is first needed, from its pins")


CHECK = Check("toolchain", "TensorRT-LLM for builds on this machine: ENGINEHOUSE_TOOLCHAIN", _look, within_s=60)
