"""Whether Triton, and each release that is called ready, has answered lately.

A release that has answered clients is left alone: Triton counts its answers. One that has not is asked for one token.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from deployments.node.asking import ask, dead, is_gone
from deployments.node.known import KnownModel, KnownRelease
from infra.errors import TritonError
from infra.triton.client import Completion, TritonClient

_POLL_SECONDS = 1.0
_LATELY_SECONDS = 5.0
"""A release that has not answered for so long is asked."""
_SHARE = 50
"""A release is asked so seldom that answering takes at most a fiftieth of its time: on a CPU a token may take long."""
_SELDOM_SECONDS = 60.0
_SOON_SECONDS = 5.0
"""An idle release has answered by then. Whether another is busy or dead, a request that it refuses tells."""
HANG_SECONDS = 10.0
"""A Triton that has not said for so long that it is live hangs."""
_LIVE_SECONDS = 3.0

_log = logging.getLogger("enginehouse.node")


@dataclass(frozen=True)
class Watched:
    """A release that is called ready. `release` is its ensemble, `name` the one to ask: the public name, or itself."""

    known: KnownModel
    state: KnownRelease
    release: str
    name: str
    patience_s: float
    takes_ids: bool

    @property
    def is_public(self) -> bool:
        return self.name != self.release


@dataclass
class _Memory:
    """What was seen of one release since it became ready."""

    answered_at: float
    counted: int = -1
    failed: int = 0
    asked_at: float = 0.0
    unanswered_at: float | None = None
    """When it was first asked since its last answer."""
    cost_s: float = 0.0
    asking: Future[Completion] | None = None
    name: str = ""
    pinging: Future[str] | None = None
    pings: int = 0
    asked: set[str] = field(default_factory=set[str])
    """The names by which it has answered."""


class Watch:
    """Looks at what the loop tells it to `see`, and writes `lost` of a release, and `answered` of its model.

    `busy` tells whether loads may keep Triton from answering: they occupy its HTTP threads. Then a hanging Triton is
    one whose `metrics` do not answer either, which have a server of their own.
    """

    def __init__(self, metrics: TritonClient) -> None:
        self._metrics = metrics
        self._seen: tuple[TritonClient, tuple[Watched, ...], bool] | None = None
        self._memory: dict[int, tuple[KnownRelease, _Memory]] = {}
        self._live_at = time.monotonic()
        self._of: TritonClient | None = None
        self._stop = threading.Event()
        self._askers = ThreadPoolExecutor(max_workers=64, thread_name_prefix="ask")
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._askers.shutdown(wait=False, cancel_futures=True)

    def see(self, triton: TritonClient | None, releases: tuple[Watched, ...] = (), *, busy: bool = False) -> None:
        """What there is now; `triton` is None while none runs."""
        if triton is not self._of:
            self._of, self._live_at = triton, time.monotonic()
        self._seen = None if triton is None else (triton, releases, busy)

    @property
    def hangs(self) -> bool:
        """Whether the Triton that was last shown has not answered for HANG_SECONDS."""
        return self._seen is not None and time.monotonic() - self._live_at > HANG_SECONDS

    def _run(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            seen = self._seen
            if seen is None:
                self._memory.clear()
                continue
            try:
                self._look(*seen)
            except Exception:  # nothing that is odd about one release may end the watch over the others
                _log.exception("the watch over releases failed")

    def _look(self, triton: TritonClient, releases: tuple[Watched, ...], busy: bool) -> None:
        if not (
            triton.within(_LIVE_SECONDS).live() or (busy and self._metrics.within(_LIVE_SECONDS).answers("metrics"))
        ):
            return
        if triton is self._of:
            self._live_at = time.monotonic()
        kept = {id(each.state): (each.state, self._remember(each.state)) for each in releases}
        self._memory = kept
        for each in releases:
            if each.state.state == "ready" and not each.state.lost:
                try:
                    each.state.lost = self._look_at(triton, each, kept[id(each.state)][1])
                except TritonError as error:
                    each.state.lost = f"it does not answer: {error.message}" if is_gone(error) else ""

    def _remember(self, state: KnownRelease) -> _Memory:
        known = self._memory.get(id(state))
        # A release that was loaded again has answered just now.
        if known is None or known[0] is not state or known[1].answered_at < state.ready_at:
            return _Memory(answered_at=state.ready_at)
        return known[1]

    def _look_at(self, triton: TritonClient, watched: Watched, memory: _Memory) -> str:
        """Why a release is taken for dead; empty if it is not."""
        now = time.monotonic()
        counts = triton.within(_LIVE_SECONDS).counts(watched.release)
        failing = counts.failed > memory.failed + memory.pings
        if counts.answered > memory.counted >= 0:
            memory.answered_at, memory.unanswered_at = now, None
        memory.counted, memory.failed = counts.answered, counts.failed
        if memory.unanswered_at is not None and (silent := now - memory.unanswered_at) > watched.patience_s:
            return f"it has not answered for {silent:.0f} s"
        if memory.pinging is not None and memory.pinging.done():
            pinged, memory.pinging, memory.pings = memory.pinging, None, 0
            if found := pinged.result():
                return found
        if memory.asking is not None and memory.asking.done():
            asked, memory.asking = memory.asking, None
            return self._heard(asked, watched, memory)
        late = memory.asking is not None and now - memory.asked_at > _SOON_SECONDS
        if (failing or late) and memory.pinging is None:
            memory.pings = 1
            memory.pinging = self._askers.submit(dead, triton, watched.name, _SOON_SECONDS, by_id=watched.takes_ids)
        lately = min(max(_LATELY_SECONDS, _SHARE * memory.cost_s), _SELDOM_SECONDS)
        due = now - max(memory.answered_at, memory.asked_at) >= lately or watched.name not in memory.asked
        if memory.asking is None and due:
            memory.asked_at, memory.name = now, watched.name
            memory.unanswered_at = memory.unanswered_at or now
            memory.asking = self._askers.submit(ask, triton, watched.name, watched.patience_s, by_id=watched.takes_ids)
        return ""

    def _heard(self, asked: Future[Completion], watched: Watched, memory: _Memory) -> str:
        try:
            memory.cost_s = asked.result().seconds
        except TritonError as error:
            # A release that is busy refuses too: without any answer, its patience ends. A name may just have moved.
            lost = is_gone(error) and memory.name == watched.name
            return f"it does not answer: {error.message}" if lost else ""
        memory.answered_at, memory.unanswered_at = time.monotonic(), None
        memory.asked.add(memory.name)
        if watched.is_public and memory.name == watched.name:
            watched.known.answered = True
        return ""
