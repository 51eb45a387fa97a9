"""Whether anything answers at the address of a Prefect API. Imports no Prefect, so that it costs milliseconds."""

from __future__ import annotations

import http.client
import ssl
import urllib.error
import urllib.request

PATIENCE_S = 10.0
"""A server that runs rebuilds on a busy machine takes seconds to say that it is up."""


def unreachable(api_url: str, patience_s: float = PATIENCE_S) -> str:
    """Why no Prefect works at `api_url`, in words; empty if one answers, whoever it lets in.

    `/ready` asks for no credential, and is refused with 503 while the server's database is away.
    """
    try:
        with urllib.request.urlopen(f"{api_url.rstrip('/')}/ready", timeout=patience_s):
            return ""
    except urllib.error.HTTPError as error:
        return f"it answers {error.code}" if error.code >= 500 else ""
    except urllib.error.URLError as error:
        # Prefect may have certificates of its own to trust, which only its client knows.
        return "" if isinstance(error.reason, ssl.SSLError) else str(error.reason)
    except TimeoutError:
        return f"nothing within {patience_s:g} s"
    except (OSError, ValueError, http.client.HTTPException) as error:
        return str(error) or type(error).__name__
