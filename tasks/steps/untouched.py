"""What clients have while a candidate does not become public, in a hint's words."""

from __future__ import annotations

from tasks.targets.target import Target


def untouched(target: Target, model: str) -> str:
    public = target.current(model)[0].public
    return "no release is live" if public is None else f"the live release, {public}, was not touched"
