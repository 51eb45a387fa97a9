"""The gateway's HTTP application: routes of protocols, and what a machine asks about the gateway itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydantic import JsonValue
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from deployments.gateway.front import Front


def application(front: Front, routes: Iterable[BaseRoute], names: Sequence[str] = ()) -> Starlette:
    """The application of these protocols' routes, such as `triton_routes`, which need a key where keys are required.

    With `names` it answers only who calls it by one of them: a page of a browser whose own name leads to this machine
    would be of the same origin (DNS rebinding).
    """
    about = _About(front)
    return Starlette(
        routes=[
            Route("/health", about.alive, methods=["GET"]),
            Route("/ready", about.ready, methods=["GET"]),
            Route("/metrics", about.metrics, methods=["GET"]),
            Route("/v2/health/live", about.alive, methods=["GET"]),
            Route("/v2/health/ready", about.triton_ready, methods=["GET"]),
            *routes,
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=names)] if names else (),
        exception_handlers={404: _no_such_path, 405: _no_such_path},
    )


class _About:
    """What everybody may ask: it names models, and nothing that they were asked."""

    def __init__(self, front: Front) -> None:
        self._front = front

    async def alive(self, request: Request) -> Response:
        return Response(status_code=200)

    async def ready(self, request: Request) -> Response:
        """200 if clients should come here. One model that answers nowhere does not take it from the others.

        Why the store cannot be read is in the log: the words name where it is. Models are named where everybody may
        ask them.
        """
        known, ready = self._front.known, self._front.ready
        document: dict[str, JsonValue] = {"ready": ready, "store": bool(known.reading) and not known.error}
        if not self._front.keys_required:
            found = known.models if known.reading else {}
            document["nodes_by_model"] = {model: len(places.nodes) for model, places in found.items()}
        return JSONResponse(document, 200 if ready else 503)

    async def triton_ready(self, request: Request) -> Response:
        """The same as Triton says it, whose clients look for 200."""
        return Response(status_code=200 if self._front.ready else 400)

    async def metrics(self, request: Request) -> Response:
        return Response(self._front.figures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _no_such_path(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    return JSONResponse({"error": f"{request.method} of this path is not served", "code": "path-unknown"}, status)
