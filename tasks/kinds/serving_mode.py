"""How the Triton of a node must run for a release."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ServingMode:
    """`single`: one process. `orchestrator`: its backend spawns a worker a GPU. `leader`: one process a rank.

    `why` says it to people; `ranks` are the processes that a release in mode `leader` has for itself.
    """

    mode: Literal["single", "orchestrator", "leader"]
    why: str
    ranks: int = 0
