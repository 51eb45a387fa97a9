"""The keys that sign artifacts, and check them: whether they are keys, belong together, and are private."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from deployments.doctor.check import Check, Finding, fine, not_made, wrong
from infra.errors import SignatureRefused
from infra.settings import Settings
from tasks.store.signing import Sign, Statement, require_signed

_TRIED = Statement("doctor", {"doctor": hashlib.sha256(b"").hexdigest()})
"""A statement about no artifact: its signature is good for nothing."""


def _look(settings: Settings) -> Iterator[Finding]:
    private, public = settings.signing_key, settings.signing_public_key
    if not private and not public:
        yield not_made("ENGINEHOUSE_SIGNING_KEY and ENGINEHOUSE_SIGNING_PUBLIC_KEY are empty: nothing is signed here")
    for each in public.split():
        with suppress(SignatureRefused):  # no signature: only whether it is a key is asked
            require_signed(each, _TRIED, b"{}", what="nothing", sign="")
        yield fine(f"{each} is a public key")
    if not private:
        return
    signature = Sign(private)(_TRIED)
    if Path(private).stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        what = f"other users of this machine may read the private key {private}"
        yield wrong("signing-key-open", what, f"chmod 600 {private}")
    if public:
        try:
            require_signed(public, _TRIED, signature, what="what this machine signs", sign="")
        except SignatureRefused as error:
            yield wrong(
                error.code,
                f"no key of ENGINEHOUSE_SIGNING_PUBLIC_KEY is the other half of {private}: nodes with these keys "
                "refuse what is signed here",
                f"openssl ec -in {private} -pubout -out FILE, and name FILE in ENGINEHOUSE_SIGNING_PUBLIC_KEY too",
            )
            return
    yield fine(f"{private} signs")


CHECK = Check("signing-keys", "ENGINEHOUSE_SIGNING_KEY and ENGINEHOUSE_SIGNING_PUBLIC_KEY", _look, within_s=45)
