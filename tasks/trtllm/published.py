"""Whether there is a TensorRT-LLM of the version that a recipe names, before anything is built for it."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path

from packaging.version import Version

from infra.errors import SettingsError, SourceError, SourceUnavailable, UsageError
from infra.images import OWN_TABLE, images
from tasks.trtllm.recipe import Runtime

DISTRIBUTION = "tensorrt-llm"
_WITHIN_S = 5.0
"""A rebuild waits no longer for an index to say whether there is a version. It goes on without."""

Ask = Callable[[], Iterable[Version]]


def ask_indexes(extra: Iterable[str] = ()) -> Ask:
    """Asks pip's own indexes, and `extra` ones, for all versions. Raises as `published` does."""

    def ask() -> Iterable[Version]:
        from infra.package_index import configured, published  # its HTTP client is slow to import

        return [each.version for each in published(DISTRIBUTION, configured(extra), within_s=_WITHIN_S)]

    return ask


def require_published(runtime: Runtime | None, table: Path, ask: Ask | None) -> str:
    """Raise UsageError `version-missing` if neither a list of images nor an index has the version of `runtime`.

    Returns what is not known, in a sentence: an index may be away, and without `ask` none is asked. Empty if there is
    such a version. A recipe that names its image by digest goes by what that holds, and a version of somebody's own,
    with a local part or `.dev`, is on no index.
    """
    if runtime is None or runtime.image or runtime.version.local or runtime.version.is_devrelease:
        return ""
    unknown = f"whether there is a TensorRT-LLM {runtime.tensorrt_llm} is not known"
    if runtime.version in _in_images(table):
        return ""
    if ask is None:
        return f"{unknown}: no list of images has it, and no index was asked"
    try:
        found = sorted(set(ask()))
    except (SourceError, SourceUnavailable, SettingsError) as error:
        return f"{unknown}: {error.message}"
    if runtime.version in found:
        return ""
    if not found:
        return f"{unknown}: the package index has none at all"
    place = bisect(found, runtime.version)
    nearest = ", ".join(map(str, found[max(0, place - 2) : place + 2]))
    raise UsageError(
        f"there is no TensorRT-LLM {runtime.tensorrt_llm}: neither the package index nor the list of images has it",
        hint=f"the nearest are {nearest}; one of your own belongs into the file that ENGINEHOUSE_IMAGES names, with "
        "its image",
        code="version-missing",
    )


def _in_images(table: Path) -> frozenset[Version]:
    """The versions of Enginehouse's own list and of `table`. One that cannot be read has none: others complain."""

    def versions(of: Path) -> Iterable[Version]:
        try:
            return images(of)
        except SettingsError:
            return ()

    return frozenset(chain(versions(OWN_TABLE), versions(table)))
