"""Prefect's server for this machine alone: `python -m deployments.stack.prefect_on_loopback PORT`.

It is what `prefect server start` runs, behind a check of the name by which it is called. Prefect has none, and a page
of a browser whose own name leads to 127.0.0.1 would be of the same origin (DNS rebinding). The credential and the
origins are Prefect's own settings.
"""

from __future__ import annotations

import sys

import uvicorn
from prefect.server.api.server import create_app
from starlette.middleware.trustedhost import TrustedHostMiddleware


def serve(port: int) -> None:
    application = TrustedHostMiddleware(create_app(final=True), ["127.0.0.1", "localhost"])
    uvicorn.run(application, host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    serve(int(sys.argv[1]))
