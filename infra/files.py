"""Folders on this machine's disk."""

from __future__ import annotations

import shutil
from pathlib import Path


def remove_tree(folder: Path) -> None:
    """Remove a folder whose own folders may be read-only; where there is none that is no error."""
    if not folder.exists():
        return
    for path in folder.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(folder)
