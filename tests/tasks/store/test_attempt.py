"""Which attempt an upload goes under: never one that another process may be writing, or that counts already."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tasks.store.attempt import Attempt, attempt_for


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    made.mkdir()
    (made / "file").write_text("1")
    return made


def interrupted(folder: Path) -> Attempt:
    with pytest.raises(KeyboardInterrupt), attempt_for(folder, lambda name: True) as attempt:
        raise KeyboardInterrupt
    return attempt


def again(folder: Path, *, may_resume: bool = True) -> Attempt:
    with attempt_for(folder, lambda name: may_resume) as attempt:
        return attempt


def test_what_was_interrupted_is_taken_up_once(folder: Path) -> None:
    first = interrupted(folder)
    second = again(folder)
    assert not first.resumed and second == Attempt(first.name, resumed=True)
    third = again(folder)
    assert not third.resumed and third.name != first.name
    assert [path.name for path in folder.parent.iterdir()] == ["made"]


def test_other_files_are_another_attempt(folder: Path) -> None:
    first = interrupted(folder)
    (folder / "file").write_text("2")
    os.utime(folder / "file", (1, 1))
    assert again(folder).name != first.name


def test_what_is_committed_is_left_alone(folder: Path) -> None:
    first = interrupted(folder)
    second = again(folder, may_resume=False)
    assert not second.resumed and second.name != first.name


def test_what_another_process_is_at_is_left_alone(folder: Path) -> None:
    with attempt_for(folder, lambda name: True) as theirs:
        ours = again(folder)
        assert not ours.resumed and ours.name != theirs.name
    # Theirs has ended, and ours left its note alone.
    assert not again(folder).resumed


def test_an_old_one_is_left_to_garbage_collection(folder: Path) -> None:
    first = interrupted(folder)
    day = time.time() - 90000
    os.utime(folder.with_name("made.attempt"), (day, day))
    assert again(folder).name != first.name
