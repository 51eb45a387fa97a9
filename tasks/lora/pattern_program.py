"""Matches an adapter's patterns with names of modules: runs as a program, since `re` cannot be stopped from inside.

Reads [patterns, names] as JSON, and prints for each name the number of the first pattern that matches, or null; for a
pattern that is no regular expression, its number and why. Standard library only.
"""

from __future__ import annotations

import json
import re
import resource
import sys

MEMORY_BYTES = 2**30
"""A pattern that repeats repetitions can be compiled into more than a machine has."""


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    patterns, names = json.load(sys.stdin)
    compiled: list[re.Pattern[str]] = []
    for number, pattern in enumerate(patterns):
        try:
            # As PEFT 0.21 does: the end of a module's name (utils/other.py, match_target_against_key).
            compiled.append(re.compile(rf"(.*\.)?({pattern})$"))
        except (re.error, OverflowError, RecursionError, MemoryError) as error:
            json.dump({"broken": number, "why": str(error)}, sys.stdout)
            return
    found = [next((at for at, each in enumerate(compiled) if each.match(name)), None) for name in names]
    json.dump({"found": found}, sys.stdout)


if __name__ == "__main__":
    main()
