"""Licences by the names of SPDX, where they have one. `packaging` knows the list."""

from __future__ import annotations

import re

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

_ONE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")


def spdx(licence: str) -> str:
    """The SPDX identifier of a licence as the hub names it: `Apache-2.0` of `apache-2.0`. Empty if there is none."""
    if not _ONE.fullmatch(licence):
        return ""
    try:
        found = canonicalize_license_expression(licence)
    except InvalidLicenseExpression:
        return ""
    return "" if found.startswith("LicenseRef-") else str(found)
