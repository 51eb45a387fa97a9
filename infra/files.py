"""Folders and files on this machine's disk."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole_folder(folder: Path, *, partial: Path | None = None, keep_existing: bool = False) -> Generator[Path]:
    """Fill a fresh folder in the block; it is renamed to `folder` when the block ends well, and removed otherwise.

    So `folder` appears whole or not at all. Until then the files are in `partial`, by default a folder beside it with a
    name of its own; it must be on the same filesystem, and what a killed process left in it is removed first.
    If another process was quicker, its folder stays and ours is removed: silently with `keep_existing`, for callers who
    all make the same files. Otherwise FileExistsError is raised.
    """
    partial = partial or folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.partial")
    remove_tree(partial)
    partial.mkdir(parents=True)
    try:
        yield partial
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.rename(folder)
        except OSError as error:
            if not folder.is_dir():
                raise
            if not keep_existing:
                raise FileExistsError(f"{folder} was made by another process meanwhile") from error
    finally:
        with suppress(OSError):  # nothing here is worth more than the block's own error
            remove_tree(partial)


def replace_file(path: Path, body: bytes) -> None:
    """Write `path` in one step: it has its old bytes or `body`, also after a crash or on a full disk."""
    fresh = path.with_name(f"{path.name}.new")
    with fresh.open("wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def link_all(source: Path, target: Path) -> None:
    """Link every file below `source` into the folder `target`, for no disk space. Nobody may write to either again."""
    target.mkdir(exist_ok=True)
    for path in sorted(source.rglob("*")):
        link = target / path.relative_to(source)
        if path.is_dir():
            link.mkdir()
        else:
            os.link(path, link)


def remove_tree(folder: Path) -> None:
    """Remove a folder whose own folders may be read-only. One that does not exist is no error."""
    if not folder.exists():
        return
    for path in folder.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(folder)
