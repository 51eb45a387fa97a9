"""Commands that tell of releases from the store alone, or take one out of it: report, history, export."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from deployments.cli.command import Add, print_json, say
from infra.errors import UsageError

if TYPE_CHECKING:
    from infra.settings import Settings
    from tasks.targets.release import Intent
    from tasks.targets.target import Target


def add_release_commands(add: Add) -> None:
    sub = add("report", _report, "what was decided on a release and why: changes, figures, answers", json=True)
    sub.add_argument("release", metavar="MODEL[@N]", help="a release, or a model: the one that is public")
    sub.add_argument("--target", default="", help="by default that of this machine")
    sub.add_argument("--html", metavar="FILE", help="write it as a page that needs no other file; - is stdout")

    sub = add("history", _history, "who did what to a model's releases, and when: the newest first", json=True)
    sub.add_argument("model")
    sub.add_argument("--target", default="", help="by default that of this machine")
    sub.add_argument("--limit", type=_count, metavar="N", help="so many events; 20 if not given")

    sub = add("export", _export, "write a release to a folder that other programs read and verify", json=True)
    sub.add_argument("release", metavar="MODEL[@N]", help="a release, or a model: the one that is public")
    sub.add_argument("--to", type=Path, metavar="DIR", help="by default MODEL-N here; a begun export goes on")
    sub.add_argument("--target", default="", help="by default that of this machine")


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 1 to 1000")
    return int(text)


def _history(options: argparse.Namespace, settings: Settings) -> int:
    from deployments.cli.columns import Style, print_fitted
    from infra.s3.bucket import Bucket
    from tasks.explain.history import HEADS, NEWEST, history, history_lines
    from tasks.targets.target import Target

    target = Target(Bucket.at(settings.store), options.target or settings.target)
    found = history(target, options.model, options.limit or NEWEST)
    if options.json:
        print_json(found.document())
    else:
        print(Style.of_stdout().paint(HEADS, "bold"))
        print_fitted(history_lines(found))
    return 0


def _export(options: argparse.Namespace, settings: Settings) -> int:
    from deployments.cli.people import size
    from deployments.cli.running import showing_bytes
    from tasks.export.release import export

    target, release = _named(options, settings)
    with showing_bytes("export", quiet=options.json) as progress:
        made = export(
            target,
            release.model,
            release.release,
            options.to or Path(f"{release.model}-{release.release}"),
            signing_key=settings.signing_key,
            public_keys=settings.signing_public_key,
            progress=progress,
        )
    if options.json:
        print_json(made.document())
        return 0
    print(made.folder)
    say(f"{made.release}: {made.files} files, {size(made.size)}")
    say(made.digest)
    if not made.signed:
        say("its provenance is not signed: ENGINEHOUSE_SIGNING_KEY names no key")
    return 0


def _named(options: argparse.Namespace, settings: Settings) -> tuple[Target, Intent]:
    """The target and the release that a command names. Raises UsageError, `reference-unknown` for an artifact."""
    from infra.s3.bucket import Bucket
    from tasks.store.artifact import ArtifactRef
    from tasks.targets.references import find, release_of
    from tasks.targets.target import Target

    bucket = Bucket.at(settings.store)
    reference = find(bucket, options.release, options.target or settings.target)
    if isinstance(reference, ArtifactRef):
        raise UsageError(
            f"{reference} is an artifact, and this command takes a release",
            hint=f"`enginehouse lineage {reference}` shows the releases that use it",
            code="reference-unknown",
        )
    return Target(bucket, reference.target), release_of(bucket, reference)


def _report(options: argparse.Namespace, settings: Settings) -> int:
    from deployments.cli.columns import print_fitted
    from tasks.report.release import read_report
    from tasks.report.sections import sections, title
    from tasks.report.stored import page_of
    from tasks.report.text import lines

    if options.json and options.html:
        raise UsageError("--json and --html are two forms of one report", hint="ask for one", code="report-form")
    target, release = _named(options, settings)
    report = read_report(target, release, now=True)
    if options.json:
        print_json(report.document())
    elif options.html == "-":
        sys.stdout.write(page_of(report))
    elif options.html:
        Path(options.html).write_text(page_of(report), encoding="utf-8")
        say(f"written to {options.html}")
    else:
        print_fitted(lines(title(report), sections(report)))
    return 0
