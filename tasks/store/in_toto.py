"""Statements of in-toto, version 1: a predicate on things that are named by their digests.

The predicate is that of the caller. `attestation` puts a statement into an envelope and signs it.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

PredicateT = TypeVar("PredicateT", bound=BaseModel)


class Resource(BaseModel):
    """Something by its name and digest."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    digest: dict[str, str]


class Statement(BaseModel, Generic[PredicateT]):
    """An in-toto statement: https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    type: str = Field(default="https://in-toto.io/Statement/v1", alias="_type")
    subject: tuple[Resource, ...]
    predicateType: str
    predicate: PredicateT
