"""What an adapter says by regular expressions, found out in a process that ends in time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from tasks.lora.config import unfit

MATCHING_SECONDS = 10.0
"""Real patterns take milliseconds. Others can take longer than the universe: `(a+)+b` doubles with each letter."""

_PROGRAM = Path(__file__).with_name("pattern_program.py")


def by_pattern(setting: str, values: Mapping[str, float], names: Collection[str]) -> dict[str, float]:
    """The value of each name that a pattern of `values` matches, by the first that does.

    Raises StepFailed `adapter-unfit`, which names `setting`, for a pattern that is none or takes too long.
    """
    if not values:
        return {}
    patterns = list(values)
    try:
        ran = subprocess.run(
            [sys.executable, "-I", str(_PROGRAM)],
            input=json.dumps([patterns, list(names)]),
            capture_output=True,
            text=True,
            timeout=MATCHING_SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired:
        raise unfit(f"the regular expressions of its {setting} take more than {MATCHING_SECONDS:g} s") from None
    except subprocess.CalledProcessError as error:
        raise unfit(f"the regular expressions of its {setting} end the process that matches them") from error
    answer = json.loads(ran.stdout)
    if "broken" in answer:
        raise unfit(f"{setting} {patterns[answer['broken']]!r:.200} is no regular expression: {answer['why']}")
    found: list[int | None] = answer["found"]
    return {name: values[patterns[at]] for name, at in zip(names, found, strict=True) if at is not None}
