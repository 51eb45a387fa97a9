"""Lengths of prompts and answers: always the same, or drawn from a distribution."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from random import Random
from typing import Literal

from infra.errors import UsageError

Kind = Literal["fixed", "uniform", "normal", "lognormal"]

MOST_TOKENS = 1_000_000
"""Of a prompt or an answer that a load asks for."""

_FORM = re.compile(r"(?:(?P<kind>[a-z]+):)?(?P<first>\d+(?:\.\d+)?)(?:,(?P<second>\d+(?:\.\d+)?))?")
_HINT = "for example 128, uniform:64,256, normal:128,32 or lognormal:128,0.5"


@dataclass(frozen=True)
class Lengths:
    """A distribution of tokens, of which every number is at least 1 and at most MOST_TOKENS.

    `fixed` is always `first`; `uniform` lies from `first` to `second`; `normal` has the mean `first` and the standard
    deviation `second`; `lognormal` has the median `first`, and `second` is the standard deviation of the natural
    logarithm.
    """

    kind: Kind
    first: float
    second: float = 0.0

    def draw(self, random: Random) -> int:
        match self.kind:
            case "fixed":
                drawn = self.first
            case "uniform":
                drawn = random.randint(int(self.first), int(self.second))
            case "normal":
                drawn = random.gauss(self.first, self.second)
            case "lognormal":
                drawn = random.lognormvariate(math.log(self.first), self.second)
        return max(1, min(round(drawn), MOST_TOKENS))

    def __str__(self) -> str:
        if self.kind == "fixed":
            return f"{self.first:g}"
        return f"{self.kind}:{self.first:g},{self.second:g}"


def parse_lengths(text: str) -> Lengths:
    """`N`, or `KIND:FIRST,SECOND`. Raises UsageError, code `load-lengths`."""
    found = _FORM.fullmatch(text)
    kind = (found["kind"] or "fixed") if found else ""
    if found is None or kind not in ("fixed", "uniform", "normal", "lognormal"):
        raise UsageError(f"'{text}' is no distribution of lengths", hint=_HINT, code="load-lengths")
    if (kind == "fixed") != (found["second"] is None):
        raise UsageError(f"'{text}' has not as many numbers as {kind} takes", hint=_HINT, code="load-lengths")
    first, second = float(found["first"]), float(found["second"] or 0)
    if not 1 <= first <= MOST_TOKENS or (kind == "uniform" and not first <= second <= MOST_TOKENS):
        raise UsageError(f"'{text}' is not from 1 to {MOST_TOKENS} tokens", hint=_HINT, code="load-lengths")
    if kind == "lognormal" and second > 5:
        raise UsageError(f"'{text}': a deviation of the logarithm is 5 at most", hint=_HINT, code="load-lengths")
    return Lengths(kind, first, second)
