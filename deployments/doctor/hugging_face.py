"""The Hugging Face hub: the token of this machine, and every repository that the catalogue names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import httpx2
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError

from deployments.doctor.check import Check, Finding, fine, not_made, wrong
from deployments.doctor.sources import readable, sources
from infra.errors import SourceUnavailable
from infra.settings import Settings
from tasks.models.source_uri import HubUri
from tasks.sources.resolved import Access


def _look(settings: Settings) -> Iterator[Finding]:
    return hub(settings, HfApi())


def hub(settings: Settings, api: HfApi) -> Iterator[Finding]:
    """What the hub of `api` lets this machine do."""
    found = sources(settings, HubUri)
    if not found:
        yield not_made("no model of this catalogue comes from a hub")
        return
    if get_token():
        yield _token(api)
    yield from readable(found, api.endpoint.rpartition("@")[2], Access(hub_endpoint=api.endpoint))


def _token(api: HfApi) -> Finding:
    try:
        who = cast("Mapping[str, str]", cast(Any, api).whoami())
        return fine(f"the token is that of {who['name']}")
    except HfHubHTTPError as error:
        if error.response.status_code not in (401, 403):
            raise SourceUnavailable(f"the hub answers {error.response.status_code}") from error
        return wrong("hub-token", "the hub does not know the token of this machine", "hf auth login")
    except (httpx2.HTTPError, OSError) as error:
        raise SourceUnavailable(
            f"the hub at {api.endpoint.rpartition('@')[2]} does not answer: {error}",
            hint="curl -sSI https://huggingface.co says why; a mirror belongs into HF_ENDPOINT",
        ) from error


CHECK = Check("hugging-face", "the hub's token, and the repositories that the catalogue names", _look, within_s=60)
