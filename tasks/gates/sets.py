"""The files that gates read and a model's file names: passages, and questions with known answers.

One is a file of this machine (`file:///…`), or an object of a bucket on the S3 server of the store (`s3://…`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from pydantic import JsonValue

from infra.errors import StoreError, UsageError
from infra.s3.bucket import Bucket
from tasks.models.gate_specs.set_source import FILE_SCHEME, SetSource

MOST_BYTES = 64 << 20
"""Of one file. A set of a thousand questions takes a few megabytes with all that other tools write beside them."""


@dataclass(frozen=True)
class SetText:
    """What a file holds. `name` is for people: where it is."""

    name: str
    text: str

    @property
    def digest(self) -> str:
        """The sha256 of its bytes, as the model's file may pin it."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def read_set(source: SetSource) -> SetText:
    """Read a file that the model's file names.

    Raises UsageError `set-missing`, `set-invalid` if it is too large or no UTF-8, and `set-changed` if its sha256 is
    not the one in the model's file.
    """
    body = _bytes_of(source.uri)
    if len(body) > MOST_BYTES:
        raise UsageError(
            f"{source.uri} has more than {MOST_BYTES} bytes, the most of a set of a gate",
            hint="a few hundred questions decide; take a part of it",
            code="set-invalid",
        )
    try:
        found = SetText(source.uri, body.decode())
    except UnicodeDecodeError as error:
        raise UsageError(f"{source.uri} is no text in UTF-8: {error}", code="set-invalid") from error
    if source.sha256 and found.digest != source.sha256:
        raise UsageError(
            f"{source.uri} is not what the model's file pins: its sha256 is {found.digest}",
            hint="if it was meant to change, put this sha256 into the model's file",
            code="set-changed",
        )
    return found


def _bytes_of(uri: str) -> bytes:
    if uri.startswith(FILE_SCHEME):
        path = Path(uri.removeprefix(FILE_SCHEME))
        try:
            with path.open("rb") as file:
                return file.read(MOST_BYTES + 1)
        except OSError as error:
            raise _missing(uri, str(error)) from error
    folder, _, key = uri.rpartition("/")
    try:
        return Bucket.at(folder).beginning(key, MOST_BYTES + 1)
    except StoreError as error:
        if error.retryable:
            raise
        raise _missing(uri, error.message) from error


def _missing(uri: str, why: str) -> UsageError:
    return UsageError(
        f"the set {uri} of a gate cannot be read: {why}",
        hint="it is read where the flow runs: a file of that machine, or an object on the S3 server of the store",
        code="set-missing",
    )


def lines_of(found: SetText) -> Iterator[tuple[int, Mapping[str, JsonValue]]]:
    """The objects of a file in JSON lines, each with its number, from 1. Empty lines count, and are left out."""
    for number, line in enumerate(found.text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise problem_at(found, number, f"is no JSON: {error}") from error
        if not isinstance(value, dict):
            raise problem_at(found, number, "is no JSON object")
        yield number, cast("Mapping[str, JsonValue]", value)


def problem_at(found: SetText, line: int, problem: str) -> UsageError:
    """The error of a line that is not as it should be: UsageError `set-invalid`."""
    return UsageError(
        f"{found.name}: line {line} {problem}",
        hint="docs/how-to/agreement-and-quality.md has the forms of sets",
        code="set-invalid",
    )
