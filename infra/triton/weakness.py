"""What is known to be wrong with an old Triton, and cannot be mended from outside."""

from __future__ import annotations

import os
import re

from infra.triton.wheel import SAME_IMAGE

SAFE = (25, 7)
"""NVIDIA's bulletin on CVE-2025-23310: releases before 25.07 put an entry on the stack for each chunk of a body."""


def triton_release(*, of_image: bool) -> str:
    """The release of NVIDIA's image that this machine's Triton is from, such as 25.08; empty if nobody knows."""
    return os.environ.get("NVIDIA_TRITON_SERVER_VERSION", "") if of_image else SAME_IMAGE


def weakness(release: str) -> str:
    """What who runs a Triton of this release must know, as a sentence; empty if there is nothing."""
    found = re.match(r"(\d+)\.(\d+)", release)
    if found is None or (int(found[1]), int(found[2])) >= SAFE:
        return ""
    return (
        f"Triton {release} is older than {SAFE[0]}.{SAFE[1]:02}: a request in many small chunks ends it with all its"
        " models (CVE-2025-23310). Let nobody reach its ports whom you do not trust"
    )
