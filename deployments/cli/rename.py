"""`enginehouse rename`: the parts of it in their order. Each can be killed, and the same command goes on."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence

from infra.s3.bucket import Bucket
from infra.settings import Settings
from tasks.finetuned import carried
from tasks.models.renaming import RenamedFile
from tasks.steps.rename import Adopted, adopt, require_adoptable
from tasks.steps.retire import alone, retire
from tasks.store.signing import signer
from tasks.targets.target import Target
from tasks.watch import record


def rename(
    settings: Settings,
    file: RenamedFile,
    former: str,
    name: str,
    targets: Sequence[str],
    say: Callable[[str], None],
) -> list[Adopted]:
    """Have `name` answer with what is live as `former` on these targets, then retire that. Returns where it was live.

    Both files are there until the old name is gone, so a rebuild that begins meanwhile finds its model. Raises as
    `retire.alone`, `require_adoptable`, `adopt` and `retire` do.
    """
    bucket, holder = Bucket.at(settings.store), f"rename on {platform.node()}"
    require_adoptable(bucket, former, name, targets)
    first, second = sorted((former, name))  # two renames at once wait for each other, and not for ever
    with (
        alone(bucket, first, targets, holder, settings.lease_seconds, say),
        alone(bucket, second, targets, holder, settings.lease_seconds, say),
    ):
        file.write()
        carried.carry_over(bucket, former, name)
        record.carry_over(bucket, former, name)
        sign = signer(settings.signing_key)
        made = [adopt(Target(bucket, target, sign=sign), former, file.model) for target in targets]
        retire(bucket, former, targets, reason=f"renamed to {name}", say=say)
        file.remove_old()
    return [each for each in made if each is not None]
