"""What a node keeps on its disk: the copies that its releases use, and no others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from infra.errors import ArtifactDamaged
from infra.files import remove_tree
from tasks.store.artifact import ArtifactRef
from tasks.store.copies import put_unused_aside
from tasks.store.verify import bring

if TYPE_CHECKING:
    from tests.fleet import Fleet


def copies(artifacts: Path) -> set[str]:
    return {folder.name for folder in artifacts.iterdir()}


def test_copies_go_with_the_last_release_that_uses_them(fleet: Fleet, tmp_path: Path) -> None:
    artifacts, bucket = tmp_path / "node", fleet.store.bucket
    # Two repositories share one engine.
    old, one, other = fleet.rebuild(tensorrt_llm="1.0.0"), fleet.rebuild(slots=4), fleet.rebuild(slots=8)
    for made in (old, one, other):
        for ref in (made.repository, made.engine):
            bring(fleet.store, ref, artifacts)

    def left_by(*used: ArtifactRef) -> set[str]:
        for folder in put_unused_aside(bucket, map(str, used), artifacts):
            assert folder.name not in {made.identity for made in (*old_refs, *all_refs)}
            remove_tree(folder)
        return copies(artifacts)

    old_refs = (old.repository, old.engine)
    all_refs = (one.repository, one.engine, other.repository)
    assert left_by(old.repository, one.repository, other.repository) == {r.identity for r in (*old_refs, *all_refs)}
    assert left_by(one.repository, other.repository) == {ref.identity for ref in all_refs}
    assert left_by(other.repository) == {other.repository.identity, one.engine.identity}
    assert left_by() == set()


def test_what_was_put_aside_and_not_removed_goes_with_the_next(fleet: Fleet, tmp_path: Path) -> None:
    artifacts, made = tmp_path / "node", fleet.rebuild()
    assert put_unused_aside(fleet.store.bucket, [], artifacts) == []  # before the first release
    bring(fleet.store, made.engine, artifacts)
    aside = put_unused_aside(fleet.store.bucket, [], artifacts)
    bring(fleet.store, made.engine, artifacts)
    assert put_unused_aside(fleet.store.bucket, [str(made.repository)], artifacts) == aside


def test_where_a_release_is_unclear_nothing_goes(fleet: Fleet, tmp_path: Path) -> None:
    artifacts, made, old = tmp_path / "node", fleet.rebuild(), fleet.rebuild(tensorrt_llm="1.0.0")
    bring(fleet.store, old.engine, artifacts)
    fleet.store.bucket.put(made.repository.folder + "manifest.json", b"{}")
    with pytest.raises(ArtifactDamaged):
        put_unused_aside(fleet.store.bucket, [str(made.repository)], artifacts)
    assert copies(artifacts) == {old.engine.identity}
