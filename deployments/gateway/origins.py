"""Which rebuild made a release, as a place in its trace: read once for each release, and no request waits for it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from deployments.gateway.state import Place
from infra.traces.propagation import is_traceparent
from tasks.targets.target import Target

_SILENT_SECONDS = 5.0

_log = logging.getLogger("enginehouse.gateway")


class Origins:
    """Of releases of these targets."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self._targets = {each.name: replace(each, bucket=each.bucket.impatient(_SILENT_SECONDS)) for each in targets}
        self._known: dict[tuple[str, str, int], str] = {}
        self._sought: set[tuple[str, str, int]] = set()

    def tell(self, model: str, place: Place, hear: Callable[[str], None]) -> None:
        """Say where the release at `place` comes from, at once or from another thread; empty if nobody knows.

        While one request has it looked up, others hear that nobody knows.
        """
        key = place.node.target, model, place.release
        if key in self._known or key in self._sought or key[0] not in self._targets:
            hear(self._known.get(key, ""))
            return
        self._sought.add(key)
        threading.Thread(target=self._look_up, args=(key, hear), name="origin", daemon=True).start()

    def _look_up(self, key: tuple[str, str, int], hear: Callable[[str], None]) -> None:
        found, (target, model, release) = "", key
        try:
            found = self._targets[target].intent(model, release).traceparent
            self._known[key] = found = found if is_traceparent(found) else ""
        except Exception as error:  # the next request tries again
            _log.debug("the record of %s release %d cannot be read: %s", model, release, error)
        finally:
            self._sought.discard(key)
            hear(found)
