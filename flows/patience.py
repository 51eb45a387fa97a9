"""How long a run may be silent, or stay crashed, until something is done about it. Imports no Prefect."""

from __future__ import annotations

SILENT_HEARTBEATS = 3
"""A run that misses so many is taken for dead: two may be late. The server's automation `lost-runs` then acts."""

RECONCILED_HEARTBEATS = SILENT_HEARTBEATS + 1
"""`reconcile` gives the automation one more, and then acts on runs that the server did not watch."""

SETTLED_SECONDS = 20
"""A crashed run is left alone for so long: if its worker lives, it has reported by then."""

RECONCILE_AFTER_CRASH_SECONDS = SETTLED_SECONDS + 10
"""A crashed rebuild has `reconcile` run so much later. It then finds the run settled."""
