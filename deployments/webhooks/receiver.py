"""`enginehouse webhooks`: a small receiver of webhooks, which become fine-tuning events.

The signature of the raw body is checked before the body is parsed. Every event is in the store before it is sent to
Prefect, so the next reconcile finds an event that Prefect has missed. Every refusal has an HTTP status and a code. A
refused event is kept in the store too, if its sender was authentic.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID, uuid5

import httpx
from prefect.exceptions import PrefectHTTPStatusError
from pydantic import JsonValue
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from deployments.prefect_server.announce import send
from deployments.webhooks.punctual import ONE_REQUEST, REQUEST_SECONDS, punctual
from deployments.webhooks.senders import SENDERS, Delivery, Models, Sender
from infra.errors import EnginehouseError, EventRefused, SettingsError
from infra.s3.bucket import Bucket
from infra.settings import Settings
from tasks.finetuned.arrivals import Arrival, arrive, decide, refused
from tasks.finetuned.event import Event, changed_by
from tasks.finetuned.plain_json import parse
from tasks.finetuned.renamed import Renames
from tasks.models.catalogue import Catalogue, catalogue_files, load_catalogue
from tasks.models.published_catalogue import folder_of

if TYPE_CHECKING:
    import uvicorn

LARGEST_BODY = 256 * 1024  # bytes

_STATUS = {
    "event-large": 413,
    "event-malformed": 400,
    "event-overtaken": 409,
    "event-slow": 408,
    "sender-unknown": 404,
    "signature-invalid": 401,
    "signature-missing": 401,
    "timestamp-old": 401,
}
"""By the code of the error; 422 for an event that is well-formed and not accepted."""

_log = logging.getLogger("enginehouse.webhooks")


def run_webhooks(settings: Settings, host: str, port: int) -> int:
    """Serve until ended. Raises SettingsError if no sender has a secret, or a secret is not where the setting says."""
    import uvicorn

    receiver = Receiver(
        Bucket.at(settings.store), secrets(settings), WatchedCatalogue(partial(folder_of, settings)), send
    )
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    _log.info("receiving at http://%s:%d/ from: %s", host, port, ", ".join(receiver.secrets))
    uvicorn.Server(server_config(receiver, host, port)).run()
    return 0


def server_config(receiver: Receiver, host: str, port: int) -> uvicorn.Config:
    """How uvicorn serves the receiver."""
    import uvicorn

    return uvicorn.Config(
        receiver.application(),
        host=host,
        port=port,
        http=punctual(receiver.patience_s),
        ws="none",
        headers=ONE_REQUEST,
        log_level="warning",
        access_log=False,  # the Hub can be set up to put its secret into the address
        server_header=False,
    )


def secrets(settings: Settings) -> dict[str, bytes]:
    """The secret of each sender, read from the place that the setting names. Raises SettingsError."""
    found: dict[str, bytes] = {}
    for name, kind, where in settings.webhook_secrets:
        if name not in SENDERS:
            raise SettingsError(f"ENGINEHOUSE_WEBHOOK_SECRETS: there is no sender '{name}'", hint=", ".join(SENDERS))
        secret = os.environ.get(where, "") if kind == "env" else asyncio.run(_block(where))
        if not secret:
            place = "variable" if kind == "env" else "Prefect Secret block"
            raise SettingsError(
                f"the secret of '{name}' is not in the {place} {where}",
                hint="ENGINEHOUSE_WEBHOOK_SECRETS names where each secret is",
            )
        found[name] = secret.encode()
    if not found:
        raise SettingsError(
            "no sender has a secret",
            hint="ENGINEHOUSE_WEBHOOK_SECRETS='huggingface=env:VARIABLE mlflow=block:NAME' names where it is",
        )
    return found


async def _block(name: str) -> str:
    from prefect.blocks.system import Secret

    try:
        return str((await cast(Any, Secret).aload(name)).get())
    except ValueError:  # no such block
        return ""


@dataclass
class WatchedCatalogue:
    """A catalogue that is read again when a file has changed, or it has another folder."""

    folder: Callable[[], Path]
    _stamp: tuple[tuple[Path, int], ...] | None = None
    _read: Catalogue = field(default_factory=lambda: Catalogue({}, {}))

    def catalogue(self) -> Catalogue:
        """What the folder has now. Raises SpecError if there is no such folder."""
        folder = self.folder()
        if not folder.is_dir():
            return load_catalogue(folder)
        stamp = tuple((path, path.stat().st_mtime_ns) for path in catalogue_files(folder))
        if stamp != self._stamp:
            self._read, self._stamp = load_catalogue(folder), stamp
            for line in self._read.unread:
                _log.error("%s", _in_line(line))
        return self._read


@dataclass(frozen=True)
class Receiver:
    bucket: Bucket
    secrets: Mapping[str, bytes]
    models: WatchedCatalogue
    send: Callable[[UUID, Event], Awaitable[None]]
    patience_s: float = REQUEST_SECONDS

    def application(self) -> Starlette:
        return Starlette(routes=[Route("/{sender}", self._receive, methods=["POST"])])

    async def _receive(self, request: Request) -> JSONResponse:
        name = str(request.path_params["sender"])
        try:
            arrivals = await self._take(name, request)
        except EventRefused as error:
            _log.warning("refused from %s: %s", _in_line(name), _in_line(error))
            return _error(error, _STATUS.get(error.code, 422))
        except EnginehouseError as error:  # the store is away, or the catalogue has mistakes: the sender may retry
            _log.error("not accepted from %s: %s", _in_line(name), _in_line(error))
            return _error(error, 503)
        if arrivals and all(arrival.state == "refused" for arrival in arrivals):
            return JSONResponse(_summary(arrivals[0]), _STATUS.get(arrivals[0].code, 422))
        return JSONResponse({"events": [_summary(arrival) for arrival in arrivals]}, 202 if arrivals else 200)

    async def _take(self, name: str, request: Request) -> list[Arrival]:
        sender, secret = SENDERS.get(name), self.secrets.get(name)
        if sender is None or secret is None:
            raise EventRefused(f"no sender has the address /{name}", code="sender-unknown")
        delivery = Delivery(request.headers, await self._body(request), time.time())
        id = sender.identify(delivery, secret)
        taken = await asyncio.to_thread(self._note, sender, id, delivery.body)
        for arrival, event in taken:
            if event is not None:
                await self._announce(arrival, event)
        return [arrival for arrival, _ in taken]

    def _note(self, sender: Sender, id: UUID, body: bytes) -> list[tuple[Arrival, Event | None]]:
        """Every event of a delivery as the store has it now, and the event itself if Prefect is to receive it."""
        payload: dict[str, JsonValue] = {"text": body.decode(errors="replace")}
        catalogue = self.models.catalogue()
        models = catalogue.models
        try:
            document = parse(body)
            payload = document if isinstance(document, dict) else payload
            events = list(sender.events(document, models, Renames(self.bucket)))
        except EventRefused as error:
            return [(decide(self.bucket, refused(arrive(self.bucket, str(id), payload), error)), None)]
        for event in events:
            catalogue.require_readable(event.model)
        if not events:
            catalogue.require_whole()  # it may be for a model whose file cannot be read: the sender comes again
        return [self._noted(uuid5(id, event.model), event, models) for event in events]

    def _noted(self, id: UUID, event: Event, models: Models) -> tuple[Arrival, Event | None]:
        arrival = arrive(self.bucket, str(id), event.model_dump(mode="json", exclude_none=True))
        if arrival.state != "received":
            return arrival, None  # the same delivery again
        try:
            changed_by(event, models)
        except EventRefused as error:
            return decide(self.bucket, refused(arrival, error)), None
        return arrival, event

    async def _body(self, request: Request) -> bytes:
        body = b""
        try:
            async with asyncio.timeout(self.patience_s):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > LARGEST_BODY:
                        raise EventRefused(f"the body has more than {LARGEST_BODY // 1024} KiB", code="event-large")
        except TimeoutError as error:
            raise EventRefused(f"the body did not come within {self.patience_s:g} s", code="event-slow") from error
        except ClientDisconnect as error:
            raise EventRefused("the sender is gone", code="event-slow") from error
        return body

    async def _announce(self, arrival: Arrival, event: Event) -> None:
        try:
            await self.send(UUID(arrival.id), event)
        except (httpx.HTTPError, PrefectHTTPStatusError) as error:
            _log.error("Prefect did not take event %s, which waits for the next reconcile: %s", arrival.id, error)


def _in_line(text: object) -> str:
    """A text from outside as part of one line of the log: a line break in it would begin a line of its own."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in str(text))


def _summary(arrival: Arrival) -> dict[str, str]:
    shown = {"event": arrival.id, "state": arrival.state, "code": arrival.code, "message": arrival.reason}
    return {name: value for name, value in shown.items() if value}


def _error(error: EnginehouseError, status: int) -> JSONResponse:
    return JSONResponse({"code": error.code, "message": error.message, "hint": error.hint}, status)
