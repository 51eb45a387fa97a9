"""Aliases on a real node: they move with the public name, come back with it, and leave with their release."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.processes.sessions import terminate
from tests.deployments.node.served import Served, served
from tests.fleet import Fleet

pytestmark = pytest.mark.slow

MODEL, OTHER = "tiny", "other"
BOTH = ("ensemble", "tensorrt_llm_bls")
BOUND_SECONDS = 1.0
"""Between the first answer of the next release by one of a model's names, and the last one of the release before by
another, on a machine with other work; measured on an idle one: see docs/how-to/gateway.md."""


@pytest.fixture
def node(fleet: Fleet, tmp_path: Path) -> Iterator[Served]:
    with served(fleet, tmp_path / "one") as made:
        yield made


def answers(node: Served, *names: str) -> list[str]:
    return [node.ask(name) for name in names]


def gone(node: Served, *names: str) -> bool:
    return all("unknown model" in answer or "not found" in answer for answer in answers(node, *names))


def test_aliases_move_with_the_public_name_and_leave_with_it(node: Served) -> None:
    node.release(MODEL)
    node.wait_for(MODEL, 1)
    assert gone(node, *BOTH)
    node.release(MODEL, aliases=BOTH)
    node.wait(lambda: answers(node, MODEL, *BOTH) == [f"{MODEL}@2"] * 3, "aliases of release 2")
    number = node.release(MODEL, aliases=BOTH, public=False)
    node.wait(lambda: node.state(MODEL, number) == "ready", "candidate")
    seen: dict[str, list[tuple[float, str]]] = {name: [] for name in (MODEL, *BOTH)}
    stop = threading.Event()

    def keep_asking(name: str) -> None:
        while not stop.is_set():
            answer = node.ask(name)
            seen[name].append((time.monotonic(), answer))

    askers = [threading.Thread(target=keep_asking, args=(name,)) for name in seen]
    for asker in askers:
        asker.start()
    node.target.move(MODEL, lambda current: current.promoted(number))
    node.wait(lambda: answers(node, MODEL, *BOTH) == [f"{MODEL}@3"] * 3, "aliases of release 3")
    stop.set()
    for asker in askers:
        asker.join()
    assert {answer for each in seen.values() for _, answer in each} == {f"{MODEL}@2", f"{MODEL}@3"}, "none was lost"
    first_new = min(at for each in seen.values() for at, answer in each if answer == f"{MODEL}@3")
    last_old = max(at for each in seen.values() for at, answer in each if answer == f"{MODEL}@2")
    print(f"all names moved within {last_old - first_new:.4f} s")
    assert last_old - first_new < BOUND_SECONDS
    node.target.move(MODEL, lambda current: current.promoted(1))
    node.wait(lambda: gone(node, *BOTH), "end of the aliases, by a rollback")
    assert node.ask(MODEL) == f"{MODEL}@1"
    node.target.move(MODEL, lambda current: current.promoted(3))
    node.wait(lambda: answers(node, MODEL, *BOTH) == [f"{MODEL}@3"] * 3, "aliases, which came back")


def test_another_model_has_an_alias_once_the_first_has_let_go(node: Served) -> None:
    node.release(MODEL, aliases=("ensemble",))
    node.wait(lambda: node.ask("ensemble") == f"{MODEL}@1", "alias")
    node.release(OTHER, aliases=("ensemble",))
    node.wait(lambda: node.state(OTHER, 1) == "ready", "the other model")

    def refused() -> bool:
        report = node.report()
        return report is not None and "ensemble" in report.models[OTHER].error

    node.wait(refused, "word of the alias that another model has")
    report = node.report()
    assert report is not None and "ensemble" in report.models[OTHER].error
    assert answers(node, "ensemble", MODEL) == [f"{MODEL}@1"] * 2, "whoever has it keeps it, whatever the store says"
    node.release(MODEL)
    node.wait(lambda: answers(node, "ensemble", OTHER) == [f"{OTHER}@1"] * 2, "alias of the other model")
    assert node.ask(MODEL) == f"{MODEL}@2"


def test_a_restarted_triton_and_a_restarted_node_bring_them_back_without_the_store(node: Served) -> None:
    node.release(MODEL, aliases=BOTH)
    node.wait(lambda: answers(node, *BOTH) == [f"{MODEL}@1"] * 2, "aliases")
    node.door.state = "away"
    for triton in node.tritons():
        terminate(triton.pid, 0)
    node.wait(lambda: answers(node, MODEL, *BOTH) == [f"{MODEL}@1"] * 3, "aliases of a new Triton")
    node.kill()
    assert answers(node, *BOTH) == [f"{MODEL}@1"] * 2, "Triton goes on by itself"
    node.start()
    node.wait(lambda: node.health()[0] == 200, "a node that is ready")
    assert answers(node, MODEL, *BOTH) == [f"{MODEL}@1"] * 3
    node.kill()
    node.door.state = "open"
    node.release(MODEL)
    node.start()
    node.wait(
        lambda: node.ask(MODEL) == f"{MODEL}@2" and gone(node, *BOTH), "end of aliases that a dead agent had made"
    )
