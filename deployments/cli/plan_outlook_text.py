"""What a plan says of memory, targets, steps, time and money, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from deployments.cli.people import size
from deployments.cli.plan import Preview
from deployments.cli.plan_document import cost_of
from tasks.explain.expected_time import Expected, Forecast
from tasks.explain.node_room import NodeRoom
from tasks.explain.outlook import OnTarget, Outlook
from tasks.explain.planned_steps import PlannedStep


def memory_lines(shown: Preview) -> Iterator[str]:
    """What one release takes, and whether its GPU holds two, as a rollout without --recreate needs."""
    memory, gpus = shown.memory, shown.kind.gpus()
    if memory is None:
        return
    where = "on each GPU" if gpus else "of the host"
    yield (
        f"memory {where}: {size(memory.total)}, of it weights {size(memory.weights)}, KV cache {size(memory.cache)}, "
        f"the rest {size(memory.rest)} (estimate)"
    )
    if memory.capacity is not None:
        room = "holds two beside each other" if 2 * memory.total <= memory.capacity else "holds one alone: --recreate"
        yield f"  one GPU has {size(memory.capacity)}, and {room}"


def outlook_lines(shown: Preview, outlook: Outlook, prices: Mapping[str, float]) -> Iterator[str]:
    if outlook.built_bytes is not None:
        yield f"memory of the engine that is in the store: {size(outlook.built_bytes)}"
    for target in outlook.targets:
        yield from _target_lines(target)
    if outlook.steps is None or outlook.time is None:
        return
    compared = outlook.compared
    if compared is not None:
        live = "is live" if compared.live else "was made last"
        yield f"steps, beside release {compared.release}, which {live} on {compared.target}:"
    else:
        yield "steps:"
    for step, expected in zip(outlook.steps, outlook.time.steps, strict=True):
        yield _step_line(step, expected)
    yield from _time_lines(shown, outlook.time, prices)


def _target_lines(target: OnTarget) -> Iterator[str]:
    live = "no release is live" if target.live is None else f"release {target.live} is live"
    if target.same:
        live += ", and is what a rebuild would make"
    yield f"target {target.name}: {live}"
    if target.refusal is not None:
        yield f"  a rebuild is refused: {target.refusal}; {target.refusal.hint}"
    if target.silent:
        yield f"  {target.silent}"
    for room in target.rooms:
        yield f"  node {room.node}: {_room(room)}"


def _room(room: NodeRoom) -> str:
    held = f"{size(room.free)} of {size(room.total)} free"
    match room.verdict:
        case "beside":
            return f"{held}: it holds the release beside what it serves"
        case "alone":
            return f"{held}: only in the live release's place (--recreate)"
        case "none":
            return f"{held}: it does not hold the release"
        case "unknown":
            return held
        case "unfit":
            return f"it cannot serve it: {room.why}"


def _step_line(step: PlannedStep, expected: Expected | None) -> str:
    name = f"  {step.step:9}"
    part = f" ({step.part})" if step.part else ""
    if step.state == "cached":
        held = f", {size(step.artifact.manifest.size)}" if step.artifact is not None else ""
        return f"{name} cached{held}{part}"
    download = f", {size(step.download_bytes)} to download" if step.download_bytes else ""
    time = f", {_time(expected)}" if expected is not None else ""
    return f"{name} to make: {step.why}{download}{time}{part}"


def _time_lines(shown: Preview, time: Forecast, prices: Mapping[str, float]) -> Iterator[str]:
    if not time.total.seconds:
        yield "nothing is to be made" if time.whole else "time: nothing is known of what the steps take"
        return
    least = "" if time.whole else "at least "
    yield f"time: {least}{_time(time.total)}, without the rollout and its gates"
    cost = cost_of(shown, time, prices)
    if cost is not None:
        low, likely, high = cost
        yield f"cost of the GPUs that build: {likely:.2f} ({low:.2f} to {high:.2f})"


def _time(expected: Expected) -> str:
    by = "prior figures" if expected.runs == 0 else f"{expected.runs} earlier run{'s' * (expected.runs != 1)}"
    return f"{duration(expected.seconds)} ({duration(expected.low)} to {duration(expected.high)}, {by})"


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"
