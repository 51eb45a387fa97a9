"""Where NVIDIA's `inflight_batcher_llm` templates come from: a folder (a checkout, or a path in a container), or an
archive of one, unpacked as something that may be hostile."""

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

MAX_MEMBERS = 200_000
MAX_BYTES = 16 * 2**30
"""Of everything in an archive: room for a checkout of TensorRT-LLM. A tar is unpacked to be listed at all."""
MAX_TEMPLATE_BYTES = 64 * 2**20
"""Of what is taken out of it: the templates of 0.8 to 0.19 are under 0.5 MiB."""

_HINT = (
    "Give a checkout or an archive of tensorrtllm_backend (up to 0.19) or TensorRT-LLM (0.20 to 1.2) at the tag of the "
    f"engine's version, or /app/all_models of NVIDIA's server image: what holds {_FOLDER}/tensorrt_llm/config.pbtxt."
)


@contextmanager
def opened_templates(templates: Path) -> Generator[Path]:
    """The folder with the five models below it, while the context lasts.

    Raises TemplateError: `template-missing`, or `template-invalid` for an archive that is broken, too large or holds
    names that lead out of it, duplicates or links among its templates.
    """
    if not templates.exists():
        raise TemplateError(f"there is nothing at {templates}", hint=_HINT, code="template-missing")
    if templates.is_dir():
        yield _complete(_found_in(templates), templates)
        return
    with tempfile.TemporaryDirectory(prefix="enginehouse-templates-") as folder:
        yield _complete(_unpack(templates, Path(folder)), templates)


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


def _unpack(path: Path, target: Path) -> Path:
    """Write the templates of an archive below `target`; the folder they are in."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                root, chosen = _choose(path, (_zip_member(info) for info in archive.infolist()))
                for member in chosen:
                    archive.extract(member.name, target)
        elif tarfile.is_tarfile(path):
            with tarfile.open(path) as archive:
                root, chosen = _choose(path, (_tar_member(info) for info in archive))
                infos = [archive.getmember(member.name) for member in chosen]
                archive.extractall(target, members=infos, filter="data")
        else:
            raise TemplateError(f"{path} is neither a folder nor a zip or tar archive", hint=_HINT)
    # RuntimeError is what zipfile says of a password and of a compression that it does not know.
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, LZMAError, EOFError, OSError, RuntimeError) as error:
        raise TemplateError(f"cannot unpack {path}: {error}", hint="Fetch the archive again.") from error
    return target / root


def _choose(path: Path, members: Iterator[_Member]) -> tuple[str, list[_Member]]:
    """The templates among an archive's members and the folder before their names, once all members are checked."""
    by_root: dict[str, dict[str, _Member]] = {}
    total = 0
    for count, member in enumerate(members, 1):
        total += member.size
        if count > MAX_MEMBERS or total > MAX_BYTES:
            raise TemplateError(
                f"{path} holds more than {MAX_MEMBERS} files or {MAX_BYTES} bytes",
                hint=f"Pack the folder {_FOLDER} alone.",
            )
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts:
            raise TemplateError(f"{path}: {member.name} leads out of the archive", hint=_HINT)
        if match := _IN_ARCHIVE.fullmatch(member.name.rstrip("/")):
            same_root = by_root.setdefault(match["root"], {})
            if not member.plain or member.name in same_root:
                kind = "there twice" if member.plain else "a link or a special file"
                raise TemplateError(f"{path}: {member.name} is {kind}", hint=_HINT)
            same_root[member.name] = member
    # In a checkout of TensorRT-LLM the Python package tensorrt_llm lies at the top, and is no template.
    roots = [root for root in by_root if root.endswith(f"{_FOLDER}/")] or list(by_root)
    if len(roots) != 1:
        where = f"in several places: {', '.join(roots)}" if roots else "not there"
        raise TemplateError(f"{path}: the templates are {where}", hint=_HINT, code="template-missing")
    chosen = list(by_root[roots[0]].values())
    if sum(member.size for member in chosen) > MAX_TEMPLATE_BYTES:
        raise TemplateError(f"{path}: its templates are larger than {MAX_TEMPLATE_BYTES} bytes", hint=_HINT)
    return roots[0], chosen


def _zip_member(info: zipfile.ZipInfo) -> _Member:
    kind = stat.S_IFMT(info.external_attr >> 16)
    return _Member(info.filename, info.file_size, kind in (0, stat.S_IFREG, stat.S_IFDIR))


def _tar_member(info: tarfile.TarInfo) -> _Member:
    return _Member(info.name, info.size, info.isreg() or info.isdir())
