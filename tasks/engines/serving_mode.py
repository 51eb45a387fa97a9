"""How the Triton of a node must run for a release."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ServingMode:
    """`single`: one process. `orchestrator`: its backend spawns a worker a GPU. `leader`: one process a rank.

    With `recreate` a release cannot be loaded beside another one; `why` says it to people.
    """

    mode: Literal["single", "orchestrator", "leader"]
    recreate: bool
    why: str
