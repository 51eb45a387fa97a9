"""Artifacts in the Prefect UI. Each belongs to the task that made it, and has a history under its key."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from packaging.version import Version
from prefect.artifacts import (
    acreate_markdown_artifact,
    acreate_progress_artifact,
    acreate_table_artifact,
    aupdate_progress_artifact,
)

from tasks.explain.lineage import Lineage
from tasks.explain.lineage_text import mermaid
from tasks.models.spec import Model
from tasks.report.markdown import markdown
from tasks.report.prompts import prompt_sections
from tasks.report.release import ReleaseReport
from tasks.report.sections import sections, title
from tasks.store.artifact import Artifact
from tasks.targets.changes import fields_of
from tasks.targets.release import Intent, Result
from tasks.watch.verdict import Row

_NAMES_SHOWN = 8


def artifact_key(*parts: str) -> str:
    """The key of an artifact, under which it has a history."""
    # Prefect's keys are lowercase letters, digits and dashes.
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower())


def _short(reference: object) -> str:
    """A reference with 12 of its identity's 64 digits: commands take that, and a page has no room for more."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", str(reference))


@dataclass(frozen=True)
class ProgressBar:
    """A progress artifact, from 0 to 100 percent."""

    artifact: UUID

    @classmethod
    async def create(cls, label: str) -> ProgressBar:
        return cls(await acreate_progress_artifact(progress=0.0, key=artifact_key(label), description=label))

    async def update(self, percent: float) -> None:
        await aupdate_progress_artifact(artifact_id=self.artifact, progress=percent)


async def show_manifest(artifact: Artifact) -> None:
    """Show what was made, from what, by which task, and its files."""
    manifest = artifact.manifest
    producer = manifest.producer
    files = "\n".join(f"| `{file.path}` | {file.size:,} | `{_short(file.sha256)}` |" for file in manifest.files)
    runtime = "".join(f", {name} {value}" for name, value in producer.runtime.items())
    inputs = "\n".join(f"- {role}: `{_short(reference)}`" for role, reference in manifest.inputs.items()) or "- nothing"
    await acreate_markdown_artifact(
        key=artifact_key(manifest.kind, manifest.model),
        description=f"{manifest.kind} of {manifest.model}",
        markdown=f"""`{_short(artifact.ref)}`

Made by `{producer.task}` of {producer.code} on {producer.host} in {producer.seconds:.1f} s, \
peak memory {producer.peak_memory_bytes / 2**20:.0f} MiB{runtime}, from

{inputs}

| file | bytes | sha256 begins |
|---|---|---|
{files}
""",
    )


async def show_release(intent: Intent, target: str) -> None:
    """Show what a release is, and how it differs from the one that was live."""
    recipe = "\n".join(f"| {field} | {value} |" for field, value in fields_of(intent.recipe).items())
    changes = "\n".join(f"- {change}" for change in intent.changes) or "- nothing, or none was live"
    lost = "".join(f"- {field}, which was {value}\n" for field, value in intent.lost.items())
    without = f"\nWithout a counterpart in this kind:\n\n{lost}" if lost else ""
    await acreate_markdown_artifact(
        key=artifact_key("release", intent.model, target),
        description=f"{intent.model} release {intent.release} on {target}",
        markdown=f"""Made from `{intent.source}`

| recipe | value |
|---|---|
{recipe}

Changed from the release that was live:

{changes}
{without}
Its Triton models: `{_short(intent.repository)}`
""",
    )


async def show_result(model: Model, result: Result, target: str) -> None:
    """Show the test prompts with what was expected, and their answers."""
    about = f"{model.name} release {result.release} on {target}"
    await acreate_markdown_artifact(
        key=artifact_key("prompts", model.name, target),
        description=f"{about}: {result.state} {result.reason}",
        markdown=markdown(about, tuple(prompt_sections(model.prompts, result.prompts))),
    )


async def show_report(report: ReleaseReport) -> None:
    """Show what was decided on a release and why, what changed, and what each gate measured."""
    about, state = title(report), "open" if report.result is None else report.result.state
    await acreate_markdown_artifact(
        key=artifact_key("report", report.intent.model, report.target),
        description=f"{about}: {state}",
        markdown=markdown(about, sections(report)),
    )


async def show_lineage(found: Lineage) -> None:
    """Show the way from the source to what the run made, and what uses it, as a Mermaid diagram."""
    await acreate_markdown_artifact(
        key=artifact_key("lineage", found.model),
        description=f"where {_short(found.root)} comes from, and what uses it",
        markdown=f"```mermaid\n{mermaid(found)}```\n",
    )


def watch_lines(rows: Iterable[Row]) -> list[dict[str, str | int]]:
    """The rows of the release watch as a table, newest version first: models with equal rows share a line."""
    groups: dict[tuple[str, str, str, str], list[str]] = {}
    for row in rows:
        groups.setdefault((row.version, row.verdict, row.reason, row.current), []).append(row.model)

    def newest_first(key: tuple[str, str, str, str]) -> tuple[Version, str]:
        return Version(key[0] or "0"), key[1]

    return [
        {
            "version": version,
            "verdict": verdict,
            "reason": reason,
            "has now": current,
            "models": len(names),
            "names": ", ".join(names[:_NAMES_SHOWN]) + (", …" if len(names) > _NAMES_SHOWN else ""),
        }
        for (version, verdict, reason, current), names in sorted(
            groups.items(), key=lambda item: newest_first(item[0]), reverse=True
        )
    ]


async def show_watch(lines: list[dict[str, str | int]]) -> None:
    """Show what the versions of TensorRT-LLM mean for the catalogue."""
    await acreate_table_artifact(
        key="release-watch", description="TensorRT-LLM releases, and the models that take them", table=lines
    )
