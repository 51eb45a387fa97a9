"""What events have brought to a model goes with it to its new name."""

from __future__ import annotations

from infra.s3.bucket import Bucket
from tasks.finetuned.arrivals import Sequence, sequence
from tasks.finetuned.records import CurrentWeights, TunedWeights, current_weights
from tasks.store.cell import WriteOnce
from tasks.store.names import is_identity


def carry_over(bucket: Bucket, former: str, name: str) -> None:
    """Have the weights that events brought to the model `former` be those of the model `name`, unless it has some.

    Numbers of events go on, so that what comes later is newer. Records of the old name stay. Raises StoreError.
    """
    known, etag = current_weights(bucket, former).read()
    if etag is None:
        return
    last = sequence(bucket, former).read()[0].last
    sequence(bucket, name).move(
        lambda there: there if there.last >= last else Sequence(last=last, event=f"renamed:{former}")
    )
    start = f"finetuned/{former}/"
    for entry in bucket.list(start):
        revision = entry.key.removeprefix(start).removesuffix(".json")
        if is_identity(revision) and (found := WriteOnce(bucket, entry.key, TunedWeights).read()) is not None:
            WriteOnce(bucket, f"finetuned/{name}/{revision}.json", TunedWeights).create(_of(found, name))
    moved = known.model_copy(
        update={
            "followed": None if known.followed is None else _of(known.followed, name),
            "proven": None if known.proven is None else _of(known.proven, name),
            "waiting": tuple(_of(each, name) for each in known.waiting),
        }
    )
    current_weights(bucket, name).move(lambda there: moved if there == CurrentWeights() else there)


def _of(weights: TunedWeights, name: str) -> TunedWeights:
    return weights.model_copy(update={"model": name})
