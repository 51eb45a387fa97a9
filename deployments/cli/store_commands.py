"""Commands that read and keep the store: lineage, why, verify, sign, pin, unpin, gc, schema. None needs Prefect."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from infra import settings
from infra.errors import ArtifactDamaged, SettingsError, UsageError
from infra.progress import Progress
from infra.s3.bucket import Bucket

Add = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]


def add_store_commands(add: Add) -> None:
    """Add the commands of this module with `add(name, command, help)`."""
    sub = add("lineage", _lineage, "what an artifact, a release or a public name was made from, and what uses it")
    _add_reference(sub)
    sub.add_argument("--format", choices=("tree", "mermaid", "json"), default="tree")

    sub = add("why", _why, "why a release, or an artifact, was made anew: what changed since the one before")
    _add_reference(sub)
    sub.add_argument("--against", metavar="REF", help="compare with this one instead")
    sub.add_argument("--json", action="store_true", help="print JSON")

    sub = add("verify", _verify, "every byte against its manifest, in the store or on a node's disk")
    _add_reference(sub)
    sub.add_argument("--node", type=Path, metavar="FOLDER", help="the folder of a node, .enginehouse/node")
    sub.add_argument("--json", action="store_true", help="print JSON")

    sub = add(
        "sign", _sign, "verify an artifact, or a release and its engine, and sign it with ENGINEHOUSE_SIGNING_KEY"
    )
    _add_reference(sub)

    sub = add("pin", _pin, "keep an artifact or a release from being collected")
    _add_reference(sub)
    sub.add_argument("--reason", default="")
    sub = add("unpin", _unpin, "let a pinned artifact or release be collected again")
    _add_reference(sub)

    sub = add("gc", _gc, "delete what nothing uses, and say what and why first")
    sub.add_argument("--dry-run", action="store_true", help="only say it")
    sub.add_argument("--grace", type=_days, metavar="DAYS", help="keep what is younger, or was used since; default 7")
    sub.add_argument("--json", action="store_true", help="print JSON")

    sub = add("schema", _schema, "the JSON schema of a record in the store; tasks/explain/formats.md describes them")
    sub.add_argument("record", help="manifest, identity, intent, result, current, node, lease, pin or use")


def _add_reference(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "reference", metavar="REF", help="KIND/MODEL/IDENTITY, an identity's beginning, MODEL@N, or MODEL"
    )
    parser.add_argument("--target", default="", help="the target of releases and public names")


def _days(text: str) -> float:
    days = float(text)
    if not 0 <= days < 36500:
        raise argparse.ArgumentTypeError("a number of days")
    return days


def _bucket() -> Bucket:
    return Bucket.at(settings.load().store)


def _find(options: argparse.Namespace, text: str = ""):
    from tasks.targets.references import find

    return find(_bucket(), text or options.reference, options.target or settings.load().target)


def _lineage(options: argparse.Namespace) -> int:
    from tasks.explain.lineage import lineage
    from tasks.explain.lineage_text import document, mermaid, tree

    found = lineage(_bucket(), _find(options))
    if options.format == "json":
        print(json.dumps(document(found), indent=1))
    elif options.format == "mermaid":
        print(mermaid(found), end="")
    else:
        for line in tree(found):
            print(line)
    return 0


def _why(options: argparse.Namespace) -> int:
    from tasks.explain.why import why
    from tasks.explain.why_text import document, lines

    against = None if options.against is None else _find(options, options.against)
    found = why(_bucket(), _find(options), against)
    if options.json:
        print(json.dumps(document(found), indent=1, ensure_ascii=False))
    else:
        for line in lines(found):
            print(line)
    return 0


def _verify(options: argparse.Namespace) -> int:
    from tasks.targets.verification import verify

    here = settings.load()
    with _progress("verify") as progress:
        verdicts = verify(_bucket(), _find(options), options.node, here.signing_public_key, progress)
    if options.json:
        print(json.dumps([verdict.document() for verdict in verdicts], indent=1))
    else:
        for verdict in verdicts:
            print(f"{verdict.artifact}  {verdict.files} files, {verdict.size} bytes: {verdict.word}")
    problems = [problem for verdict in verdicts for problem in verdict.problems]
    if problems:
        raise ArtifactDamaged("; ".join(problems), hint="run the rebuild again: what is damaged is then made anew")
    return 0


def _sign(options: argparse.Namespace) -> int:
    from tasks.targets.verification import sign

    here = settings.load()
    if not here.signing_key:
        raise SettingsError("there is no key to sign with", hint="set ENGINEHOUSE_SIGNING_KEY to a PEM file")
    with _progress("verify") as progress:
        for ref in sign(_bucket(), _find(options), here.signing_key, progress):
            print(ref)
    return 0


def _pin(options: argparse.Namespace) -> int:
    from tasks.garbage.keep import pin

    reference = _find(options)
    pin(_bucket(), reference, options.reason)
    print(reference)
    return 0


def _unpin(options: argparse.Namespace) -> int:
    from tasks.garbage.keep import unpin

    reference = _find(options)
    if not unpin(_bucket(), reference):
        raise UsageError(f"{reference} is not pinned", code="reference-unknown")
    print(reference)
    return 0


def _gc(options: argparse.Namespace) -> int:
    from tasks.garbage.collect import GRACE_DAYS, collect, survey, survey_lines

    grace = (GRACE_DAYS if options.grace is None else options.grace) * 86400
    found = survey(_bucket(), grace)
    if options.json:
        print(json.dumps({**found.document(), "dry_run": options.dry_run}, indent=1), flush=True)
    else:
        for line in survey_lines(found):
            print(line, flush=True)
    if not options.dry_run:
        holder = f"gc on {platform.node()}"
        for item in collect(_bucket(), found, holder, settings.load().lease_seconds):
            print(f"kept after all, since something used or replaced it meanwhile: {item.name}", file=sys.stderr)
    return 0


def _schema(options: argparse.Namespace) -> int:
    from tasks.explain.formats import FORMATS, schema

    if options.record not in FORMATS:
        raise UsageError(f"there is no record '{options.record}'", hint=f"there are {', '.join(FORMATS)}")
    print(json.dumps(schema(options.record), indent=1))
    return 0


@contextmanager
def _progress(label: str) -> Generator[Progress]:
    """A line that counts bytes on stderr, where a person watches."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    told = 0.0

    def show(done: int, total: int) -> None:
        nonlocal told
        if (now := time.monotonic()) - told > 0.1:
            told = now
            print(f"\r{label}: {done >> 20} of {total >> 20} MiB", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
