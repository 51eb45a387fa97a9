"""Commands of a model's life: new, diff, rename, retire. None needs Prefect."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from deployments.cli.command import Add, print_json, say
from infra.errors import UsageError

if TYPE_CHECKING:
    from infra.settings import Settings
    from tasks.steps.retire import Retired
    from tasks.targets.target import Target


def add_life_commands(add: Add) -> None:
    sub = add("new", _new, "write a model's file from what a repository of the hub says of its weights", json=True)
    sub.add_argument("address", metavar="hf://ORG/REPO[@REVISION]")
    sub.add_argument("--gpu", default="", help="the GPU to serve it on, as nvidia-smi calls it; without, on the CPU")
    sub.add_argument("--name", default="", help="by default the repository's, in small letters")
    sub.add_argument("--target", default="", help="where it is served; by default the target of this machine")

    sub = add("diff", _diff, "what the next rebuild of a model would change against its live release", json=True)
    sub.add_argument("model", help="name in the catalogue")
    sub.add_argument("--target", default="", help="by default that of this machine")

    sub = add(
        "rename",
        _rename,
        "give a model another name: its file is renamed, the new name answers with the live release, then the old one "
        "is retired; nothing is built",
        json=True,
    )
    sub.add_argument("model", help="its name until now")
    sub.add_argument("name", help="its new name; a file that was renamed by hand is taken as it is")
    sub.add_argument("--yes", action="store_true", help="do not ask first")

    sub = add("retire", _retire, "take a model's public name away, then what nodes hold of it; records stay", json=True)
    sub.add_argument("model")
    sub.add_argument("--target", action="append", default=[], help="only there; may be repeated. By default everywhere")
    sub.add_argument("--reason", default="", help="why; `enginehouse history` tells it")
    sub.add_argument("--yes", action="store_true", help="do not ask first")


def _new(options: argparse.Namespace, settings: Settings) -> int:
    from deployments.cli.new import new_model
    from infra.images import images
    from tasks.sources.resolved import Access

    path, proposal = new_model(
        settings.catalogue,
        options.address,
        name=options.name,
        gpu=options.gpu,
        target=options.target or settings.target,
        versions=[version for version in images(settings.images) if not version.is_prerelease],
        access=Access(),
    )
    if options.json:
        licence = proposal.weights.licence or None
        print_json({"model": proposal.model.name, "file": path, "kind": proposal.model.kind, "licence": licence})
        return 0
    print(path)
    licence = proposal.weights.licence or "unknown: its model card names none"
    say(f"kind {proposal.model.kind}; licence {licence}")
    say(f"\nhint: read it, then `enginehouse plan {proposal.model.name}`")
    return 0


def _diff(options: argparse.Namespace, settings: Settings) -> int:
    from deployments.cli.columns import print_fitted
    from deployments.cli.diff_text import diff_lines
    from infra.s3.bucket import Bucket
    from tasks.explain.upcoming import upcoming
    from tasks.models.catalogue import catalogue_entry
    from tasks.sources.resolved import Access
    from tasks.targets.target import Target

    entry = catalogue_entry(settings.catalogue, options.model)
    bucket = Bucket.at(settings.store)
    access = Access(s3=bucket.client, mlflow=settings.mlflow)
    found = upcoming(Target(bucket, options.target or settings.target), entry, access)
    if options.json:
        print_json(found.document())
    else:
        print_fitted(diff_lines(found))
    return 0


def _retire(options: argparse.Namespace, settings: Settings) -> int:
    from deployments.cli.columns import print_fitted
    from infra.s3.bucket import Bucket
    from tasks.steps.retire import alone, places, retire

    bucket = Bucket.at(settings.store)
    found = places(bucket, options.model, options.target)
    if not options.yes:
        _ask(f"take {options.model} away there", options.model, found)
    names = [target.name for target in found]
    with alone(bucket, options.model, names, f"retire on {platform.node()}", settings.lease_seconds, say):
        done = retire(bucket, options.model, names, reason=options.reason, say=say)
    if options.json:
        targets = [
            {"target": each.target, "first": each.first, **each.retirement.model_dump(mode="json")} for each in done
        ]
        print_json({"model": options.model, "targets": targets})
        return 0
    print_fitted(_lines(options.model, done))
    if (path := _file(options.model, settings)) is not None:
        say(f"\nhint: {path} is still there: a rebuild by hand brings {options.model} back, nothing else does")
    return 0


def _rename(options: argparse.Namespace, settings: Settings) -> int:
    from dataclasses import asdict

    from deployments.cli.columns import print_fitted
    from deployments.cli.rename import rename
    from infra.s3.bucket import Bucket
    from tasks.models.renaming import renamed_file
    from tasks.steps.retire import released_on
    from tasks.targets.target import targets

    if options.model == options.name:
        raise UsageError(f"that is the name of {options.model}", hint="give it another one")
    file = renamed_file(settings.catalogue, options.model, options.name)
    bucket = Bucket.at(settings.store)
    found = released_on(targets(bucket), options.model)
    if not options.yes:
        _ask(f"rename {options.model} to {options.name}", options.model, found)
    adopted = rename(settings, file, options.model, options.name, [target.name for target in found], say)
    if options.json:
        print_json({"model": options.name, "former": options.model, "targets": [asdict(each) for each in adopted]})
        return 0
    print_fitted(
        f"{options.name} answers on '{each.target}' with release {each.release}, which was {options.model}@"
        f"{each.former}; {options.model} is retired"
        for each in adopted
    )
    print_fitted([f"its file is {file.path}"])
    say("\nhint: bring the file to the workers; keys and clients that name the model are to name the new one")
    return 0


def _ask(what: str, model: str, found: Sequence[Target]) -> None:
    """Have a person say yes. Raises UsageError `not-confirmed` where nobody does."""
    public = {target.name: target.current(model)[0].public for target in found}
    for name, release in public.items():
        say(f"{name}: " + ("no release is public" if release is None else f"clients are answered by release {release}"))
    if not sys.stdin.isatty():
        raise UsageError(f"nobody was asked whether to {what}", hint="say --yes", code="not-confirmed")
    print(f"{what}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError(f"{model} stays as it is", code="not-confirmed")


def _lines(model: str, done: Sequence[Retired]) -> Iterator[str]:
    for each in done:
        of = each.retirement
        was = "no release was public" if of.release is None else f"release {of.release} was public"
        told = was if each.first else f"by {of.by} at {of.created:%Y-%m-%d %H:%M}, {was}"
        yield f"{model} is retired on '{each.target}': {told}; no live node holds it"


def _file(model: str, settings: Settings) -> str | None:
    paths = (settings.catalogue / f"{model}{suffix}" for suffix in (".yaml", ".yml"))
    return next((str(path) for path in paths if path.is_file()), None)
