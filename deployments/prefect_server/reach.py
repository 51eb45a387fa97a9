"""Whether anything answers at the address of a Prefect API. Imports no Prefect, so that it costs milliseconds."""

from __future__ import annotations

import http.client
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass

PATIENCE_S = 10.0
"""A server that runs rebuilds on a busy machine takes seconds to say that it is up."""


_DATABASE_AWAY = 503


@dataclass(frozen=True)
class Trouble:
    """Why no Prefect works at an address, in words. `busy`: something took the request, and may answer later."""

    why: str
    busy: bool = False


def trouble(api_url: str, patience_s: float = PATIENCE_S) -> Trouble | None:
    """What is wrong at `api_url`; None if a server answers, whoever it lets in.

    `/ready` asks for no credential, and is refused with 503 while the server's database is away.
    """
    try:
        with urllib.request.urlopen(f"{api_url.rstrip('/')}/ready", timeout=patience_s):
            return None
    except urllib.error.HTTPError as error:
        return Trouble(f"it answers {error.code}", busy=error.code == _DATABASE_AWAY) if error.code >= 500 else None
    except urllib.error.URLError as error:
        # Prefect may have certificates of its own to trust, which only its client knows.
        return None if isinstance(error.reason, ssl.SSLError) else Trouble(str(error.reason))
    except TimeoutError:
        return Trouble(f"nothing within {patience_s:g} s", busy=True)
    except (OSError, ValueError, http.client.HTTPException) as error:
        return Trouble(str(error) or type(error).__name__)
