"""Repositories of the hub that have other names now than models' files call them by.

finetuned/@renamed/ORG/NAME.json   the former names of `ORG/NAME`; moved with If-Match

The hub sends who asks for a former name on to the present one, until somebody takes the former name. So fetching needs
no record: it is for what the hub sends by itself, which bears the present name.
"""

from __future__ import annotations

from dataclasses import dataclass

from infra.s3.bucket import Bucket
from tasks.models.source_uri import HubUri, is_repository, parse_source
from tasks.sources.resolved import ResolvedSource
from tasks.store.cell import Cell
from tasks.store.record import Record

_REMEMBERED = 20


class Renamed(Record):
    """The former names of a repository, the latest first."""

    was: tuple[str, ...] = ()


@dataclass(frozen=True)
class Renames:
    """What the store knows of repositories that were renamed."""

    bucket: Bucket

    def former(self, name: str) -> tuple[str, ...]:
        """The names that the repository `org/name` had before."""
        return self._of(name).read()[0].was if is_repository(name) else ()

    def note(self, old: str, new: str) -> None:
        """Keep that `old` is called `new` now, with the names that it had before."""
        earlier = self.former(old)

        def change(known: Renamed) -> Renamed:
            names = dict.fromkeys((old, *earlier, *known.was))
            return Renamed(was=tuple(name for name in names if name != new)[:_REMEMBERED])

        self._of(new).move(change)

    def note_found(self, resolved: ResolvedSource) -> str:
        """Keep the present name of a source that the hub answered for by another one.

        Returns a line that says so, and an empty one for every other source.
        """
        uri = parse_source(resolved.uri)
        if not resolved.renamed or not isinstance(uri, HubUri):
            return ""
        self.note(uri.repository, resolved.renamed)
        return (
            f"{uri.repository} is called {resolved.renamed} on the hub now: write that into the model's file before "
            "somebody else takes the former name"
        )

    def _of(self, name: str) -> Cell[Renamed]:
        return Cell(self.bucket, f"finetuned/@renamed/{name}.json", Renamed())
