"""Percentiles, and of how many requests they may be told.

Of n requests, a share p to the n lies below the p-th percentile altogether by chance. Unless that is less likely than
1 %, nobody knows from them that the percentile is no higher than the slowest: 90 are needed for a 95th, 459 for a 99th.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
CONFIDENCE = 0.99


def needed(percentile: float, confidence: float = CONFIDENCE) -> int:
    """The requests that a percentile takes: the least n for which (`percentile`/100)^n is at most 1 - confidence."""
    return math.ceil(math.log(1 - confidence) / math.log(percentile / 100))


def percentile_of(values: Sequence[float] | np.ndarray[tuple[int], np.dtype[np.float64]], which: float) -> float:
    """Linear between the two values beside it, as numpy's default and AIPerf's."""
    import numpy as np  # not with this module: every model's file asks it how many requests a limit takes

    return float(np.percentile(np.asarray(values, dtype=np.float64), which))


def percentile_name(which: float) -> str:
    """`p99.9`."""
    return f"p{which:g}"
