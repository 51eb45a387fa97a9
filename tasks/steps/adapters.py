"""What is known of an adapter by its `adapter_config.json`, as soon as it was fetched."""

from __future__ import annotations

import re

from tasks.lora.config import CONFIG, parse_config, trained_on
from tasks.models.source_uri import HubUri, parse_source
from tasks.steps.context import Context
from tasks.steps.plan import Plan
from tasks.store.artifact import Artifact


def check_adapter(context: Context, plan: Plan, snapshot: Artifact) -> None:
    """Check an adapter that requests choose, before an engine is built for it. Raises StepFailed `adapter-unfit`."""
    config = context.store.read(snapshot, CONFIG)
    plan.kind.check_adapter(parse_config(config))
    warn_of_other_base(context, config, plan.model.source.uri)


def warn_of_other_base(context: Context, config: bytes, source: str) -> None:
    """Say so if the adapter was trained on a model of the Hub that is not the one that `source` names there.

    No error: the same weights have many names there (a mirror, a copy in another precision, a GGUF). What has other
    matrices is refused when it is read.
    """
    uri, base = parse_source(source), trained_on(config) or ""
    is_name = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", base)
    if isinstance(uri, HubUri) and is_name and base.lower() != uri.repository.lower():
        context.reporter.say(
            f"warning: the adapter was trained on {base} and is added to {source}. "
            "If these are not the same weights, the result is worth nothing."
        )
