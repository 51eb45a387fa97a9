"""Servers that answer in JSON over HTTP, and give files by range.

Nothing of a request is logged: headers hold keys, and an address may be signed. For the same reason errors name a
server and never a whole address, and a request with a key follows no redirect to another server. The standard library's
client does just that; `httpx2` writes every address into the log.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast
from urllib.parse import urlencode, urlsplit

from pydantic import BaseModel, JsonValue, ValidationError

from infra.errors import SourceError, SourceUnavailable
from tasks.sources.download import CHUNK_BYTES

TIMEOUT_S = 30.0
"""Of each wait for the server: a transfer may take hours, and never stands still for longer."""

LARGEST_ANSWER_BYTES = 64 * 2**20
"""A list of 100,000 files has half."""


Form = TypeVar("Form", bound=BaseModel)


class HttpRefused(Exception):
    """The server answered with this status, which the caller knows how to read."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def get_json(address: str, headers: Mapping[str, str], **query: str | int | Sequence[str]) -> Mapping[str, Any]:
    """The JSON object at `address`. Raises HttpRefused, SourceUnavailable, and SourceError `source-mirror` for what is
    no JSON object."""
    return _object(f"{address}?{urlencode(query, doseq=True)}" if query else address, headers)


def post_json(address: str, headers: Mapping[str, str], document: Mapping[str, JsonValue]) -> Mapping[str, Any]:
    """Send a JSON object to `address`, and return the one that answers. Raises as `get_json` does."""
    return _object(address, {"Content-Type": "application/json", **headers}, json.dumps(document).encode())


def _object(url: str, headers: Mapping[str, str], body: bytes | None = None) -> Mapping[str, Any]:
    with _answer(url, {"Accept": "application/json", **headers}, body) as answer:
        answered = answer.read(LARGEST_ANSWER_BYTES + 1)
    try:
        document: JsonValue = json.loads(answered) if len(answered) <= LARGEST_ANSWER_BYTES else None
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise not_understood(url, "answers with something else than a JSON object")
    return document


def read_from(url: str, start: int, headers: Mapping[str, str]) -> Iterator[bytes]:
    """The bytes of a file from the offset `start` on. They may end early. Raises HttpRefused and SourceUnavailable."""
    ranged = {**headers, "Range": f"bytes={start}-"} if start else headers
    with _answer(url, ranged) as answer:
        skipped = 0 if answer.status == http.client.PARTIAL_CONTENT else start  # the server gives whole files alone
        while skipped and (chunk := answer.read(min(skipped, CHUNK_BYTES))):
            skipped -= len(chunk)
        while chunk := answer.read(CHUNK_BYTES):
            yield chunk


def read_as(form: type[Form], document: Mapping[str, Any], address: str, what: str) -> Form:
    """The document as the interface of `what` has it. Raises SourceError `source-mirror`, which names wrong fields."""
    try:
        return form.model_validate(document)
    except ValidationError as error:
        wrong = ", ".join(".".join(map(str, each["loc"])) for each in error.errors(include_input=False))
        raise not_understood(address, f"does not answer as {what} does: {wrong}") from None


def not_understood(address: str, what: str) -> SourceError:
    """The error for a server that answers, and not as its interface says."""
    return SourceError(
        f"{server_of(address)} {what}", code="source-mirror", hint="Is it the server that the variable should name?"
    )


def server_of(address: str) -> str:
    """The server in an address, without the password or signature that may stand in it."""
    return urlsplit(address).netloc.rpartition("@")[2]


class _SameServer(urllib.request.HTTPRedirectHandler):
    """Makes a redirect to another server the answer itself."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(newurl)[:2] != urlsplit(req.full_url)[:2]:
            return None
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(*handlers: type[urllib.request.BaseHandler]) -> Callable[..., http.client.HTTPResponse]:
    """Opens http:// and https:// alone: an address that a server gave may be one of this machine's files."""
    director = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        *handlers,
    ):
        director.add_handler(handler())
    return cast(Any, director.open)


_open_with_key = _opener(_SameServer)
_open_without_key = _opener(urllib.request.HTTPRedirectHandler)


@contextmanager
def _answer(url: str, headers: Mapping[str, str], body: bytes | None = None) -> Generator[http.client.HTTPResponse]:
    opens = _open_with_key if "Authorization" in headers else _open_without_key
    try:
        with opens(urllib.request.Request(url, body, headers=dict(headers)), timeout=TIMEOUT_S) as answer:
            yield answer
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (301, 302, 303, 307, 308):
            raise SourceError(
                f"{server_of(url)} sends on to {server_of(error.headers.get('Location', ''))!r}, and the key is only "
                "for itself",
                code="source-redirect",
                hint="Name that server in the variable, if it is the right one.",
            ) from None
        if error.code == 429 or error.code >= 500:
            raise SourceUnavailable(f"{server_of(url)} answered {error.code}", hint="Try again later.") from None
        raise HttpRefused(error.code) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or type(error).__name__  # never the text: it may hold the address
        raise SourceUnavailable(
            f"{server_of(url)} did not deliver: {reason}", hint="Is the server reachable?"
        ) from None
