"""Which calls of a public name go to its canary: a share of them, by chance or by who asks."""

from __future__ import annotations

import hashlib
import random

from deployments.gateway.call import Call
from deployments.gateway.names import Name
from deployments.gateway.places import Places
from deployments.gateway.state import Known
from infra.errors import EnginehouseError
from tasks.targets.traffic import Canary

_OWN = frozenset({"client-left", "deadline", "gateway-ending", "requests-limit", "tokens-limit"})
"""Errors that another release would not cure: they are the gateway's or the client's."""


def canary_of(known: Known, places: Places, name: Name, call: Call) -> int | None:
    """The release that the call is to go to before the public one. None for most, and for a release by its number.

    Where no node has it ready, or it is not known to have the adapter, the public release answers.
    """
    canary = known.traffic(places, name.model).canary
    if canary is None or name.release is not None:
        return None
    beside = known.beside(places, name.model, canary.release)
    if not beside.nodes or (name.adapter and name.adapter not in (known.adapters(beside, name.model) or ())):
        return None
    return canary.release if is_chosen(canary, name.model, client_of(call)) else None


def client_of(call: Call) -> str:
    """What tells one client from others: its session, else its key. Empty where it has neither."""
    return call.session or ("" if call.key is None else call.key.name)


def is_chosen(canary: Canary, model: str, client: str) -> bool:
    """Whether this request is of the share. A client that is stays so while the share grows."""
    at = point(model, canary.release, client) if canary.sticky and client else random.random()
    return at < canary.share


def point(model: str, release: int, client: str) -> float:
    """Where a client stands between 0 and 1: in another place for each release, so that nobody is always first."""
    said = "\0".join((model, str(release), client)).encode(errors="replace")
    return int.from_bytes(hashlib.blake2b(said, digest_size=8).digest()) / 2**64


def is_curable(code: str) -> bool:
    """Whether what the canary failed with may be answered by the public release."""
    return code not in _OWN


def first_code(error: EnginehouseError) -> str:
    """What the release said, which a protocol's routes may have put into words of their own."""
    cause = error.__cause__
    return first_code(cause) if isinstance(cause, EnginehouseError) else error.code
