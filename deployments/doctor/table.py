"""All checks, in the order in which people read them: this machine, the servers, what it builds with and serves."""

from __future__ import annotations

from collections.abc import Sequence

from deployments.doctor import (
    catalogue,
    disk,
    gpus,
    hugging_face,
    image,
    ngc,
    nodes,
    package_index,
    pools,
    prefect_server,
    published_catalogue,
    python,
    signing_keys,
    store,
    store_clock,
    store_conditions,
    store_speed,
    toolchain,
    triton,
    triton_control,
    workers_catalogue,
)
from deployments.doctor.check import Check
from infra.errors import UsageError
from infra.nearest import did_you_mean

CHECKS: tuple[Check, ...] = tuple(
    module.CHECK
    for module in (
        python,
        disk,
        gpus,
        catalogue,
        store,
        store_conditions,
        store_clock,
        store_speed,
        prefect_server,
        pools,
        workers_catalogue,
        published_catalogue,
        nodes,
        triton,
        triton_control,
        toolchain,
        image,
        hugging_face,
        ngc,
        package_index,
        signing_keys,
    )
)


def named(names: Sequence[str]) -> tuple[Check, ...]:
    """The checks of these names, all without a name. Raises UsageError `check-missing`."""
    known = {check.name: check for check in CHECKS}
    for name in names:
        if name not in known:
            raise UsageError(
                f"there is no check '{name}'",
                hint=f"{did_you_mean(name, known)}there are {', '.join(known)}",
                code="check-missing",
            )
    return tuple(known[name] for name in names) or CHECKS
