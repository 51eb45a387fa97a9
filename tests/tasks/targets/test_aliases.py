"""The names of NVIDIA's templates on a target: one model has each, however many ask at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TYPE_CHECKING

import pytest

from infra.errors import UsageError
from tasks.steps.promote import promote, roll_back
from tasks.targets.aliases import claim, require_free
from tasks.targets.node_report import ModelReport, NodeReport, ReleaseReport
from tasks.targets.release import Intent, Result

if TYPE_CHECKING:
    from tests.fleet import Fleet


NOWHERE = f"repository/{'0' * 64}"


def candidate(fleet: Fleet, model: str, aliases: Sequence[str], repository: str = NOWHERE) -> int:
    """A release that has passed, and that nodes are to load."""

    def intent(number: int) -> Intent:
        return Intent(
            model=model,
            release=number,
            repository=repository,
            digest="d",
            recipe={},
            serving={"aliases": list(aliases)},
            source="s",
            flow_run="",
        )

    number = fleet.target.reserve(model, intent).release
    fleet.target.conclude(model, Result(release=number, state="passed"))
    fleet.target.move(model, lambda current: current.with_candidate(number))
    return number


def public(fleet: Fleet, model: str, aliases: Sequence[str] = (), repository: str = NOWHERE) -> int:
    number = candidate(fleet, model, aliases, repository)
    claim(fleet.target, model, aliases)
    fleet.target.move(model, lambda current: current.promoted(number))
    return number


def answering(fleet: Fleet, **models: int) -> None:
    """A node that answers with these releases by the public names."""
    fleet.target.report(
        NodeReport(
            node="one",
            target=fleet.target.name,
            http="",
            grpc="",
            triton_pid=1,
            memory_total_bytes=1,
            memory_available_bytes=1,
            models={
                model: ModelReport(public=number, releases={number: ReleaseReport(state="ready")})
                for model, number in models.items()
            },
        )
    )


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(UsageError) as refused:
        call()
    return refused.value.code


def test_the_second_model_is_refused_by_name(fleet: Fleet) -> None:
    public(fleet, "first", ["ensemble"])
    candidate(fleet, "second", ["ensemble", "tensorrt_llm_bls"])
    for look in (claim, require_free):
        with pytest.raises(UsageError) as refused:
            look(fleet.target, "second", ["tensorrt_llm_bls", "ensemble"])
        assert refused.value.code == "alias-taken"
        assert "'ensemble'" in refused.value.message and "first has" in refused.value.message
        assert "serving.aliases" in refused.value.hint
    claim(fleet.target, "second", ["tensorrt_llm_bls"])  # none of what was refused was taken, and this is free
    claim(fleet.target, "first", ["ensemble"])


def test_an_alias_is_free_once_its_model_is_withdrawn_or_asks_no_more(fleet: Fleet) -> None:
    public(fleet, "first", ["ensemble"])
    public(fleet, "first")
    candidate(fleet, "second", ["ensemble"])
    claim(fleet.target, "second", ["ensemble"])
    fleet.target.move("second", lambda current: current.model_copy(update={"public": None, "candidates": ()}))
    candidate(fleet, "third", ["ensemble"])
    claim(fleet.target, "third", ["ensemble"])
    assert code_of(lambda: claim(fleet.target, "second", ["ensemble"])) == "alias-taken"


def test_a_rollback_to_a_release_that_asks_moves_nothing_while_another_model_has_the_alias(fleet: Fleet) -> None:
    real = str(fleet.rebuild("first").repository)
    asking, plain = public(fleet, "first", ["ensemble"], real), public(fleet, "first")
    other = public(fleet, "second", ["ensemble"], real)
    answering(fleet, first=plain, second=other)
    before = fleet.target.current("first")
    assert code_of(lambda: roll_back(fleet.target, "first")) == "alias-taken"
    assert fleet.target.current("first") == before
    fleet.target.move("second", lambda current: current.model_copy(update={"public": None}))
    answering(fleet, first=asking)
    assert roll_back(fleet.target, "first").release == asking
    assert fleet.target.current("first")[0].candidates == ()
    assert code_of(lambda: promote(fleet.target, "second", other)) == "alias-taken"


def test_of_many_that_ask_at_once_one_has_it(fleet: Fleet) -> None:
    models = [f"m{number}" for number in range(3)]
    for _ in range(3):
        for model in models:
            public(fleet, model)
        together = Barrier(len(models))

        def ask(model: str, together: Barrier = together) -> bool:
            together.wait()
            number = candidate(fleet, model, ["ensemble"])
            try:
                claim(fleet.target, model, ["ensemble"])
                return True
            except UsageError:
                fleet.target.move(model, lambda current: current.without_candidates(number))
                return False

        with ThreadPoolExecutor(len(models)) as pool:
            assert sum(pool.map(ask, models)) == 1
