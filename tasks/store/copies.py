"""The copies of artifacts on a node's disk, and which of them none of its releases uses any more.

`tasks.store.verify.bring` puts each copy into a folder named by the identity of its artifact.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from pathlib import Path

_GONE = ".gone"


def put_unused_aside(used: Collection[str], artifacts: Path) -> list[Path]:
    """Rename every copy whose identity is not `used`, and return the folders to remove.

    A renamed copy is not found any more, so removing it may take its time. Folders that an earlier call renamed are
    returned too.
    """
    unused: list[Path] = []
    for folder in sorted(artifacts.glob("*")):
        if folder.suffix == _GONE:
            unused.append(folder)
        elif folder.name not in used:
            unused.append(folder.rename(folder.with_name(f"{folder.name}.{uuid.uuid4().hex}{_GONE}")))
    return unused
