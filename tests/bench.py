"""`make bench`: what a rebuild with nothing to do costs, as a ratio to a floor.

The floor is a Python process that imports Prefect, boto3 and tritonclient and runs an async flow with the same number
of empty tasks on the same server. Both are measured in turns, and their medians compared.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time

from infra import settings

ROUNDS = 7
MODEL = "smollm2-135m"
LIMIT = 1.4
HELP_SECONDS, PLAN_SECONDS = 0.3, 2.0
"""Of `enginehouse --help`, and of `enginehouse plan` of the same model, each as a process."""

FLOOR = """
import asyncio, logging, sys
import boto3, tritonclient.grpc, tritonclient.http
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
logging.getLogger("prefect").setLevel(logging.CRITICAL)

@task(cache_policy=NO_CACHE, persist_result=False)
async def nothing() -> None: ...

@flow(persist_result=False)
async def floor(count: int) -> None:
    for _ in range(count):
        await nothing()

asyncio.run(floor(int(sys.argv[1])))
"""


def timed(*command: str) -> tuple[float, str]:
    """Seconds that the command took, and its standard output."""
    started = time.monotonic()
    done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return time.monotonic() - started, done.stdout


def main() -> int:
    settings.activate()
    os.environ.setdefault("PREFECT_HOME", str(settings.load().home / "prefect"))
    rebuild = (sys.executable, "-m", "deployments.cli.main", "rebuild", MODEL, "--json")
    report = json.loads(timed(*rebuild)[1])
    steps = len(report["steps"])
    cached = sum(step["state"] == "Cached" for step in report["steps"])
    assert report["state"] == "unchanged", report
    ours: list[float] = []
    floor: list[float] = []
    for _ in range(ROUNDS):
        floor.append(timed(sys.executable, "-c", FLOOR, str(steps))[0])
        ours.append(timed(*rebuild)[0])
    ratio = statistics.median(ours) / statistics.median(floor)
    print(f"rebuild with nothing to do ({steps} steps, {cached} Cached): median {statistics.median(ours):.2f} s")
    print(f"floor (imports, {steps} empty tasks):                  median {statistics.median(floor):.2f} s")
    print(f"ratio {ratio:.2f} (at most {LIMIT})")
    within = [_is_within(HELP_SECONDS, "--help"), _is_within(PLAN_SECONDS, "plan", MODEL)]
    return 0 if ratio <= LIMIT and all(within) else 1


def _is_within(seconds: float, *arguments: str) -> bool:
    """Run a command three times, print the median, and return whether that is within the limit."""
    command = (sys.executable, "-m", "deployments.cli.main", *arguments)
    median = statistics.median(timed(*command)[0] for _ in range(3))
    print(f"{' '.join(arguments)}: median {median:.2f} s (at most {seconds:g})")
    return median <= seconds


if __name__ == "__main__":
    sys.exit(main())
