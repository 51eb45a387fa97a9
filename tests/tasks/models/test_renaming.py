"""A model's file under another name."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.errors import UsageError
from tasks.models.catalogue import load_catalogue
from tasks.models.renaming import renamed_file

TEXT = (Path(__file__).parents[3] / "deployments" / "models" / "smollm2-135m.yaml").read_text()
OLD = "smollm2-135m"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / f"{OLD}.yaml").write_text(f"# Of the search team.\n{TEXT}".replace(OLD, f'"{OLD}"  # small', 1))
    return tmp_path


def test_its_comments_stay_and_the_old_file_goes_last(folder: Path) -> None:
    before = (folder / f"{OLD}.yaml").read_text()
    file = renamed_file(folder, OLD, "small")
    assert sorted(load_catalogue(folder).models) == [OLD]
    file.write()
    assert sorted(load_catalogue(folder).models) == ["small", OLD]
    assert (folder / "small.yaml").read_text() == before.replace(f'name: "{OLD}"  # small', "name: small  # small")
    again = renamed_file(folder, OLD, "small")  # whoever was killed in between goes on
    assert again.model == file.model
    again.remove_old()
    by_hand = renamed_file(folder, OLD, "small")
    assert by_hand.old is None and by_hand.model == file.model and sorted(load_catalogue(folder).models) == ["small"]


def test_what_is_no_name_or_another_model_is_refused(folder: Path) -> None:
    (folder / "other.yml").write_text("name: other\n")
    (folder / "odd.yaml").write_text("{name: odd}\n")
    for former, name, code in (
        ("nothing", "small", "model-missing"),
        (OLD, "other", "model-exists"),
        (OLD, "No Name", "spec-invalid"),
        (OLD, "small--r2", "spec-invalid"),
        ("odd", "small", "name-unreadable"),
    ):
        with pytest.raises(UsageError) as caught:
            renamed_file(folder, former, name)
        assert caught.value.code == code, caught.value
        assert code != "spec-invalid" or str(folder) in caught.value.message
    assert len(list(folder.iterdir())) == 3
