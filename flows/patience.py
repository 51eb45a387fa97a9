"""How long a run may be silent, wait, or stay crashed, until something is done about it. Imports no Prefect."""

from __future__ import annotations

from tasks.store.lease import LONGEST_WORK_SECONDS

SILENT_HEARTBEATS = 3
"""A run that misses so many is taken for dead: two may be late. The server's automation `lost-runs` then acts."""

RECONCILED_HEARTBEATS = SILENT_HEARTBEATS + 1
"""`reconcile` gives the automation one more, and then acts on runs that the server did not watch."""

STARTING_PROCESS_SECONDS = 90.0
"""A flow run is Pending while its process starts, which takes 3 to 5 s. One whose worker died stays so for ever."""

STARTING_SECONDS = 3600.0
"""The same on any pool: where there are containers, a worker first fetches 20 GB, or the cluster starts a node."""

TAKEN_SECONDS = 7 * LONGEST_WORK_SECONDS
"""Builds queue up for the workers of a pool. One that no worker has taken after so long is not waited for any more."""

BUILD_SECONDS = 2 * LONGEST_WORK_SECONDS
"""A running build may first wait for another one's lease, as long as that may work."""

SETTLED_SECONDS = 20
"""A crashed run is left alone for so long: if its worker lives, it has reported by then."""

RECONCILE_AFTER_CRASH_SECONDS = SETTLED_SECONDS + 10
"""A crashed rebuild has `reconcile` run so much later. It then finds the run settled."""
