"""Commands about the machine that they run on: probe, node."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deployments.cli.command import Add, add_long, print_json, say
from infra.errors import UsageError

if TYPE_CHECKING:
    from infra.settings import Settings
    from infra.toolchains.toolchain import ToolchainReport


def add_machine_commands(add: Add) -> None:
    sub = add(
        "probe", _probe, "what this worker's toolchain holds; the store keeps it by the image's digest", json=True
    )
    sub.add_argument("--runtime", metavar="VERSION", help="of TensorRT-LLM, where ENGINEHOUSE_TOOLCHAIN is venv")
    add_long(sub)

    sub = add("node", _node, "run the agent beside a Triton until it is ended")
    sub.add_argument("--name", default="", help="by default this machine's name")
    sub.add_argument("--target", default="")


def _probe(options: argparse.Namespace, settings: Settings) -> int:
    from deployments.cli.columns import print_fitted
    from deployments.cli.people import short
    from infra.s3.bucket import Bucket
    from infra.toolchains.choose import toolchain
    from tasks.trtllm.images import image_key, keep_report
    from tasks.trtllm.tools.run import described

    if settings.toolchain == "venv" and not options.runtime:
        raise UsageError("the toolchain `venv` is one for each version", hint="name it: --runtime VERSION")
    report = toolchain(settings, options.runtime or "").report()
    if options.json:
        print_json(report.model_dump(mode="json"))
    else:
        print_fitted(_report_lines(report), long=options.long)
    if settings.store and keep_report(Bucket.at(settings.store), described(report)):
        key = image_key(report.container_digest)
        say(f"kept in the store as {key if options.long else short(key)}")
    return 0


def _report_lines(report: ToolchainReport) -> Iterator[str]:
    for name, version in report.by_name.items():
        yield f"{name:14} {version or 'not installed'}"
    yield f"{'image':14} {report.container_digest or 'of no known digest'}"
    yield f"{'free memory':14} {report.free_host_bytes / 2**30:.1f} GiB"
    yield f"{'driver':14} {report.gpus.driver or 'none'}"
    for gpu in report.gpus.gpus:
        memory = f"{gpu.free_bytes / 2**30:.1f} of {gpu.memory_bytes / 2**30:.1f} GiB free"
        yield f"{f'GPU {gpu.index}':14} {gpu.product} ({gpu.architecture}), {memory}"
    if report.gpus.problem:
        yield f"{'no GPU':14} {report.gpus.problem}"


def _node(options: argparse.Namespace, settings: Settings) -> int:
    import logging

    from deployments.node.agent import run_node

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    run_node(settings, os.environ, name=options.name, target=options.target)
    return 0
