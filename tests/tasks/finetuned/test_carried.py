"""Weights that events brought go with a model to its new name."""

from __future__ import annotations

from infra.s3.bucket import Bucket
from tasks.finetuned.arrivals import arrive
from tasks.finetuned.carried import carry_over
from tasks.finetuned.records import TunedWeights, accept, current_weights, settle
from tasks.watch import record
from tasks.watch.record import Followed, followed_version, move_record


def weights(bucket: Bucket, event: str, revision: str, model: str = "tiny") -> TunedWeights:
    arrival = arrive(bucket, event, {"model": model, "source": f"hf://org/tuned@{revision * 40}"})
    return TunedWeights(
        model=model,
        revision=revision * 64,
        asked=f"hf://org/tuned@{revision * 40}",
        source=f"hf://org/tuned@{revision * 40}",
        file_source="hf://org/base@main",
        event=event,
        order=arrival.order,
    )


def test_they_count_as_before_and_later_ones_are_newer(bucket: Bucket) -> None:
    first, second = weights(bucket, "e1", "a"), weights(bucket, "e2", "b")
    for each in (first, second):
        accept(bucket, each)
    settle(bucket, first, "live")
    carry_over(bucket, "tiny", "small")
    carry_over(bucket, "tiny", "small")
    known, _ = current_weights(bucket, "small").read()
    assert known.proven is not None and (known.proven.model, known.proven.revision) == ("small", first.revision)
    assert [(each.model, each.event) for each in known.waiting] == [("small", "e2")]
    assert accept(bucket, weights(bucket, "e2-again", "b", "small")).event == "e2"  # known by its first event
    third = accept(bucket, weights(bucket, "e3", "c", "small"))
    assert third.order > second.order
    carry_over(bucket, "tiny", "small")  # what came since stays
    assert current_weights(bucket, "small").read()[0].followed == third
    assert current_weights(bucket, "tiny").read()[0].followed == second
    carry_over(bucket, "nothing", "none")
    assert current_weights(bucket, "none").read()[1] is None


def test_the_version_that_the_release_watch_has_moved_it_to_goes_with_it(bucket: Bucket) -> None:
    move_record(
        bucket, lambda known: known.model_copy(update={"followed": {"tiny": Followed(version="1.2", flow_run="")}})
    )
    record.carry_over(bucket, "tiny", "small")
    record.carry_over(bucket, "nothing", "none")
    assert [followed_version(bucket, name) for name in ("small", "tiny", "none")] == ["1.2", "1.2", None]
