"""`hf://org/repo@revision`: a repository on a Hugging Face hub, through the hub's own client.

The token comes from where the client looks for it (`HF_TOKEN`, `hf auth login`).
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import httpx2
import huggingface_hub
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import tqdm

from infra.errors import SourceError, SourceUnavailable
from infra.progress import ByteCounter, Progress
from tasks.models.source_uri import HubUri
from tasks.models.spec import Source
from tasks.sources.download import CHUNK_BYTES, changed
from tasks.sources.names import select
from tasks.sources.resolved import Access, PinnedFile, ResolvedSource, SnapshotFile, pinned

_COMMIT = re.compile(r"[0-9a-f]{40}")
_METADATA_TIMEOUT_S = 20.0


def resolve(source: Source, uri: HubUri, access: Access) -> ResolvedSource:
    """Pin the revision to its commit, and each file by size and by sha256 (LFS) or git blob.

    The list of files of a gated repository is public. A HEAD of one file finds out that it is gated, before anything is
    downloaded.
    """
    api = HfApi(endpoint=access.hub_endpoint)
    with _hub_errors(uri):
        info = api.model_info(uri.repository, revision=uri.revision, files_metadata=True, timeout=_METADATA_TIMEOUT_S)
        commit = info.sha or ""
        if not _COMMIT.fullmatch(commit) or (uri.is_commit and commit != uri.revision):
            raise SourceUnavailable(f"the hub answers for {uri} with the commit {commit!r}")
        siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
        names = select(source, list(siblings))
        url = hf_hub_url(uri.repository, names[0], revision=commit, endpoint=access.hub_endpoint)
        api.get_hf_file_metadata(url=url, timeout=_METADATA_TIMEOUT_S)
    about = {"scheme": "hf", "repository": uri.repository, "commit": commit}
    return pinned(source, about, [_pin(uri, siblings[name]) for name in names])


def fetch(
    resolved: ResolvedSource, uri: HubUri, destination: Path, progress: Progress, access: Access
) -> tuple[SnapshotFile, ...]:
    """Download at the pinned commit. The client resumes a broken transfer and keeps files of an earlier try."""
    advance = ByteCounter(progress, resolved.known_bytes)
    done = 0
    fetched: list[SnapshotFile] = []
    for file in resolved.files:
        with _hub_errors(uri):
            path = cast(Any, huggingface_hub).hf_hub_download(
                uri.repository,
                file.path,
                revision=str(resolved.pin["commit"]),
                local_dir=destination,
                endpoint=access.hub_endpoint,
                tqdm_class=_meter(advance),
            )
        done += file.size or 0
        advance.reach(done)
        fetched.append(_verified(resolved.uri, file, Path(path)))
    # The client's own notes, with which a second try skips what the first one finished.
    shutil.rmtree(destination / ".cache", ignore_errors=True)
    return tuple(fetched)


def _pin(uri: HubUri, sibling: RepoSibling) -> PinnedFile:
    if sibling.size is None or (sibling.lfs is None and sibling.blob_id is None):
        raise SourceUnavailable(f"the hub gives neither size nor digest of {sibling.rfilename} in {uri}")
    digest = f"sha256:{sibling.lfs.sha256}" if sibling.lfs else f"git-blob-sha1:{sibling.blob_id}"
    return PinnedFile(sibling.rfilename, sibling.size, digest)


def _verified(uri: str, file: PinnedFile, path: Path) -> SnapshotFile:
    size = path.stat().st_size
    sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as content:
        while chunk := content.read(CHUNK_BYTES):
            sha256.update(chunk)
            blob.update(chunk)
    found = {f"sha256:{sha256.hexdigest()}", f"git-blob-sha1:{blob.hexdigest()}"}
    if size != file.size or file.digest not in found:
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
def _hub_errors(uri: HubUri) -> Generator[None]:
    """Turn the client's errors into Enginehouse's own. The most special come first: they inherit from one another."""
    try:
        yield
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
    except (LocalEntryNotFoundError, FileMetadataError) as error:  # what the client raises for no answer
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
