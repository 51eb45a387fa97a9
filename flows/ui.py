"""Artifacts in the Prefect UI. Each hangs on the task that made it, and has a history under its key."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    acreate_markdown_artifact,
    acreate_progress_artifact,
    acreate_table_artifact,
    aupdate_progress_artifact,
)

from tasks.artifact import Artifact
from tasks.changes import fields_of
from tasks.lineage import Lineage
from tasks.lineage_text import mermaid
from tasks.records import Intent, Result
from tasks.spec import Model


def _key(*parts: str) -> str:
    # Prefect's keys are lowercase letters, digits and dashes.
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower())


@dataclass(frozen=True)
class ProgressBar:
    artifact: UUID

    @classmethod
    async def create(cls, label: str) -> ProgressBar:
        return cls(await acreate_progress_artifact(progress=0.0, key=_key(label), description=label))

    async def update(self, percent: float) -> None:
        await aupdate_progress_artifact(artifact_id=self.artifact, progress=percent)


async def show_manifest(artifact: Artifact) -> None:
    """What was made, from what, by whom, and its files."""
    manifest = artifact.manifest
    producer = manifest.producer
    files = "\n".join(f"| `{file.path}` | {file.size:,} | `{file.sha256}` |" for file in manifest.files)
    inputs = "\n".join(f"- {role}: `{reference}`" for role, reference in manifest.inputs.items()) or "- none"
    await acreate_markdown_artifact(
        key=_key(manifest.kind, manifest.model),
        description=f"{manifest.kind} of {manifest.model}",
        markdown=f"""# {artifact.ref}

Made by `{producer.task}` of {producer.code} on {producer.host} in {producer.seconds} s,
peak memory {producer.peak_memory_bytes / 2**20:.0f} MiB.

Made from:
{inputs}

| file | bytes | sha256 |
|---|---|---|
{files}
""",
    )


async def show_release(intent: Intent, target: str) -> None:
    recipe = "\n".join(f"| {field} | {value} |" for field, value in fields_of(intent.recipe).items())
    changes = "\n".join(f"- {change}" for change in intent.changes)
    lost = "\n".join(f"- {field}, which was {value}" for field, value in intent.lost.items())
    await acreate_markdown_artifact(
        key=_key("release", intent.model, target),
        description=f"{intent.model} release {intent.release} on {target}",
        markdown=f"""# {intent.model} release {intent.release} on {target}

Source `{intent.source}`, repository `{intent.repository}`.

| recipe | |
|---|---|
{recipe}

Changed from the release that was live:

{changes or "- nothing"}

Without a counterpart in this kind:

{lost or "- nothing"}
""",
    )


async def show_prompts(model: Model, result: Result, target: str) -> None:
    """The test prompts with their answers."""
    texts = {prompt.name: prompt.text for prompt in model.prompts}
    rows: list[dict[str, Any]] = [
        {
            "node": prompt.node,
            "prompt": texts.get(prompt.prompt, prompt.prompt),
            "answer": prompt.answer,
            "seconds": prompt.seconds,
            "passed": "yes" if prompt.passed else "no: " + "; ".join(prompt.failures),
        }
        for prompt in result.prompts
    ]
    await acreate_table_artifact(
        key=_key("prompts", model.name, target),
        description=f"{model.name} release {result.release} on {target}: {result.state} {result.reason}",
        table=rows,
    )


async def show_lineage(found: Lineage) -> None:
    """From the source to what the run made and what uses it, as a Mermaid diagram."""
    await acreate_markdown_artifact(
        key=_key("lineage", found.model),
        description=f"where {found.root} comes from, and what uses it",
        markdown=f"```mermaid\n{mermaid(found)}```\n",
    )
