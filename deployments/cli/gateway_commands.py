"""Commands of the gateway: gateway, gateway-key."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from deployments.cli.command import Add, print_json, say

if TYPE_CHECKING:
    from infra.settings import Settings


def add_gateway_commands(add: Add) -> None:
    add("gateway", _gateway, "run the front of one or several targets until it is ended")

    sub = add("gateway-key", _gateway_key, "make an API key, and the entry for the gateway's file of keys", json=True)
    sub.add_argument("name", help="whose key it is; logs have this name")
    sub.add_argument("--model", action="append", default=[], help="a model that it may ask; all, if none is named")
    sub.add_argument("--requests", type=int, default=0, metavar="N", help="how many of its requests run at once")
    sub.add_argument("--tokens-per-minute", type=int, default=0, metavar="N")


def _gateway(options: argparse.Namespace, settings: Settings) -> int:
    import logging

    from deployments.gateway.serve import run_gateway

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    return run_gateway(settings)


def _gateway_key(options: argparse.Namespace, settings: Settings) -> int:
    from deployments.gateway.keys import entry_text, new_key

    secret, entry = new_key(options.name, tuple(options.model), options.requests, options.tokens_per_minute)
    if options.json:
        print_json({"key": secret, "entry": entry.model_dump(mode="json", exclude_defaults=True)})
        return 0
    print(secret)
    say("\nThis key is shown once. Its entry in the file of ENGINEHOUSE_GATEWAY_KEYS, below `keys:`\n")
    say(entry_text(entry))
    return 0
