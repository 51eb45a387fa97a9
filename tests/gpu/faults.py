"""Part 4: what is killed comes back by itself, and nothing of it stays on the GPU."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass

import psutil

from infra.triton.processes import model_processes
from tasks.triton.placement import placed_folders
from tests.gpu.campaign import SMALL, Campaign
from tests.gpu.memory import BACK_MIB, MIB, settled, waited_for
from tests.gpu.sizes import Sizes
from tests.gpu.table import Table
from tests.waiting import wait


@dataclass(frozen=True)
class Machine:
    """What was on the GPU at some moment."""

    used_bytes: int

    @classmethod
    def now(cls, sizes: Sizes) -> Machine:
        return cls(settled(1.0) if sizes.on_gpu else 0)


def nothing_is_left(table: Table, before: Machine, sizes: Sizes) -> None:
    """After the stack went down."""
    if not sizes.on_gpu:
        return
    more = waited_for(lambda used: used - before.used_bytes <= BACK_MIB * MIB, 30) - before.used_bytes
    table.goal(
        "the GPU after the stack went down",
        f"{more / MIB:.0f} MiB more than before",
        "nothing is left",
        more <= BACK_MIB * MIB,
    )


def run(campaign: Campaign) -> None:
    campaign.live(SMALL)
    for fault in (_model_process, _triton, _node):
        before = settled() if campaign.sizes.on_gpu else 0
        fault(campaign)
        if campaign.sizes.on_gpu:
            more = waited_for(lambda used, before=before: abs(used - before) <= BACK_MIB * MIB, 60) - before
            name = fault.__name__.strip("_").replace("_", " ")
            campaign.table.goal(
                f"the GPU after the {name} was killed",
                f"{more / MIB:+.0f} MiB against before",
                f"within {BACK_MIB} MiB",
                abs(more) <= BACK_MIB * MIB,
            )


def _model_process(campaign: Campaign) -> None:
    house = campaign.house
    models = house.home / "node" / "models"
    release = campaign.live(SMALL)
    killed = [each for name in placed_folders(models, SMALL, release) for each in model_processes(models / name)]
    assert killed, "no process runs the release"
    _killed(campaign, "a model process", killed)
    _is_gone(killed)


def _triton(campaign: Campaign) -> None:
    house = campaign.house
    triton = psutil.Process(house.node().triton_pid)
    children = triton.children(recursive=True)
    _killed(campaign, "Triton", [triton])
    _is_gone([triton, *children])


def _node(campaign: Campaign) -> None:
    """Triton goes on without its node. The stack's service manager is `up`; it starts a node that finds that Triton."""
    house, table = campaign.house, campaign.table
    node, triton = house.process("node"), house.node().triton_pid
    node.kill()
    psutil.wait_procs([node], timeout=10)
    written = house.node().written
    meanwhile = house.answers(SMALL)
    began = time.monotonic()
    house.run("up")
    wait(lambda: any(each.written > written for each in house.target.nodes()), "report of the new node", 60)
    house.seconds_until_answer(SMALL)
    table.goal(
        "node killed, and started again",
        f"{'answered' if meanwhile else 'did not answer'} meanwhile; a node after {time.monotonic() - began:.1f} s, "
        f"Triton {'the same' if house.node().triton_pid == triton else 'another'}",
        "answers throughout, the same Triton",
        meanwhile and house.node().triton_pid == triton,
    )


def _killed(campaign: Campaign, what: str, processes: list[psutil.Process]) -> None:
    house, release = campaign.house, campaign.live(SMALL)
    before = house.node().models[SMALL].releases[release].starts, house.node().triton_pid
    began = time.monotonic()
    for process in processes:
        process.kill()

    def is_back() -> bool:
        report = house.node()
        known = report.models[SMALL].releases.get(release) if SMALL in report.models else None
        return known is not None and known.state == "ready" and (known.starts, report.triton_pid) != before

    wait(is_back, f"release that is back after {what} was killed", 300)
    house.seconds_until_answer(SMALL)
    campaign.table.goal(f"{what} killed", f"answers again after {time.monotonic() - began:.1f} s", "by itself", True)


def _is_gone(processes: list[psutil.Process]) -> None:
    def gone() -> bool:
        left: list[int] = []
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    left.append(process.pid)
        return not left

    wait(gone, "end of every killed process", 60)
