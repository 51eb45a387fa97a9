"""Finding NVIDIA's `inflight_batcher_llm` templates: in a folder (a checkout, or a path in a container), or in an
archive of one. An archive may be hostile, so all its members are checked before any is unpacked."""

from __future__ import annotations

import re
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path, PurePosixPath

from infra.errors import TemplateError

MODELS = ("preprocessing", "postprocessing", "tensorrt_llm", "tensorrt_llm_bls", "ensemble")

_FOLDER = "inflight_batcher_llm"
# Up to 0.19 tensorrtllm_backend has all_models at its top, as the server's image has in /app; from 0.20 on it lies in
# TensorRT-LLM. The last is the folder itself.
_PLACES = (f"all_models/{_FOLDER}", f"triton_backend/all_models/{_FOLDER}", _FOLDER, ".")
_IN_ARCHIVE = re.compile(
    rf"(?P<root>(?:\./)?(?:(?:[^/]+/)?(?:(?:triton_backend/)?all_models/)?{_FOLDER}/)?)(?:{'|'.join(MODELS)})/.+"
)

_HINT = (
    "Give a checkout or an archive of tensorrtllm_backend (up to 0.19) or TensorRT-LLM (0.20 to 1.2) at the tag of the "
    f"engine's version, or /app/all_models of NVIDIA's server image: what holds {_FOLDER}/tensorrt_llm/config.pbtxt."
)


@dataclass(frozen=True)
class ArchiveLimits:
    """What an archive may hold. `members` and `bytes` count everything in it, `template_bytes` what is taken out.

    A checkout of TensorRT-LLM stays below the first two; they bound the work, because a compressed tar has to be
    unpacked to be listed. The templates of 0.8 to 0.19 are under 0.5 MiB.
    """

    members: int = 200_000
    bytes: int = 16 * 2**30
    template_bytes: int = 64 * 2**20


LIMITS = ArchiveLimits()


@contextmanager
def opened_templates(templates: Path, limits: ArchiveLimits = LIMITS) -> Generator[Path]:
    """The folder with the five models below it, while the context lasts.

    Raises TemplateError `template-missing` if a model is not found, and `template-invalid` for an archive that is
    broken, is beyond the limits, holds a name that leads out of it, or has duplicates or links among its templates.
    """
    if not templates.exists():
        raise TemplateError(f"{templates} does not exist", hint=_HINT, code="template-missing")
    if templates.is_dir():
        yield _complete(_found_in(templates), templates)
        return
    with tempfile.TemporaryDirectory(prefix="enginehouse-templates-") as folder:
        yield _complete(_unpack(templates, Path(folder), limits), templates)


def _found_in(folder: Path) -> Path:
    for place in _PLACES:
        if any((folder / place / model / "config.pbtxt").is_file() for model in MODELS):
            return folder / place
    return folder


def _complete(root: Path, templates: Path) -> Path:
    missing = [model for model in MODELS if not (root / model / "config.pbtxt").is_file()]
    if missing:
        raise TemplateError(
            f"{templates} has no config.pbtxt of {', '.join(missing)}", hint=_HINT, code="template-missing"
        )
    return root


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    plain: bool


def _unpack(path: Path, target: Path, limits: ArchiveLimits) -> Path:
    """Write the templates of an archive below `target` and return the folder that holds them."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                root, chosen = _choose(path, (_zip_member(info) for info in archive.infolist()), limits)
                for member in chosen:
                    archive.extract(member.name, target)
        elif tarfile.is_tarfile(path):
            with tarfile.open(path) as archive:
                root, chosen = _choose(path, (_tar_member(info) for info in archive), limits)
                infos = [archive.getmember(member.name) for member in chosen]
                archive.extractall(target, members=infos, filter="data")
        else:
            raise TemplateError(f"{path} is neither a folder nor a zip or tar archive", hint=_HINT)
    # zipfile raises RuntimeError for a password and for a compression that it does not know.
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, LZMAError, EOFError, OSError, RuntimeError) as error:
        raise TemplateError(f"cannot unpack {path}: {error}", hint="Fetch the archive again.") from error
    return target / root


def _choose(path: Path, members: Iterator[_Member], limits: ArchiveLimits) -> tuple[str, list[_Member]]:
    """Check all members; return the folder before the templates' names, and the templates."""
    by_root: dict[str, dict[str, _Member]] = {}
    total = 0
    for count, member in enumerate(members, 1):
        total += member.size
        if count > limits.members or total > limits.bytes:
            raise TemplateError(
                f"{path} holds more than {limits.members} files or {limits.bytes} bytes",
                hint=f"Pack the folder {_FOLDER} alone.",
            )
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts:
            raise TemplateError(f"{path}: {member.name} leads out of the archive", hint=_HINT)
        if match := _IN_ARCHIVE.fullmatch(member.name.rstrip("/")):
            same_root = by_root.setdefault(match["root"], {})
            if not member.plain or member.name in same_root:
                kind = "in the archive twice" if member.plain else "a link or a special file"
                raise TemplateError(f"{path}: {member.name} is {kind}", hint=_HINT)
            same_root[member.name] = member
    # A checkout of TensorRT-LLM has the Python package tensorrt_llm at its top, which is no template.
    roots = [root for root in by_root if root.endswith(f"{_FOLDER}/")] or list(by_root)
    if len(roots) != 1:
        found = f"has the templates in several places: {', '.join(roots)}" if roots else "has no templates"
        raise TemplateError(f"{path} {found}", hint=_HINT, code="template-missing")
    chosen = list(by_root[roots[0]].values())
    if sum(member.size for member in chosen) > limits.template_bytes:
        raise TemplateError(f"{path}: its templates are larger than {limits.template_bytes} bytes", hint=_HINT)
    return roots[0], chosen


def _zip_member(info: zipfile.ZipInfo) -> _Member:
    kind = stat.S_IFMT(info.external_attr >> 16)
    return _Member(info.filename, info.file_size, kind in (0, stat.S_IFREG, stat.S_IFDIR))


def _tar_member(info: tarfile.TarInfo) -> _Member:
    return _Member(info.name, info.size, info.isreg() or info.isdir())
