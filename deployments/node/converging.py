"""From what a node knows to what is wanted: what is loaded, moved, mended and unloaded next. Nothing here waits."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

from deployments.node.asking import patience, takes_ids
from deployments.node.known import KnownModel, KnownRelease
from deployments.node.loading import Loading, Servers
from deployments.node.orphans import Orphans
from deployments.node.watching import Watched
from tasks.triton.config import RELEASE
from tasks.triton.placement import release_names

_STUCK_LOADS = 2
_RESTART_SECONDS = 3600.0
"""How seldom Triton is ended for the sake of one release: the others go with it."""

_log = logging.getLogger("enginehouse.node")


class Converging:
    """One for each node, as long as it lives. Loads run in `loaders`, all that is shorter in `movers`."""

    def __init__(self, loading: Loading, loaders: ThreadPoolExecutor, movers: ThreadPoolExecutor) -> None:
        self._loading = loading
        self._loaders = loaders
        self._movers = movers
        self._restarted: dict[str, float] = {}
        """When Triton was started anew for the sake of a release."""

    def turn(self, servers: Servers, orphans: Orphans, models: dict[str, KnownModel]) -> str:
        """Begin for each model what is to be done next. Returns why Triton has to be started anew; empty if not."""
        condemned = ""
        for model, known in models.items():
            try:
                condemned = self._mend(servers, model, known) or condemned
                self._move(servers, orphans, model, known, held_by_others(models, model))
            except Exception as error:  # the next model has its turn
                _log.exception("%s could not be brought to what is wanted", model)
                known.error = " ".join(str(error).split())
        if not is_loading(models):
            self._load_suspect(servers, models)
        return condemned

    def _mend(self, servers: Servers, model: str, known: KnownModel) -> str:
        """Have releases loaded again that do not answer any more, and Triton started again where that did not help."""
        for number, release in known.releases.items():
            if release.state != "ready" or release.busy:
                continue
            if servers.groups.lost(model, number):
                release.lost = "its engine's servers have ended"
            elif release.lost:
                release.how = "again"
            if not release.lost:
                continue
            _log.warning("%s release %d is loaded again: %s", model, number, release.lost)
            release.again(release.lost)
            if known.public == number:
                known.public = None  # the name goes with its release, and has to be loaded again
        public = known.releases.get(known.wanted.public or 0)
        if public is None or public.busy or public.stuck < _STUCK_LOADS:
            return ""
        name = f"{model} release {known.wanted.public}"
        if time.monotonic() - self._restarted.get(name, -_RESTART_SECONDS) <= _RESTART_SECONDS:
            return ""
        self._restarted[name] = time.monotonic()
        return f"{name} could not be loaded again"

    def _move(self, servers: Servers, orphans: Orphans, model: str, known: KnownModel, held: Collection[str]) -> None:
        """Start loading what is wanted, move the public name, unload what is no longer wanted.

        The name waits for its aliases while they are `held` by other models.
        """
        loaded, public = known.wanted.loaded, known.wanted.public
        may_move = not known.moving and time.monotonic() >= known.retry_at
        if (
            known.public is not None
            and known.public not in loaded
            and (known.wanted.alone or public is None)
            and may_move
        ):
            # Its release has to make room, and would take the name with it in mid-answer.
            known.mover = self._movers.submit(self._loading.withdraw, servers, model, known)
        for number in loaded:
            self._load(servers, orphans, model, number, known)
        if public == known.public:
            known.error = ""
        elif public is not None and public in loaded and (release := known.releases.get(public)) is not None:
            if release.state != "ready":
                known.error = release.error
            elif still := {*known.aliases_of(public)} & {*held}:
                known.error = f"another model has not let go of {', '.join(sorted(still))}"
            elif may_move:
                known.mover = self._movers.submit(self._loading.publish, servers, model, public, known)
        for number, release in list(known.releases.items()):
            if release.busy:
                continue
            if release.state == "unloading" and not release.error:
                del known.releases[number]
            elif number not in loaded and number != known.public and release.due and not known.moving:
                release.state, release.error, release.retry_at = "unloading", "", None
                release.loader = self._movers.submit(self._loading.unload, servers, model, number, release)

    def _load(self, servers: Servers, orphans: Orphans, model: str, number: int, known: KnownModel) -> None:
        """Start loading a release that is not loaded yet, if there is room, or whose next try is due."""
        release = known.releases.get(number)
        if number not in known.intents:
            return
        if release is None:
            if known.wanted.alone and not known.releases.keys() <= {number}:
                return
            release = known.releases[number] = KnownRelease()
            if orphans.adopt(model, number):
                release.how = "confirm"
        elif release.busy or release.retry_at is None or not release.due or release.ended_triton:
            return
        elif release.state == "unloading" and not release.error:
            return  # it is unloaded, and the next turn begins anew
        self._start_loading(servers, model, number, known, release)

    def _load_suspect(self, servers: Servers, models: dict[str, KnownModel]) -> None:
        """Load one release that may have ended Triton, by itself: when nothing else is loaded."""
        releases = [(m, n, known, r) for m, known in models.items() for n, r in known.releases.items()]
        for model, number, known, release in releases:
            due = release.ended_triton and release.retry_at is not None and release.due
            if due and release.state != "ready" and number in known.wanted.loaded and number in known.intents:
                self._start_loading(servers, model, number, known, release)
                return

    def _start_loading(
        self, servers: Servers, model: str, number: int, known: KnownModel, release: KnownRelease
    ) -> None:
        how = {"load": self._loading.load, "again": self._loading.load_again, "confirm": self._loading.confirm}
        work, release.how = how[release.how], "load"
        release.state, release.retry_at, release.cut_off = "loading", None, False
        release.loader = self._loaders.submit(work, servers, model, number, known.intents[number], known, release)


def held_by_others(models: dict[str, KnownModel], model: str) -> set[str]:
    """The names beside its own that a model cannot have now: other models answer by them, or are just moving there."""
    others = {name: known for name, known in models.items() if name != model}
    moving = {alias for known in others.values() for alias in (known.named if known.moving else known.aliases)}
    return moving | others.keys()


def is_loading(models: dict[str, KnownModel]) -> bool:
    """Whether a release is being loaded."""
    return any(
        release.busy and release.state == "loading" for known in models.values() for release in known.releases.values()
    )


def watched(models: dict[str, KnownModel]) -> tuple[Watched, ...]:
    """The releases that are to answer now."""
    found: list[Watched] = []
    for model, known in models.items():
        for number, release in known.releases.items():
            if release.state == "ready" and not release.busy and number in known.wanted.loaded:
                name = release_names(model, number)[RELEASE]
                public = known.public == number and not known.moving
                intent = known.intents.get(number)
                asked = model if public else name
                found.append(Watched(known, release, name, asked, patience(intent), takes_ids(intent)))
    return tuple(found)
