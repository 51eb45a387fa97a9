"""The catalogue in the store: what is published is what workers read, whole, whoever dies meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from infra.errors import ArtifactDamaged, SettingsError, SpecError
from infra.s3.bucket import Bucket
from infra.settings import Settings
from tasks.models.catalogue import load_catalogue
from tasks.models.published_catalogue import difference, files_in, folder_of, in_use, publish, published

MODEL = """\
name: {name}
source: {{uri: 'hf://org/repo@main'}}
recipe: {{kind: llamacpp}}
prompts: [{{name: one, text: Hello, max_tokens: 4, expect: {{min_tokens: 1}}}}]
"""


class Killed(BaseException):
    pass


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.yaml").write_text(MODEL.format(name=name))
    return folder


@pytest.fixture
def worker(bucket: Bucket, tmp_path: Path) -> Settings:
    """A machine without a checkout of the files."""
    store = f"s3://{bucket.name}/{bucket.prefix}"
    return Settings(home=tmp_path / "home", catalogue=tmp_path / "nowhere", catalogue_from="store", store=store)


def test_workers_read_what_was_published(here: Path, worker: Settings, bucket: Bucket) -> None:
    with pytest.raises(SettingsError) as caught:
        in_use(worker)
    assert caught.value.code == "catalogue-unpublished" and published(bucket) is None

    (here / "b.yaml").rename(here / "b.yml")
    first = files_in(here)
    assert difference(bucket, first).changes == {"a.yaml": "created", "b.yml": "created"}
    publish(bucket, first)
    used = in_use(worker)
    assert used.digest == first.digest and first.digest[:12] in str(used) and "published by" in str(used)
    assert load_catalogue(used.folder) == load_catalogue(here)

    (here / "a.yaml").write_text(MODEL.format(name="a") + "description: Another.\n")
    (here / "b.yml").unlink()
    (here / "c.yaml").write_text("name: [")  # costs its own model
    (here / "d.yaml").write_bytes(b"name: \xff")
    second = files_in(here)
    assert difference(bucket, second).changes == {"a.yaml": "changed", "b.yml": "removed", "c.yaml": "created"}
    publish(bucket, second)
    found = load_catalogue(folder_of(worker))
    assert (found.models["a"].description, [*found.broken]) == ("Another.", ["c"])

    before = published(bucket)
    assert str(difference(bucket, second)) == f"catalogue {second.digest[:12]}: unchanged"
    publish(bucket, second)
    assert published(bucket) == before
    publish(bucket, first)  # and back
    assert load_catalogue(folder_of(worker)).models.keys() == {"a", "b"}


@pytest.mark.parametrize("dies", ["before", "after"])
@pytest.mark.parametrize("write", [0, 1])
def test_whoever_dies_leaves_the_old_files_or_the_new(
    here: Path, worker: Settings, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, write: int, dies: str
) -> None:
    publish(bucket, files_in(here))
    (here / "c.yaml").write_text(MODEL.format(name="c"))
    writes = iter(range(9))

    def make_mortal(patch: pytest.MonkeyPatch, method: str) -> None:
        real = getattr(Bucket, method)

        def call(*arguments: Any) -> Any:
            last = next(writes) == write
            if last and dies == "before":
                raise Killed
            real(*arguments)
            if last:
                raise Killed

        patch.setattr(Bucket, method, call)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        make_mortal(patch, "create")
        make_mortal(patch, "swap")
        publish(bucket, files_in(here))
    moved = (write, dies) == (1, "after")
    assert load_catalogue(folder_of(worker)).models.keys() == ({"a", "b", "c"} if moved else {"a", "b"})
    publish(bucket, files_in(here))
    assert load_catalogue(folder_of(worker)).models.keys() == {"a", "b", "c"}


def test_files_that_are_gone_or_others_are_not_read(here: Path, worker: Settings, bucket: Bucket) -> None:
    files = files_in(here)
    publish(bucket, files)
    key = f"catalogue/{files.digest}.json"
    bucket.put(key, b'{"schema_version":1,"files":{"a.yaml":"name: evil"}}')
    with pytest.raises(ArtifactDamaged) as caught:
        in_use(worker)
    assert caught.value.code == "catalogue-damaged"
    bucket.delete(key)
    with pytest.raises(ArtifactDamaged, match="are gone"):
        in_use(worker)
    publish(bucket, files)
    assert in_use(worker).digest == files.digest
    bucket.put(key, b'{"schema_version":1,"files":{"../a.yaml":"name: evil"}}')
    with pytest.raises(ArtifactDamaged):
        difference(bucket, files)


def test_a_folder_is_read_where_it_is(here: Path, tmp_path: Path) -> None:
    used = in_use(Settings(catalogue=here))
    assert (used.folder, used.digest) == (here, files_in(here).digest) and str(here) in str(used)
    alone = in_use(Settings(catalogue=here), "a")  # whatever becomes of the others, a run of `a` has read this
    (here / "b.yaml").unlink()
    assert alone == in_use(Settings(catalogue=here), "a") and alone.folder == here and str(here) in str(alone)
    assert alone.digest == files_in(here).digest and alone.digest != used.digest
    with pytest.raises(SpecError):
        in_use(Settings(catalogue=tmp_path / "nowhere"))
