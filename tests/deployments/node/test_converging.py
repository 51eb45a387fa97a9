"""What a node does next, from what it knows: without Triton, with its answers in the place of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest

from deployments.node import known
from deployments.node.converging import Converging
from deployments.node.copies import Copies
from deployments.node.engine_groups import EngineGroups
from deployments.node.known import KnownModel, KnownRelease, follow
from deployments.node.loading import Loading, Servers
from deployments.node.orphans import Orphans
from deployments.node.wanted import Reading, WantedModel
from infra.errors import TritonError
from infra.triton.client import ModelState, TritonClient
from infra.triton.log import Log
from tasks.targets.current import Current
from tasks.targets.release import Intent


class Recorded(Loading):
    """Loads at once, and says so."""

    def load(
        self, servers: Servers, model: str, number: int, intent: Intent, known: KnownModel, release: KnownRelease
    ) -> None:
        release.became_ready()


class Triton(TritonClient):
    """A Triton that refuses as many unloads as it is told to."""

    def __init__(self, refused: int = 0) -> None:
        super().__init__("127.0.0.1:9")
        self.refused = refused

    def unload(self, model: str) -> None:
        if self.refused:
            self.refused -= 1
            raise TritonError("not now", code="triton-busy")

    def load(self, model: str, timeout_s: float = 0.0) -> None:
        return

    def index(self) -> tuple[ModelState, ...]:
        return ()


INTENT = Intent(model="m", release=1, repository="", digest="", recipe={}, source="", flow_run="")


@pytest.fixture
def turn(tmp_path: Path) -> Iterator[Callable[[KnownModel, TritonClient], None]]:
    """One turn over the model `m`, and the end of all that it has begun."""
    for name in ("m--r1--llm", "m--r1"):
        (tmp_path / "models" / name).mkdir(parents=True)
    loading = Recorded(Copies(cast("object", None), tmp_path, ""), tmp_path / "models", 0.01)  # pyright: ignore
    with ThreadPoolExecutor(2) as pool:
        converging = Converging(loading, pool, pool)

        def run(model: KnownModel, triton: TritonClient) -> None:
            servers = Servers(triton, Log(tmp_path / "log"), EngineGroups(tmp_path / "groups", None))
            assert converging.turn(servers, Orphans(tmp_path / "models"), {"m": model}) == ""
            until = time.monotonic() + 5
            while model.moving or any(release.busy for release in model.releases.values()):
                assert time.monotonic() < until
                time.sleep(0.005)
            time.sleep(0.02)  # until what failed is due

        yield run


def test_a_release_whose_unloading_failed_is_loaded_again_when_it_is_wanted(
    turn: Callable[[KnownModel, TritonClient], None],
) -> None:
    triton = Triton(refused=1)
    model = KnownModel(intents={1: INTENT}, releases={1: KnownRelease("ready", starts=1)})
    turn(model, triton)
    assert model.releases[1].state == "unloading" and "triton-busy" in model.releases[1].error
    model.wanted = Current(public=1)
    turn(model, triton)
    assert model.releases[1].state == "ready"


def test_a_release_whose_unloading_failed_is_unloaded_by_the_next_try(
    turn: Callable[[KnownModel, TritonClient], None], tmp_path: Path
) -> None:
    triton = Triton(refused=1)
    model = KnownModel(releases={1: KnownRelease("ready")})
    for _ in range(3):
        turn(model, triton)
    assert not model.releases and not list((tmp_path / "models").iterdir())


def test_an_engine_goes_after_those_who_call_it(
    turn: Callable[[KnownModel, TritonClient], None], tmp_path: Path
) -> None:
    """Triton passes nothing on to a model that is being unloaded, so no request could be stopped in it any more."""

    class Answering(Triton):
        def __init__(self) -> None:
            super().__init__()
            self.done: list[str] = []

        def unload(self, model: str) -> None:
            self.done.append(model)

        def index(self) -> tuple[ModelState, ...]:
            self.done.append("asked")
            state = "UNLOADING" if self.done.count("asked") < 3 else "UNAVAILABLE"
            return (ModelState("m--r1--llm", state, ""),)

    (tmp_path / "models" / "m--r1--tensorrt_llm").mkdir()
    triton = Answering()
    turn(KnownModel(releases={1: KnownRelease("ready")}), triton)
    assert triton.done == ["m--r1", "m--r1--llm", "asked", "asked", "asked", "m--r1--tensorrt_llm", "asked"]


def test_one_model_that_cannot_be_converged_leaves_the_others_their_turn(tmp_path: Path) -> None:
    class Broken(Recorded):
        def publish(self, servers: Servers, model: str, number: int, known: KnownModel) -> None:
            raise AssertionError

    class Pool(ThreadPoolExecutor):
        def submit(self, *arguments: object, **more: object) -> Future[None]:  # pyright: ignore
            if "first" in arguments:
                raise MemoryError("no thread")
            return super().submit(*arguments, **more)  # pyright: ignore

    models = {name: KnownModel(wanted=Current(public=1), intents={1: INTENT}) for name in ("first", "second")}
    loading = Broken(Copies(cast("object", None), tmp_path, ""), tmp_path, 0.01)  # pyright: ignore
    with Pool(2) as pool:
        servers = Servers(Triton(), Log(tmp_path / "log"), EngineGroups(tmp_path / "groups", None))
        Converging(loading, pool, pool).turn(servers, Orphans(tmp_path), models)
    assert models["first"].error == "no thread" and models["second"].releases[1].state == "ready"


def test_a_release_that_is_lost_again_and_again_waits_ever_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    release, pauses = KnownRelease(), list[float]()
    for _ in range(8):
        release.became_ready()
        release.again("it died")
        pauses.append(round((release.retry_at or 0.0) - time.monotonic()))
    assert pauses == [0, 5, 10, 20, 40, 60, 60, 60]
    assert release.given_up and release.state == "loading"
    monkeypatch.setattr(known, "WELL_SECONDS", 0.0)
    release.became_ready()
    time.sleep(0.01)
    release.again("it died")
    assert release.faults == 1 and release.due and not release.given_up


def test_what_was_loaded_as_triton_ended_is_loaded_once_more_by_itself_and_then_not() -> None:
    loading: Future[None] = Future()
    suspect, innocent = KnownRelease(loader=loading), KnownRelease("ready")
    assert innocent.after_triton() is None, "it is loaded like any other"
    once = suspect.after_triton()
    assert once is not None and once.ended_triton == 1 and once.due and not once.given_up
    once.cut_off = True  # its load ended as Triton did, before anybody looked
    twice = once.after_triton()
    assert twice is not None and twice.state == "failed" and twice.given_up and "[triton-ended]" in twice.error
    assert twice.after_triton() is twice
    once.became_ready()
    assert once.ended_triton == 0


def test_a_release_that_failed_for_good_is_tried_again_when_it_becomes_public() -> None:
    models = {"m": KnownModel(etag="old", releases={1: KnownRelease("failed", "it died", ended_triton=2)})}
    wanted = WantedModel(current=Current(public=1), etag="new", intents={1: INTENT})
    follow(models, Reading({"m": wanted}, fresh=True))
    assert models["m"].releases[1].due and models["m"].releases[1].retry_at is not None
    assert models["m"].releases[1].ended_triton == 1, "by itself, though"
