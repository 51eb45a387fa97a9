"""The Triton that a node would start on this machine: its place, its backends, and its known weaknesses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from deployments.doctor.check import Check, Finding, fine, not_made, notice, wrong
from infra.errors import SettingsError
from infra.settings import Settings
from infra.triton import wheel
from infra.triton.weakness import triton_release, weakness


def _look(settings: Settings) -> Iterator[Finding]:
    if settings.triton:
        yield _of_image(Path(settings.triton))
    else:
        try:
            parts = wheel.locate()
        except SettingsError as error:
            if error.code != "triton-missing":
                raise
            yield not_made(f"no node starts a Triton here ({error.message}); to have one: {error.hint}")
            return
        yield fine(f"the wheel's Triton, backend python: {parts.binary}")
    release = triton_release(of_image=bool(settings.triton))
    if known := weakness(release):
        yield notice("triton-weak", known, "run nodes in an image of release 25.07 or later; see infra/images.toml")


def _of_image(root: Path) -> Finding:
    """Enginehouse's models need the backend `python`, engines of TensorRT-LLM `tensorrtllm` as well."""
    backends = sorted(path.name for path in root.glob("backends/*") if path.is_dir())
    if not (root / "bin/tritonserver").exists():
        what = f"ENGINEHOUSE_TRITON is {root}, but there is no {root / 'bin/tritonserver'}"
        return wrong("triton-missing", what, "unset ENGINEHOUSE_TRITON, or in NVIDIA's images: =/opt/tritonserver")
    if "python" not in backends:
        what = f"the Triton at {root} has no backend python; it has {', '.join(backends) or 'none'}"
        return wrong("triton-backend", what, "use an image with it, such as those of infra/images.toml")
    return fine(f"Triton at {root}, backends {', '.join(backends)}")


CHECK = Check("triton", "the Triton of this machine: its place, release and backends", _look)
