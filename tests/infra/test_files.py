"""Folders that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.files import remove_tree, whole_folder


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "folder"
    with whole_folder(folder) as partial:
        (partial / "file").write_text("all of it")
        assert not folder.exists() and partial.parent == folder.parent
    assert (folder / "file").read_text() == "all of it"
    assert list(folder.parent.iterdir()) == [folder]


def test_of_a_block_that_fails_nothing_stays(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "folder") as partial:
        (partial / "sub").mkdir()
        (partial / "sub").chmod(0o555)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("keep_existing", [True, False])
def test_the_folder_of_a_quicker_process_stays(tmp_path: Path, keep_existing: bool) -> None:
    folder = tmp_path / "folder"

    def make() -> None:
        with whole_folder(folder, keep_existing=keep_existing) as partial:
            (partial / "file").write_text("ours")
            folder.mkdir()
            (folder / "file").write_text("theirs")

    if keep_existing:
        make()
    else:
        with pytest.raises(FileExistsError):
            make()
    assert (folder / "file").read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [folder]


def test_what_a_killed_process_left_in_a_named_place_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "making"
    (left / "sub").mkdir(parents=True)
    (left / "sub").chmod(0o555)
    with whole_folder(tmp_path / "folder", partial=left) as partial:
        assert partial == left and list(partial.iterdir()) == []
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]
    remove_tree(tmp_path / "folder")
    remove_tree(tmp_path / "folder")  # one that does not exist
    assert list(tmp_path.iterdir()) == []
