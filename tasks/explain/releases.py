"""`enginehouse releases`: what was released, what is live where, and why a release was refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from infra.errors import UsageError
from tasks.targets.changes import FieldChange, fields_of
from tasks.targets.target import Target


def releases(target: Target, model: str) -> dict[str, Any]:
    """Everything the store says of a model's releases on a target, newest first, as JSON."""
    current, _ = target.current(model)
    numbers = target.releases(model)
    if not numbers:
        raise UsageError(
            f"{model} was never released on target '{target.name}'",
            hint=f"enginehouse rebuild {model}",
            code="release-missing",
        )
    rows: list[dict[str, Any]] = []
    for number in reversed(numbers):
        result = target.result(model, number)
        if number == current.public:
            state = "live"
        elif result is None:
            state = "candidate" if number in current.candidates else "abandoned"
        else:
            state = result.state
        rows.append(
            {
                "release": number,
                "state": state,
                "loaded": number in current.loaded,
                "intent": target.intent(model, number).model_dump(mode="json"),
                "result": None if result is None else result.model_dump(mode="json"),
            }
        )
    nodes = {
        node.node: node.models[model].model_dump(mode="json") if model in node.models else None
        for node in target.nodes()
    }
    return {"model": model, "target": target.name, "public": current.public, "releases": rows, "nodes": nodes}


def release_lines(found: dict[str, Any]) -> Iterator[str]:
    """The same for people."""
    for row in found["releases"]:
        intent, result = row["intent"], row["result"]
        recipe = " ".join(f"{field}={value}" for field, value in fields_of(intent["recipe"]).items())
        loaded = "loaded" if row["loaded"] else ""
        yield f"{row['release']:4}  {row['state']:10} {loaded:7} {intent['created'][:19]}  {recipe}"
        yield from (f"      changed {FieldChange.model_validate(change)}" for change in intent["changes"])
        for field, value in intent["lost"].items():
            yield f"      {field} has no counterpart, and was {json.dumps(value)}"
        if result is None:
            continue
        if result["reason"]:
            yield f"      {result['reason']}"
        for prompt in result["prompts"]:
            verdict = "passed" if prompt["passed"] else "FAILED"
            where = f"{prompt['prompt']} on {prompt['node']} in {prompt['seconds']} s"
            yield f"      {verdict} {where}: {prompt['answer']!r}"
    for node, model in found["nodes"].items():
        yield f"node {node}: " + (
            "not loaded" if model is None else f"public release {model['public']} {model['error']}"
        )
