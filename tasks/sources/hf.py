"""`hf://org/repo@revision`: a repository on a Hugging Face hub, through the hub's own client.

The token comes from where the client looks for it (`HF_TOKEN`, `hf auth login`). A mirror that lists nothing but names
is asked about each file, as the client itself does before it downloads one.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import httpx2
import huggingface_hub
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import ModelInfo, RepoSibling
from huggingface_hub.utils import tqdm
from pydantic import JsonValue

from infra.errors import SourceError, SourceUnavailable
from infra.progress import ByteCounter, Progress
from tasks.models.source import Source
from tasks.models.source_uri import HubUri, is_repository
from tasks.sources.download import CHUNK_BYTES, changed
from tasks.sources.names import Choose, select
from tasks.sources.resolved import Access, PinnedFile, ResolvedSource, SnapshotFile, pinned

_COMMIT = re.compile(r"[0-9a-f]{40}")
_HEX = re.compile(r"[0-9a-f]+")
_METHODS = {64: "sha256", 40: "git-blob-sha1"}
"""What the hub's ETag of a file is, by its length: the sha256 of a file in LFS, the git blob of another."""
_METADATA_TIMEOUT_S = 20.0
_OTHER_HUB = "Set HF_ENDPOINT to a hub or mirror that has it, or unset it for the public one."


def resolve(source: Source, uri: HubUri, access: Access, choose: Choose = select) -> ResolvedSource:
    """Pin the revision to its commit, and each file by size and by sha256 (LFS) or git blob.

    The list of files of a gated repository is public. A HEAD of one file finds out that it is gated, before anything is
    downloaded. Raises SourceError `source-mirror` for a hub that does not say enough to pin a file.
    """
    api = HfApi(endpoint=access.hub_endpoint)
    with _hub_errors(uri, api):
        info, uri, folder = _located(api, uri)
        below = f"{folder}/" if folder else ""
        every = {sibling.rfilename: sibling for sibling in info.siblings or []}
        siblings = {name.removeprefix(below): every[name] for name in every if name.startswith(below)}
        names = choose(source, list(siblings))
        head = _head(api, uri, below + names[0], info.sha or uri.revision)
        commit = info.sha or head.commit
        if not _COMMIT.fullmatch(commit) or (uri.is_commit and commit != uri.revision):
            raise _mirror(api, f"answers for {uri} with the commit {commit!r}")
        files = [replace(_pin(api, uri, siblings[name], commit), path=name) for name in names]
    about: dict[str, JsonValue] = {"scheme": "hf", "repository": uri.repository, "commit": commit}
    renamed = info.id if info.id != uri.repository and is_repository(info.id or "") else ""
    found = pinned(source, about | ({"folder": folder} if folder else {}), files)
    return replace(found, renamed=renamed, licence=_licence(info), gated=bool(info.gated))


def fetch(
    resolved: ResolvedSource, uri: HubUri, destination: Path, progress: Progress, access: Access
) -> tuple[SnapshotFile, ...]:
    """Download at the pinned commit. The client resumes a broken transfer and keeps files of an earlier try."""
    advance = ByteCounter(progress, resolved.known_bytes)
    done = 0
    fetched: list[SnapshotFile] = []
    # The client repeats the folder within the repository, which is not a part of the snapshot.
    folder = str(resolved.pin.get("folder", ""))
    beside = destination / ".folder" if folder else destination
    for file in resolved.files:
        with _hub_errors(uri, HfApi(endpoint=access.hub_endpoint)):
            path = cast(Any, huggingface_hub).hf_hub_download(
                uri.repository,
                file.path,
                subfolder=folder or None,
                revision=str(resolved.pin["commit"]),
                local_dir=beside,
                endpoint=access.hub_endpoint,
                tqdm_class=_meter(advance),
            )
        done += file.size or 0
        advance.reach(done)
        fetched.append(_verified(resolved.uri, file, Path(path)))
    # The client's own notes, with which a second try skips what the first one finished.
    shutil.rmtree(beside / ".cache", ignore_errors=True)
    if folder:
        for file in resolved.files:
            (destination / file.path).parent.mkdir(parents=True, exist_ok=True)
            (beside / folder / file.path).replace(destination / file.path)
        shutil.rmtree(beside)
    return tuple(fetched)


def _licence(info: ModelInfo) -> str:
    tagged = (tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:"))
    return next(tagged, "")


class _Head(NamedTuple):
    """What a hub says of one file. `size` in bytes; None if it does not say."""

    commit: str
    etag: str
    size: int | None


def _located(api: HfApi, uri: HubUri) -> tuple[ModelInfo, HubUri, str]:
    """What the hub says of the revision, the address without its folder, and the folder."""
    *longer, shortest = uri.readings
    for revision, folder in longer:
        read = replace(uri, revision=revision)
        try:
            return _information(api, read), read, folder
        except RepositoryNotFoundError:
            raise
        except HfHubHTTPError as error:
            if error.response.status_code != 404:
                raise
    read = replace(uri, revision=shortest[0])
    return _information(api, read), read, shortest[1]


def _information(api: HfApi, uri: HubUri) -> ModelInfo:
    """The commit of the revision, and its files with as much as the hub says of them."""
    try:
        info = api.model_info(uri.repository, revision=uri.revision, files_metadata=True, timeout=_METADATA_TIMEOUT_S)
    except HFValidationError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # no JSON, or not that of a hub
        raise _mirror(api, f"answers for {uri} with something else than a model") from error
    if info.siblings is None:
        raise _mirror(api, f"lists no files of {uri}")
    return info


def _head(api: HfApi, uri: HubUri, name: str, revision: str) -> _Head:
    """Ask for a file's headers. Without these two the client downloads nothing."""
    url = hf_hub_url(uri.repository, name, revision=revision, endpoint=api.endpoint)
    metadata = api.get_hf_file_metadata(url=url, timeout=_METADATA_TIMEOUT_S)
    if metadata.commit_hash is None or metadata.etag is None:
        raise _mirror(api, f"does not give both commit and ETag with {name} of {uri}")
    return _Head(metadata.commit_hash, metadata.etag, metadata.size)


def _pin(api: HfApi, uri: HubUri, sibling: RepoSibling, commit: str) -> PinnedFile:
    name = sibling.rfilename
    if sibling.size is not None and (sibling.lfs is not None or sibling.blob_id is not None):
        digest = f"sha256:{sibling.lfs.sha256}" if sibling.lfs else f"git-blob-sha1:{sibling.blob_id}"
        return PinnedFile(name, sibling.size, digest)
    head = _head(api, uri, name, commit)
    method = _METHODS.get(len(head.etag)) if _HEX.fullmatch(head.etag) else None
    if method is None:
        raise _mirror(api, f"gives no digest of {name} of {uri}, and its ETag {head.etag!r} is none")
    return PinnedFile(name, head.size, f"{method}:{head.etag}")


def _verified(uri: str, file: PinnedFile, path: Path) -> SnapshotFile:
    size = path.stat().st_size
    sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as content:
        while chunk := content.read(CHUNK_BYTES):
            sha256.update(chunk)
            blob.update(chunk)
    found = {f"sha256:{sha256.hexdigest()}", f"git-blob-sha1:{blob.hexdigest()}"}
    if (file.size is not None and size != file.size) or file.digest not in found:
        path.unlink()  # otherwise a second try would take it for finished
        raise changed(uri, file.path)
    return SnapshotFile(file.path, size, sha256.hexdigest())


def _meter(advance: Callable[[int], None]) -> Callable[..., Any]:
    """A progress bar of the type that the client wants, which draws nothing and reports to `advance`."""

    def bar(**options: Any) -> Any:
        silent = cast(Any, tqdm)(**{**options, "disable": True})
        silent.update = advance
        return silent

    return bar


@contextmanager
def _hub_errors(uri: HubUri, api: HfApi) -> Generator[None]:
    """Turn the client's errors into Enginehouse's own. The most special come first: they inherit from one another."""
    try:
        yield
    except HFValidationError as error:
        raise SourceError(f"no hub has {uri}: {error}", hint="Look at the repository's name.") from error
    except GatedRepoError as error:
        raise SourceError(
            f"{uri.repository} is gated: its owner wants you to accept a licence first",
            code="source-gated",
            hint="Accept it on the repository's page, then set HF_TOKEN or run: hf auth login",
        ) from error
    except (RepositoryNotFoundError, DisabledRepoError) as error:
        raise SourceError(
            f"the hub has no repository {uri.repository}, or hides it from the token in use",
            code="source-missing",
            hint="Look at the name; for a private repository set HF_TOKEN or run: hf auth login",
        ) from error
    except RevisionNotFoundError as error:
        raise SourceError(
            f"{uri.repository} has no revision {uri.revision!r}",
            code="source-revision",
            hint="A revision is a branch, a tag or a commit of 40 hex digits.",
        ) from error
    except LocalEntryNotFoundError as error:  # what the client raises for no answer, and for one that says too little
        if isinstance(error.__cause__, FileMetadataError):
            raise _mirror(api, f"does not say enough of a file of {uri}: {error.__cause__}") from error
        raise _unavailable(uri, error) from error
    except EntryNotFoundError as error:
        raise SourceError(f"{uri} lists a file that it does not have: {error}", code="source-entry") from error
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise SourceError(
                f"the hub refuses the token in use for {uri.repository}",
                code="source-gated",
                hint="Set a valid HF_TOKEN, or run: hf auth login",
            ) from error
        if error.response.status_code == 404:  # of a mirror that does not say what is missing, as the hub does
            raise SourceError(
                f"{_address(api)} finds nothing at {uri}", code="source-missing", hint=_OTHER_HUB
            ) from error
        raise _unavailable(uri, error) from error
    except (httpx2.HTTPError, ConnectionError, TimeoutError) as error:
        raise _unavailable(uri, error) from error
    except OSError as error:
        if error.errno is not None:
            raise  # a failure of this machine, such as a full disk
        raise _unavailable(uri, error) from error  # a transfer that ended early


def _unavailable(uri: HubUri, error: Exception) -> SourceUnavailable:
    return SourceUnavailable(
        f"the hub did not deliver {uri}: {error or type(error).__name__}", hint="Is the hub reachable?"
    )


def _mirror(api: HfApi, what: str) -> SourceError:
    """The error for a hub that answers, and does not say what a source needs. Asked again, it says no more."""
    return SourceError(f"the hub at {_address(api)} {what}", code="source-mirror", hint=_OTHER_HUB)


def _address(api: HfApi) -> str:
    """The hub's address without a name and password that may stand in it."""
    return api.endpoint.rpartition("://")[2].rpartition("@")[2]
