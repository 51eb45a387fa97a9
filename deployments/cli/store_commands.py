"""Commands that read and keep the store: lineage, why, verify, sign, pin, unpin, gc, schema. None needs Prefect."""

from __future__ import annotations

import argparse
import platform
from pathlib import Path
from typing import TYPE_CHECKING

from deployments.cli.command import Add, Answered, add_long, print_json, say
from infra.errors import ArtifactDamaged, SettingsError, UsageError

if TYPE_CHECKING:
    from infra.s3.bucket import Bucket
    from infra.settings import Settings
    from tasks.targets.references import Reference


def add_store_commands(add: Add) -> None:
    sub = add("lineage", _lineage, "what an artifact, a release or a public name was made from, and what uses it")
    _add_reference(sub)
    sub.add_argument("--format", choices=("tree", "mermaid", "json"), default="tree")
    sub.add_argument("--json", dest="format", action="store_const", const="json", help="the same as --format json")
    add_long(sub)

    sub = add("why", _why, "why a release, or an artifact, was rebuilt: what changed since the one before", json=True)
    _add_reference(sub)
    sub.add_argument("--against", metavar="REF", help="compare with this one instead")

    sub = add("verify", _verify, "every byte against its manifest, in the store or on a node's disk", json=True)
    _add_reference(sub)
    sub.add_argument("--node", type=Path, metavar="FOLDER", help="the folder of a node, .enginehouse/node")
    add_long(sub)

    sub = add(
        "sign",
        _sign,
        "verify an artifact, or a release and its engine, and sign it with ENGINEHOUSE_SIGNING_KEY",
        json=True,
    )
    _add_reference(sub)
    add_long(sub)

    sub = add("pin", _pin, "keep an artifact or a release from being collected", json=True)
    _add_reference(sub)
    sub.add_argument("--reason", default="", help="why; `enginehouse gc` tells it")
    add_long(sub)
    sub = add("unpin", _unpin, "let a pinned artifact or release be collected again", json=True)
    _add_reference(sub)
    add_long(sub)

    sub = add("gc", _gc, "print what nothing uses and why, and delete it", json=True)
    sub.add_argument("--dry-run", action="store_true", help="only print it")
    sub.add_argument("--grace", type=_days, metavar="DAYS", help="keep what is younger, or was used since; default 7")
    add_long(sub)

    sub = add("schema", _schema, "the JSON schema of a model's file, or of a record in the store")
    sub.add_argument("record", help="model, or a record of docs/reference/records.md such as manifest or intent")


def _add_reference(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", metavar="REF", help="KIND/IDENTITY, an identity's beginning, MODEL@N, or MODEL")
    parser.add_argument("--target", default="", help="the target of releases and public names")


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 <= days < 36500:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of days")
    return days


def _bucket(settings: Settings) -> Bucket:
    from infra.s3.bucket import Bucket

    return Bucket.at(settings.store)


def _find(options: argparse.Namespace, settings: Settings, text: str = "") -> Reference:
    from tasks.targets.references import find

    return find(_bucket(settings), text or options.reference, options.target or settings.target)


def _lineage(options: argparse.Namespace, settings: Settings) -> int:
    from deployments.cli.columns import print_fitted
    from tasks.explain.lineage import lineage
    from tasks.explain.lineage_text import document, mermaid, tree

    found = lineage(_bucket(settings), _find(options, settings))
    if options.format == "json":
        print_json(document(found))
    elif options.format == "mermaid":
        print(mermaid(found), end="")
    else:
        print_fitted(tree(found), long=options.long)
    return 0


def _why(options: argparse.Namespace, settings: Settings) -> int:
    from deployments.cli.columns import print_fitted
    from tasks.explain.why import why
    from tasks.explain.why_text import document, lines

    against = None if options.against is None else _find(options, settings, options.against)
    found = why(_bucket(settings), _find(options, settings), against)
    if options.json:
        print_json(document(found))
    else:
        print_fitted(lines(found))
    return 0


def _verify(options: argparse.Namespace, settings: Settings) -> int:
    from deployments.cli.columns import print_fitted
    from deployments.cli.people import size
    from deployments.cli.running import showing_bytes
    from tasks.targets.verification import verify

    with showing_bytes("verify", quiet=options.json) as progress:
        verdicts = verify(
            _bucket(settings), _find(options, settings), options.node, settings.signing_public_key, progress
        )
    if options.json:
        print_json([verdict.document() for verdict in verdicts])
    else:
        print_fitted(
            (f"{each.artifact}  {each.files} files, {size(each.size)}: {each.word}" for each in verdicts),
            long=options.long,
        )
    problems = [problem for verdict in verdicts for problem in verdict.problems]
    if problems:
        damaged = ArtifactDamaged("; ".join(problems), hint="run the rebuild again: it replaces what is damaged")
        raise Answered(damaged) if options.json else damaged
    return 0


def _sign(options: argparse.Namespace, settings: Settings) -> int:
    from deployments.cli.columns import print_fitted
    from deployments.cli.running import showing_bytes
    from tasks.targets.verification import sign

    if not settings.signing_key:
        raise SettingsError("there is no key to sign with", hint="set ENGINEHOUSE_SIGNING_KEY to a PEM file")
    with showing_bytes("verify") as progress:
        signed = [str(ref) for ref in sign(_bucket(settings), _find(options, settings), settings.signing_key, progress)]
    if options.json:
        print_json({"signed": signed})
    else:
        print_fitted(signed, long=options.long)
    return 0


def _pin(options: argparse.Namespace, settings: Settings) -> int:
    from tasks.garbage.keep import pin

    reference = _find(options, settings)
    pin(_bucket(settings), reference, options.reason)
    return _told(reference, options)


def _unpin(options: argparse.Namespace, settings: Settings) -> int:
    from deployments.cli.people import short
    from tasks.garbage.keep import unpin

    reference = _find(options, settings)
    if not unpin(_bucket(settings), reference):
        raise UsageError(
            f"{short(reference)} is not pinned",
            hint="`enginehouse gc --dry-run` says what keeps an artifact",
            code="reference-unknown",
        )
    return _told(reference, options)


def _told(reference: Reference, options: argparse.Namespace) -> int:
    from deployments.cli.columns import print_fitted

    if options.json:
        print_json({"reference": str(reference)})
    else:
        print_fitted([str(reference)], long=options.long)
    return 0


def _gc(options: argparse.Namespace, settings: Settings) -> int:
    from deployments.cli.columns import print_fitted
    from deployments.cli.people import short, size
    from tasks.garbage.collect import GRACE_DAYS, collect, survey, survey_lines

    grace = (GRACE_DAYS if options.grace is None else options.grace) * 86400
    found = survey(_bucket(settings), grace)
    if options.json:
        print_json({**found.document(), "dry_run": options.dry_run})
    else:
        print_fitted(survey_lines(found, size), long=options.long)
    if not options.dry_run:
        holder = f"gc on {platform.node()}"
        for item in collect(_bucket(settings), found, holder, settings.lease_seconds):
            say(f"kept after all, since something used or replaced it meanwhile: {short(item.name)}")
    return 0


def _schema(options: argparse.Namespace, settings: Settings) -> int:
    from infra.nearest import did_you_mean
    from tasks.explain.formats import FORMATS, schema
    from tasks.models.catalogue import json_schema

    known = ("model", *FORMATS)
    if options.record not in known:
        hint = f"{did_you_mean(options.record, known)}there are {', '.join(known)}"
        raise UsageError(f"there is no record '{options.record}'", hint=hint)
    print_json(json_schema() if options.record == "model" else schema(options.record))
    return 0
