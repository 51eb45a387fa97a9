"""A model gets another name: the same bytes answer by it before the old name goes, and nothing is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from pydantic import JsonValue

from infra.errors import EnginehouseError, UsageError
from infra.s3.bucket import Bucket
from tasks.explain.history import history
from tasks.explain.lineage import lineage
from tasks.models.spec import Model
from tasks.steps import promote as promote_step
from tasks.steps import rename as rename_step
from tasks.steps.context import Context
from tasks.steps.plan import Plan
from tasks.steps.rename import Adopted, adopt, require_adoptable
from tasks.steps.retire import retire
from tasks.steps.roll_out import roll_out
from tasks.targets.references import find
from tasks.targets.release import Intent
from tasks.targets.target import Target
from tests.flows.interleaved import MemoryBucket, Stage
from tests.following_node import following
from tests.small_release import MODEL, SNAPSHOT, released

OLD = MODEL.name


@pytest.fixture
def renamed() -> Model:
    return MODEL.model_copy(update={"name": "small"})


@pytest.fixture
def house(bucket: Bucket, tmp_path: Path) -> Context:
    """A store in which release 1 of the model is public on target `test`."""
    return released(bucket, tmp_path)


def test_the_new_name_answers_with_the_same_bytes_before_the_old_one_goes(house: Context, renamed: Model) -> None:
    target = house.target("test")
    with following(target):
        assert adopt(target, OLD, renamed) == Adopted("test", 1, 1)
        assert target.current(OLD)[0].public == 1  # both answer
        assert adopt(target, OLD, renamed) == Adopted("test", 1, 1) and target.releases("small") == [1]
        retire(house.store.bucket, OLD, ["test"], reason="renamed to small")
        # A rebuild by the new name has nothing to do.
        plan = Plan.of(renamed, SNAPSHOT)
        assert roll_out(house, plan, "test").unchanged
        assert adopt(target, OLD, renamed) is None
    before, now = target.intent(OLD, 1), target.intent("small", 1)
    assert (now.repository, now.digest, now.recipe) == (before.repository, before.digest, before.recipe)
    assert (now.former, before.former) == (f"{OLD}@1", "")
    told = {event.what: event.reason for event in history(target, "small").events}
    assert told["made"].endswith(f"as {OLD}@1 before it was renamed") and OLD in told["promoted"]
    found = lineage(house.store.bucket, find(house.store.bucket, "small", "test"))
    assert f"test/{OLD}@1" in found.inputs["test/small@1"] and f"test/{OLD}@1" in found.reached(up=True)


def test_where_memory_is_short_nothing_is_loaded_and_the_old_name_stays(house: Context, renamed: Model) -> None:
    target = house.target("test")
    with following(target, free_bytes=1 << 20), pytest.raises(EnginehouseError) as caught:
        adopt(target, OLD, renamed)
    assert caught.value.code == "memory-short"
    assert target.current("small")[1] is None and target.current(OLD)[0].public == 1


def test_what_cannot_get_the_name_is_refused_before_anything(house: Context, renamed: Model) -> None:
    bucket, target = house.store.bucket, house.target("test")
    require_adoptable(bucket, OLD, "small", ["test"])
    target.reserve("small", lambda number: intent("small", number))
    target.move("small", lambda current: current.promoted(1))
    target.reserve("aliased", lambda number: intent("aliased", number, serving={"aliases": ["ensemble"]}))
    target.move("aliased", lambda current: current.promoted(1))
    for names, code in (((OLD, "small"), "model-exists"), (("aliased", "other"), "rename-aliases")):
        with pytest.raises(UsageError) as caught:
            require_adoptable(bucket, *names, ["test"])
        assert caught.value.code == code


def intent(model: str, number: int, serving: dict[str, JsonValue] | None = None) -> Intent:
    repository = f"repository/{0:064x}"
    return Intent(
        model=model,
        release=number,
        repository=repository,
        digest="d",
        recipe={},
        serving=serving or {},
        source="s",
        flow_run="",
    )


def test_killed_at_any_write_and_done_again_it_ends_the_same(renamed: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: object, **__: object) -> None: ...

    def servable(_: Target, model: str, release: int) -> Intent:
        return intent(model, release)

    # No node and no artifact is here: only the records, in their order.
    monkeypatch.setattr(rename_step, "_require_room", nothing)
    monkeypatch.setattr(rename_step, "wait_until_ready", nothing)
    monkeypatch.setattr(promote_step, "wait_until_public", nothing)
    monkeypatch.setattr(promote_step, "_require_servable", servable)
    stage = Stage(0)
    bucket = MemoryBucket("memory", "", stage=stage)
    target = Target(bucket, "test")
    target.reserve(OLD, lambda number: intent(OLD, number))
    target.move(OLD, lambda current: current.promoted(1))

    def rename() -> None:
        adopt(target, OLD, renamed)
        retire(bucket, OLD, ["test"])

    begin, deaths = dict(bucket.objects), 0
    for write in (sign * write for write in range(1, 100) for sign in (-1, 1)):
        killed = dies(bucket, begin, rename, write)
        # Somebody is answered, whatever was left.
        assert {1} & {target.current(OLD)[0].public, target.current("small")[0].public}
        if write < 0 and not killed:
            break
        deaths += killed
        rename()
        (release,) = [number for number in target.releases("small") if target.result("small", number)]
        current, old = target.current("small")[0], target.current(OLD)[0]
        assert (current.public, current.candidates, old.public) == (release, (), None) and old.retired is not None
        assert target.intent("small", release).former == f"{OLD}@1"
    assert deaths > 12, deaths


def dies(bucket: MemoryBucket, objects: Mapping[str, tuple[bytes, int]], work: Callable[[], None], write: int) -> bool:
    bucket.objects.clear()
    bucket.objects.update(objects)
    ended: list[bool] = []
    bucket.stage.start("rename", work, write, lambda actor: ended.append(actor.killed))
    while bucket.stage.actors:
        bucket.stage.step()
    return ended[0]
