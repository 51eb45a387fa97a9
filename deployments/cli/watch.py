"""`enginehouse watch`: the flow `watch_releases` once, in this process."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict

from deployments.cli.run import quiet
from flows.ui import watch_lines
from flows.watch_releases import watch_releases


def run_watch(*, dry_run: bool, retry: list[str], as_json: bool) -> int:
    """Print what was found and started. Returns the exit code."""
    quiet()
    watched = asyncio.run(watch_releases(dry_run, retry))
    if as_json:
        print(json.dumps(asdict(watched), indent=1))
        return 0
    for line in watch_lines(watched.rows):
        have = f"{line['has now']} → {line['version']}" if line["has now"] else "-"
        print(f"{have:22} {line['verdict']:27} {line['models']:4}  {line['names']}\n{'':22} {line['reason']}")
    if not watched.rows:
        print("no model follows TensorRT-LLM: say `updates: {policy: stable}` in the file of one that shall")
    what = "would start" if dry_run else "started"
    print(f"rebuilds {what}: {', '.join(start.model for start in watched.starts) or 'none'}", file=sys.stderr)
    return 0
