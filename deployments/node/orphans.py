"""What Triton holds and the node does not know: what an agent that was killed has left, whole or half loaded."""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from deployments.node.copies import remove
from deployments.node.known import KnownModel, KnownRelease
from infra.triton.client import ModelState, TritonClient
from tasks.store.names import ALIASES
from tasks.triton.placement import placed_folders, placed_models, release_of

_EVERY_SECONDS = 5.0


class Orphans:
    """Compares the index of one Triton with what its node knows, again and again."""

    def __init__(self, models: Path) -> None:
        self._models = models
        self._asked: Future[tuple[ModelState, ...]] | None = None
        self._ask_at = 0.0
        self._whole: set[tuple[str, int]] = set()
        self.looked = False
        """Whether the index was ever compared: until then, what Triton holds of the disk is not known."""

    def find(self, triton: TritonClient) -> set[tuple[str, int]]:
        """The releases that a Triton of an earlier agent holds whole. Raises TritonError."""
        ready = {entry.name for entry in triton.index() if entry.state == "READY"}
        found = {release for name in ready if (release := release_of(name)) is not None}
        self._whole = {
            release for release in found if (placed := placed_models(self._models, *release)) and ready >= set(placed)
        }
        return self._whole

    def adopt(self, model: str, release: int) -> bool:
        """Whether Triton held the release whole when this agent found it. The release is an orphan no more."""
        if (model, release) not in self._whole:
            return False
        self._whole.remove((model, release))
        return True

    def look(
        self, triton: TritonClient, known: dict[str, KnownModel], movers: ThreadPoolExecutor, *, fresh: bool
    ) -> None:
        """Have unloaded what nobody wants: as releases of which the node knows now, and which are not wanted.

        Only once the store has been read (`fresh`): before, the node may just not have heard of them. Never waits.
        """
        if self._asked is None:
            if fresh and time.monotonic() >= self._ask_at:
                self._asked = movers.submit(triton.index)
            return
        if not self._asked.done():
            return
        asked, self._asked, self._ask_at = self._asked, None, time.monotonic() + _EVERY_SECONDS
        active = {entry.name: entry.state for entry in asked.result() if entry.state not in ("", "UNAVAILABLE")}
        named = {alias for each in known.values() for alias in each.named}
        if not all(each.says_its_aliases for each in known.values()):
            named.update(ALIASES)
        for name, state in active.items():
            if state == "READY" and name not in named:
                _claim(name, known)
        self._remove_folders(active.keys(), known, movers)
        self.looked = True

    def _remove_folders(
        self, active: Collection[str], known: dict[str, KnownModel], movers: ThreadPoolExecutor
    ) -> None:
        for folder in list(self._models.iterdir()):
            if (release := release_of(folder.name)) is None:
                continue
            model, number = release
            held = model in known and number in known[model].releases
            if not held and not {*active} & {*placed_folders(self._models, model, number)}:
                aside = self._models.parent / "placing" / f"{folder.name}.{uuid.uuid4().hex}.gone"
                aside.parent.mkdir(exist_ok=True)
                movers.submit(remove, folder.rename(aside))


def _claim(name: str, known: dict[str, KnownModel]) -> None:
    """Make `name` known, unless it is wanted. Of a model whose record cannot be read that is not known."""
    release = release_of(name)
    if release is None:
        model = known.setdefault(name, KnownModel())
        if model.public is None and model.wanted.public is None and not (model.moving or model.unread):
            model.public = 0  # some release; the node takes the name away
        return
    model, number = known.setdefault(release[0], KnownModel()), release[1]
    if not model.unread and number not in model.releases and number not in model.wanted.loaded:
        model.releases[number] = KnownRelease()  # which is not wanted, and is unloaded by the next turn
