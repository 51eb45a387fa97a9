"""A node over three models, and at random whatever can go wrong: after each step, without hands, all is as wanted.

`ENGINEHOUSE_CAMPAIGN_STEPS` sets how many steps; the seed is printed, and `ENGINEHOUSE_TEST_SEED` repeats it.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from infra.errors import TritonError
from tasks.triton.placement import release_of
from tests.deployments.node.served import Served, served
from tests.fleet import Fleet

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]

MODELS = ("a", "b", "c")
STEPS = int(os.environ.get("ENGINEHOUSE_CAMPAIGN_STEPS") or 8)
LIMIT_SECONDS = 60.0
"""On a quiet machine 30; two cores that others use too need twice as long."""


@dataclass
class Campaign:
    """What is wanted of the node, and what was seen of it."""

    node: Served
    chance: random.Random
    small_disk: bool
    wanted: dict[str, int] = field(default_factory=dict[str, int])
    before: dict[str, int] = field(default_factory=dict[str, int])
    longest: float = 0.0
    done: list[str] = field(default_factory=list[str])

    def step(self) -> None:
        steps = [
            self.kill_triton,
            self.hang_triton,
            self.kill_model,
            self.stop_model,
            self.kill_agent,
            self.kill_both,
            self.store_away,
            self.store_hangs,
            self.damage_a_record,
            self.promote,
            self.roll_back,
            self.refuse,
            self.two_rebuilds,
            *([self.fill_the_disk] if self.small_disk else ()),
        ]
        step = self.chance.choice(steps)
        self.before = dict(self.wanted)
        self.done.append(step.__name__)
        step()
        self.settle()

    def model(self) -> str:
        return self.chance.choice(MODELS)

    def pause(self) -> None:
        time.sleep(self.chance.uniform(0, 2))

    def kill_triton(self) -> None:
        self._signal(self.node.tritons(), signal.SIGKILL)

    def hang_triton(self) -> None:
        self._signal(self.node.tritons(), signal.SIGSTOP)

    def kill_model(self) -> None:
        model = self.model()
        self._signal(self.node.processes(model, self.wanted[model]), signal.SIGKILL)

    def stop_model(self) -> None:
        model = self.model()
        self._signal(self.node.processes(model, self.wanted[model]), signal.SIGSTOP)

    def kill_agent(self) -> None:
        self.node.kill()
        self.pause()
        self.node.start()

    def kill_both(self) -> None:
        self.node.kill()
        self.kill_triton()
        self.node.start()

    def store_away(self) -> None:
        self._without_store("away")

    def store_hangs(self) -> None:
        self._without_store("hang")

    def _without_store(self, state: str) -> None:
        self.node.door.state = "away" if state == "away" else "hang"
        self.chance.choice([self.kill_triton, self.kill_model, self.kill_agent, self.kill_both])()
        self.answered()  # also while it is away
        self.node.door.state = "open"

    def damage_a_record(self) -> None:
        bucket, model = self.node.target.bucket, self.model()
        key = f"{self.node.target.prefix}{model}/current.json"
        good = bucket.get(key)
        assert good is not None
        bucket.put(key, self.chance.choice([b"{", b"", b'{"schema_version": 9}', b"\xff"]))
        self.chance.choice([self.pause, self.kill_triton, self.kill_model, self.kill_agent])()
        self.answered()
        bucket.put(key, good.body)

    def promote(self) -> None:
        model = self.model()
        self.wanted[model] = self.node.release(model)

    def roll_back(self) -> None:
        model = self.model()
        previous = self.node.target.current(model)[0].previous
        if previous is not None:
            self.wanted[model] = previous
            self.node.target.move(model, lambda current: current.promoted(previous))

    def refuse(self) -> None:
        model = self.model()
        begin = self.chance.choice(["", "raise RuntimeError('no')", "time.sleep(3)"])
        refused = self.node.release(model, begin=begin, public=False, passed=False)
        self.chance.choice([self.pause, self.kill_agent, self.kill_triton])()
        self.node.target.move(model, lambda current: current.without_candidates(refused))

    def two_rebuilds(self) -> None:
        for model in self.chance.sample(MODELS, 2):
            self.wanted[model] = self.node.release(model)

    def fill_the_disk(self) -> None:
        ballast = self.node.folder / "ballast"
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(1 << 12)):
                pass
        self.chance.choice([self.pause, self.promote, self.kill_model, self.kill_agent])()
        time.sleep(self.chance.uniform(1, 4))
        ballast.unlink()

    def _signal(self, processes: list[psutil.Process], number: signal.Signals) -> None:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def answered(self) -> None:
        """Wait until each name answers with what is wanted. Whatever answers before is its release of just now."""
        started, left = time.monotonic(), set(MODELS)
        while left:
            for model in list(left):
                answer = self.node.ask(model)
                allowed = {f"{model}@{number}" for number in (self.before[model], self.wanted[model])}
                assert answer in allowed or answer.startswith("error: "), f"{model} answered {answer}, not of {allowed}"
                if answer == f"{model}@{self.wanted[model]}":
                    left.discard(model)
            assert time.monotonic() - started < LIMIT_SECONDS, (
                f"{left} did not answer: {self.node.health()}\n{self.node.tail()}"
            )
        self.longest = max(self.longest, time.monotonic() - started)

    def settle(self) -> None:
        self.answered()
        self.node.wait(self.is_true, "report and index as the records want them", LIMIT_SECONDS)
        for model in MODELS:
            assert self.node.ask(model, seconds=10) == f"{model}@{self.wanted[model]}"

    def is_true(self) -> bool:
        """Whether report, health and Triton's index say just what the records want."""
        report = self.node.report()
        if report is None or report.error or self.node.health()[0] != 200:
            return False
        held: set[tuple[str, int]] = set()
        for model in MODELS:
            current, known = self.node.target.current(model)[0], report.models[model]
            ready = {number for number, release in known.releases.items() if release.state == "ready"}
            if known.public != self.wanted[model] or known.releases.keys() != ready or ready != set(current.loaded):
                return False
            held |= {(model, number) for number in ready}
        try:
            index = {entry.name for entry in self.node.triton.index() if entry.state == "READY"}
        except TritonError:
            return False
        releases = {release for name in index if (release := release_of(name)) is not None}
        return releases == held and {name for name in index if release_of(name) is None} == set(MODELS)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path | None]:
    """A disk of 200 MB; None where this user may not mount one."""
    folder = tmp_path / "home"
    folder.mkdir()
    if os.geteuid() != 0:
        yield None
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.timeout(120 + 60 * STEPS)
def test_whatever_happens_every_name_answers_again(
    fleet: Fleet, tmp_path: Path, small_disk: Path | None, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("ENGINEHOUSE_TEST_SEED") or random.randrange(10**6))
    with capsys.disabled():
        print(f"\nseed {seed}, {STEPS} steps", flush=True)
    with served(fleet, tmp_path / "home") as node:
        campaign = Campaign(node, random.Random(seed), small_disk is not None)
        for model in MODELS:
            campaign.wanted[model] = node.release(model)
        campaign.before = dict(campaign.wanted)
        campaign.settle()
        try:
            for _ in range(STEPS):
                campaign.step()
        finally:
            with capsys.disabled():
                print(
                    f"seed {seed}: {len(campaign.done)} steps, longest {campaign.longest:.1f} s: {campaign.done[-3:]}"
                )
