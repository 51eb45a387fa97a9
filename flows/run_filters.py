"""How Prefect's API is asked for flow runs."""

from __future__ import annotations

from prefect.client.schemas.objects import StateType

PAGE = 200
"""The most that Prefect's API answers at once."""

NOT_ENDED = (StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.PAUSED)
"""States of runs that nobody has ended or asked to end."""
