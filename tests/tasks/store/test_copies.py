"""What a node keeps on its disk: the copies that its releases use, and no others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from infra.files import remove_tree
from tasks.store.artifact import ArtifactRef
from tasks.store.copies import put_unused_aside
from tasks.store.verify import bring

if TYPE_CHECKING:
    from tests.fleet import Fleet


def copies(artifacts: Path) -> set[str]:
    return {folder.name for folder in artifacts.iterdir()}


def test_copies_go_with_the_last_release_that_uses_them(fleet: Fleet, tmp_path: Path) -> None:
    artifacts = tmp_path / "node"
    # Two repositories share one engine.
    old, one, other = fleet.rebuild(tensorrt_llm="1.0.0"), fleet.rebuild(slots=4), fleet.rebuild(slots=8)
    for made in (old, one, other):
        for ref in (made.repository, made.engine):
            bring(fleet.store, ref, artifacts)

    def left_by(*used: ArtifactRef) -> set[str]:
        for folder in put_unused_aside({ref.identity for ref in used}, artifacts):
            assert folder.name not in {made.identity for made in (*old_refs, *all_refs)}
            remove_tree(folder)
        return copies(artifacts)

    old_refs = (old.repository, old.engine)
    all_refs = (one.repository, one.engine, other.repository)
    assert left_by(*old_refs, *all_refs) == {r.identity for r in (*old_refs, *all_refs)}
    assert left_by(*all_refs) == {ref.identity for ref in all_refs}
    assert left_by(other.repository, one.engine) == {other.repository.identity, one.engine.identity}
    assert left_by() == set()


def test_what_was_put_aside_and_not_removed_goes_with_the_next(fleet: Fleet, tmp_path: Path) -> None:
    artifacts, made = tmp_path / "node", fleet.rebuild()
    assert put_unused_aside((), artifacts) == []  # before the first release
    bring(fleet.store, made.engine, artifacts)
    aside = put_unused_aside((), artifacts)
    bring(fleet.store, made.engine, artifacts)
    assert put_unused_aside({made.engine.identity}, artifacts) == aside
