"""Commands that look at one model: plan, assemble, ask, releases. None needs Prefect."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from deployments.cli.command import Add, add_long, add_recipe, print_json, say
from infra.errors import UsageError

if TYPE_CHECKING:
    from infra.settings import Settings


def add_model_commands(add: Add) -> None:
    sub = add("plan", _plan, "what a rebuild would do; needs no GPU and no TensorRT-LLM", json=True)
    add_recipe(sub, all_models=True)
    sub.add_argument("--runtime", metavar="VERSION", help="build with this version of TensorRT-LLM")
    sub.add_argument("--target", action="append", default=[], help="roll out to this target; may be repeated")
    sub.add_argument("--offline", action="store_true", help="ask neither the source what its weights are nor an index")

    sub = add(
        "assemble", _assemble, "a Triton repository for an engine on this disk; needs no server and no store", json=True
    )
    sub.add_argument("model", help="name in the catalogue")
    sub.add_argument(
        "--layout", choices=("native", "upstream"), default="native", help="upstream: NVIDIA's own five models"
    )
    sub.add_argument("--templates", type=Path, help="for upstream: a checkout, a folder such as /app, or an archive")
    sub.add_argument("--engine", type=Path, required=True, metavar="DIR", help="what trtllm-build wrote")
    sub.add_argument("--tokenizer", type=Path, required=True, metavar="DIR")
    sub.add_argument("--runtime", required=True, metavar="VERSION", help="of TensorRT-LLM")
    sub.add_argument("--output", type=Path, required=True, metavar="DIR", help="must not exist yet")

    sub = add("ask", _ask, "ask a served model by its public name", json=True)
    sub.add_argument("model")
    sub.add_argument("text")
    sub.add_argument("--stream", action="store_true", help="print the answer as it comes; with --json, a line a piece")
    sub.add_argument("--max-tokens", type=int, default=100)
    sub.add_argument("--seed", type=int)

    sub = add("releases", _releases, "releases of a model, which of them is live, and the gates' verdicts", json=True)
    sub.add_argument("model")
    sub.add_argument("--target", default="")
    add_long(sub)


def _plan(options: argparse.Namespace, settings: Settings) -> int:
    from deployments.cli.plan_run import plan_fleet, plan_model

    if options.model is None:
        return plan_fleet(options, settings)
    return plan_model(options, settings)


def _assemble(options: argparse.Namespace, settings: Settings) -> int:
    from deployments.cli.assemble import assemble_native, assemble_upstream
    from tasks.models.catalogue import catalogue_entry
    from tasks.models.overrides import override

    written = catalogue_entry(settings.catalogue, options.model)
    model = override(written, tensorrt_llm=options.runtime).model
    output = options.output.absolute()
    if options.layout == "native":
        if options.templates is not None:
            raise UsageError("--templates belongs to --layout upstream")
        assemble_native(model, options.engine, options.tokenizer, output)
        if not list(options.engine.glob("rank*.engine")):
            say(f"no rank*.engine in {options.engine}: the KV cache is as large as if weights took no memory")
    else:
        if options.templates is None:
            raise UsageError("--layout upstream needs --templates", hint="a checkout, a folder or an archive of them")
        assemble_upstream(model, options.templates, options.engine, options.tokenizer, output)
    if options.json:
        print_json({"model": model.name, "repository": output, "layout": options.layout})
    else:
        print(output)
    return 0


def _ask(options: argparse.Namespace, settings: Settings) -> int:
    from infra.triton.client import TritonClient

    if not settings.triton_http:
        raise UsageError("no Triton is known", hint="run `enginehouse up`, or set ENGINEHOUSE_TRITON_HTTP")
    client = TritonClient(settings.triton_http)
    request: dict[str, str | int] = {"text_input": options.text, "max_tokens": options.max_tokens}
    if options.seed is not None:
        request["seed"] = options.seed
    if not options.stream:
        answer = client.generate(options.model, request)
        if options.json:
            print_json({"model": options.model, "text": answer.text, "seconds": round(answer.seconds, 3)})
        else:
            print(answer.text)
        return 0
    for piece in client.generate_stream(options.model, {**request, "stream": True}):
        if options.json:
            told = {"model": options.model, "text": piece.text, "seconds": round(piece.seconds, 3)}
            print(json.dumps(told), flush=True)
        else:
            print(piece.text, end="", flush=True)
    if not options.json:
        print()
    return 0


def _releases(options: argparse.Namespace, settings: Settings) -> int:
    from deployments.cli.columns import Style, print_fitted
    from infra.s3.bucket import Bucket
    from tasks.explain.releases import HEADS, release_lines, releases
    from tasks.targets.target import Target

    found = releases(Target(Bucket.at(settings.store), options.target or settings.target), options.model)
    if options.json:
        print_json(found.document())
    else:
        print(Style.of_stdout().paint(HEADS, "bold"))
        print_fitted(release_lines(found), long=options.long)
    return 0
