"""The command `enginehouse`. Data goes to stdout, everything else to stderr.

Exit codes: 0 done, 1 failed, 2 wrong use, 3 a gate refused. Prefect is imported only by commands that need it.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deployments.cli.store_commands import add_store_commands
from infra import settings
from infra.errors import EnginehouseError, StoreUnavailable, UsageError


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        settings.activate()
        return command(options)
    except EnginehouseError as error:
        _say(f"error: {error}")
        if error.hint:
            _say(f"\nhint: {error.hint}")
        return error.exit_code
    except KeyboardInterrupt:
        _say("interrupted")
        return 1
    except BrokenPipeError:
        # Whoever read our output left. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _up(options: argparse.Namespace) -> int:
    from deployments.stack import stack
    from infra.s3.bucket import Bucket
    from infra.s3.conditional_writes import require_conditional_writes

    here = settings.load()
    stack.up(here, _say)
    settings.activate()
    require_conditional_writes(Bucket.at(settings.load().store))
    _say(f"\nPrefect UI  {_prefect_ui()}")
    _say("next: enginehouse rebuild smollm2-135m")
    return 0


def _down(options: argparse.Namespace) -> int:
    from deployments.stack import stack

    stack.down(settings.load(), _say)
    return 0


def _status(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from deployments.stack import stack

    services = stack.status(settings.load())
    if options.json:
        print(json.dumps([asdict(service) for service in services], default=str, indent=1))
    else:
        for service in services:
            print(f"{service.name:18} {service.state:10} {service.pid or '-':>8}  {service.address:30} {service.log}")
    return 0 if all(service.state == "running" for service in services) else 1


def _env(options: argparse.Namespace) -> int:
    from deployments.stack import stack

    for name, value in stack.environment(settings.load()).items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


def _plan(options: argparse.Namespace) -> int:
    from deployments.cli.plan import document, lines, preview, with_image
    from infra.s3.bucket import Bucket
    from tasks.models.catalogue import catalogue_entry

    model = catalogue_entry(settings.load().catalogue, options.model)
    shown = preview(model, _overrides(options), options.runtime)
    if settings.load().store:
        try:
            shown = with_image(shown, Bucket.at(settings.load().store))
        except StoreUnavailable as error:
            _say(f"{error}: what an image holds is assumed")
    told = document(shown)
    if options.json:
        print(json.dumps(told, indent=1))
    else:
        for line in lines(told):
            print(line)
    return 0


def _assemble(options: argparse.Namespace) -> int:
    from deployments.cli.assemble import assemble_native, assemble_upstream
    from tasks.models.catalogue import catalogue_entry
    from tasks.models.overrides import override

    written = catalogue_entry(settings.load().catalogue, options.model)
    model = override(written, tensorrt_llm=options.runtime).model
    output = options.output.absolute()
    if options.layout == "native":
        if options.templates is not None:
            raise UsageError("--templates belongs to --layout upstream")
        assemble_native(model, options.engine, options.tokenizer, output)
        if not list(options.engine.glob("rank*.engine")):
            _say(f"no rank*.engine in {options.engine}: the KV cache is as large as if weights took no memory")
    else:
        if options.templates is None:
            raise UsageError("--layout upstream needs --templates", hint="a checkout, a folder or an archive of them")
        assemble_upstream(model, options.templates, options.engine, options.tokenizer, output)
    print(output)
    return 0


def _overrides(options: argparse.Namespace) -> dict[str, str]:
    overrides: dict[str, str] = {}
    for item in options.recipe:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise UsageError(f"'{item}' is not key=value", hint="for example --recipe quantization=q4_0")
        overrides[key] = value
    return overrides


def _rebuild(options: argparse.Namespace) -> int:
    from deployments.cli.run import run_rebuild

    overrides = _overrides(options)
    _need_prefect()
    return run_rebuild(
        options.model,
        overrides,
        options.refresh,
        tuple(options.target),
        recreate=options.recreate,
        runtime=options.runtime or "",
        until=options.until,
        watch=options.watch,
        as_json=options.json,
    )


def _rollback(options: argparse.Namespace) -> int:
    from deployments.cli.run import run_rollback

    _need_prefect()
    return run_rollback(options.model, options.to, options.target, as_json=options.json)


def _deploy(options: argparse.Namespace) -> int:
    _need_prefect()
    from deployments.cli.deploy import run_deploy

    return run_deploy(settings.load(), dry_run=options.dry_run, as_json=options.json)


def _watch(options: argparse.Namespace) -> int:
    _need_prefect()
    from deployments.cli.watch import run_watch

    return run_watch(dry_run=options.dry_run, retry=options.retry, as_json=options.json)


def _finetuned(options: argparse.Namespace) -> int:
    _need_prefect()
    from deployments.cli.finetuned import run_finetuned

    return run_finetuned(
        settings.load(), options.model, options.source, options.revision, _overrides(options), as_json=options.json
    )


def _webhooks(options: argparse.Namespace) -> int:
    _need_prefect()
    from deployments.webhooks.receiver import run_webhooks

    return run_webhooks(settings.load(), options.host, options.port)


def _ask(options: argparse.Namespace) -> int:
    from infra.triton.client import TritonClient

    here = settings.load()
    if not here.triton_http:
        raise UsageError("no Triton is known", hint="run `enginehouse up`, or set ENGINEHOUSE_TRITON_HTTP")
    client = TritonClient(here.triton_http)
    request: dict[str, Any] = {"text_input": options.text, "max_tokens": options.max_tokens}
    if options.seed is not None:
        request["seed"] = options.seed
    if options.stream:
        for piece in client.generate_stream(options.model, {**request, "stream": True}):
            print(piece.text, end="", flush=True)
        print()
    else:
        print(client.generate(options.model, request).text)
    return 0


def _releases(options: argparse.Namespace) -> int:
    from infra.s3.bucket import Bucket
    from tasks.explain.releases import release_lines, releases
    from tasks.targets.target import Target

    here = settings.load()
    found = releases(Target(Bucket.at(here.store), options.target or here.target), options.model)
    if options.json:
        print(json.dumps(found.document(), indent=1))
    else:
        for line in release_lines(found):
            print(line)
    return 0


def _probe(options: argparse.Namespace) -> int:

    from deployments.cli.probe import report_lines
    from infra.s3.bucket import Bucket
    from infra.toolchains.choose import toolchain
    from tasks.trtllm.images import image_key, keep_report
    from tasks.trtllm.tools.run import described

    here = settings.load()
    if here.toolchain == "venv" and not options.runtime:
        raise UsageError("the toolchain `venv` is one for each version", hint="name it: --runtime VERSION")
    report = toolchain(here, options.runtime or "").report()
    if options.json:
        print(report.model_dump_json(indent=1))
    else:
        for line in report_lines(report):
            print(line)
    if here.store and keep_report(Bucket.at(here.store), described(report)):
        _say(f"kept in the store as {image_key(report.container_digest)}")
    return 0


def _node(options: argparse.Namespace) -> int:
    import logging

    from deployments.node.agent import run_node

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    run_node(settings.load(), os.environ, name=options.name, target=options.target)
    return 0


def _prefect_ui() -> str:
    return os.environ.get("PREFECT_API_URL", "").removesuffix("/api")


def _need_prefect() -> None:
    if not os.environ.get("PREFECT_API_URL"):
        raise UsageError(
            "no Prefect server is known",
            hint="run `enginehouse up`, or set PREFECT_API_URL",
            code="prefect-missing",
        )
    # What Prefect keeps on this machine stays with the stack, apart from the profile of whoever calls.
    os.environ.setdefault("PREFECT_HOME", str(settings.load().home / "prefect"))
    os.environ.setdefault("DO_NOT_TRACK", "1")
    # The automation `lost-runs` takes a run of this process for dead that beats less often.
    os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", str(settings.load().heartbeat_seconds))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="enginehouse", description="Keeps a fleet of language models on Triton built, released and explained."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        return sub

    add("up", _up, "start the embedded stack, or whatever of it is missing")
    add("down", _down, "stop the embedded stack; its data stays")
    sub = add("status", _status, "what of the embedded stack runs, and where")
    sub.add_argument("--json", action="store_true", help="print JSON")
    add("env", _env, "print the variables with which other clients reach the stack, as export lines")

    sub = add("plan", _plan, "what a rebuild would run; needs no GPU, network or TensorRT-LLM")
    _add_model(sub)
    sub.add_argument("--json", action="store_true", help="print JSON")

    sub = add("assemble", _assemble, "a Triton repository for an engine on this disk; needs no server and no store")
    sub.add_argument("model", help="name in the catalogue")
    sub.add_argument(
        "--layout", choices=("native", "upstream"), default="native", help="upstream: NVIDIA's own five models"
    )
    sub.add_argument("--templates", type=Path, help="for upstream: a checkout, a folder such as /app, or an archive")
    sub.add_argument("--engine", type=Path, required=True, metavar="DIR", help="what trtllm-build wrote")
    sub.add_argument("--tokenizer", type=Path, required=True, metavar="DIR")
    sub.add_argument("--runtime", required=True, metavar="VERSION", help="of TensorRT-LLM")
    sub.add_argument("--output", type=Path, required=True, metavar="DIR", help="must not exist yet")

    sub = add("rebuild", _rebuild, "bring a model from its source to its public name")
    _add_model(sub)
    sub.add_argument(
        "--until", choices=("upload",), default="promote", help="build into the store, and roll nothing out"
    )
    sub.add_argument(
        "--refresh",
        choices=("fetch", "convert", "build", "assemble"),
        default="nothing",
        help="run this step and all after it anew",
    )
    sub.add_argument("--target", action="append", default=[], help="roll out to this target; may be repeated")
    sub.add_argument(
        "--recreate",
        action="store_true",
        help="where memory is short, unload the live release before the new one loads",
    )
    sub.add_argument("--watch", action="store_true", help="show the run's log while it runs")
    sub.add_argument("--json", action="store_true", help="print JSON")

    sub = add("ask", _ask, "ask a served model by its public name")
    sub.add_argument("model")
    sub.add_argument("text")
    sub.add_argument("--stream", action="store_true", help="print the answer as it comes")
    sub.add_argument("--max-tokens", type=int, default=100)
    sub.add_argument("--seed", type=int)

    sub = add("releases", _releases, "releases of a model, what is live, and what the gates said")
    sub.add_argument("model")
    sub.add_argument("--target", default="")
    sub.add_argument("--json", action="store_true", help="print JSON")

    sub = add("rollback", _rollback, "give the public name back to an earlier release")
    sub.add_argument("model")
    sub.add_argument("--to", type=int, metavar="N", help="number of the release; by default the previous one")
    sub.add_argument("--target", default=None)
    sub.add_argument("--json", action="store_true", help="print JSON")

    sub = add("probe", _probe, "what this worker's toolchain holds; the store keeps it by the image's digest")
    sub.add_argument("--runtime", metavar="VERSION", help="of TensorRT-LLM, where ENGINEHOUSE_TOOLCHAIN is venv")
    sub.add_argument("--json", action="store_true", help="print JSON")
    add_store_commands(add)
    sub = add("deploy", _deploy, "make a Prefect server have the pools, deployments and automations that are wanted")
    sub.add_argument("--dry-run", action="store_true", help="print the difference, and change nothing")
    sub.add_argument("--json", action="store_true", help="print JSON")

    sub = add("watch", _watch, "look for new versions of TensorRT-LLM once, and rebuild what takes them")
    sub.add_argument("--dry-run", action="store_true", help="print what would be rebuilt, and start nothing")
    sub.add_argument("--retry", action="append", default=[], metavar="MODEL", help="try again one whose rebuild failed")
    sub.add_argument("--json", action="store_true", help="print JSON")

    sub = add("finetuned", _finetuned, "announce new weights of a model, which is then rebuilt with them")
    sub.add_argument("model", help="name in the catalogue")
    weights = sub.add_mutually_exclusive_group(required=True)
    weights.add_argument("--source", metavar="URI", help="hf:// or s3://, as the model's file accepts it")
    weights.add_argument("--revision", help="branch, tag or commit of the model's own repository")
    sub.add_argument(
        "--recipe", action="append", default=[], metavar="KEY=VALUE", help="override a field of the recipe"
    )
    sub.add_argument("--json", action="store_true", help="print JSON")

    sub = add("webhooks", _webhooks, "receive webhooks of Hugging Face, MLflow and others as such announcements")
    sub.add_argument("--host", default="127.0.0.1", help="where to listen; a proxy with TLS belongs before any other")
    sub.add_argument("--port", type=int, default=8310)

    sub = add("node", _node, "run the agent beside a Triton until it is ended")
    sub.add_argument("--name", default="", help="by default this machine's name")
    sub.add_argument("--target", default="")
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="name in the catalogue")
    parser.add_argument(
        "--recipe", action="append", default=[], metavar="KEY=VALUE", help="override a field of the recipe"
    )
    parser.add_argument("--runtime", metavar="VERSION", help="build with this version of TensorRT-LLM")


if __name__ == "__main__":
    sys.exit(main())
