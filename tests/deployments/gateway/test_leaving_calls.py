"""Requests that nobody waits for any more, on nodes whose models end them by their ids."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from deployments.gateway import leaving
from tests.deployments.gateway.house import MODEL, House, house, until
from tests.deployments.gateway.test_grpc_door import Stream, exceptions, inputs, triton


@pytest.fixture
def served() -> Iterator[House]:
    with house() as made:
        made.add_node("one", cancels=True)
        made.public()
        yield made


def ending(served: House) -> set[Any]:
    """The calls that the gateway has answered and not yet let go of."""
    return served.front._channels._ending  # pyright: ignore[reportPrivateUsage]


def test_a_client_that_leaves_ends_its_own_request_by_its_id(served: House) -> None:
    one = served.nodes["one"]
    leaver, client = (triton.InferenceServerClient(served.grpc) for _ in range(2))
    stayer = Stream(client)
    stream = Stream(leaver)
    leaver.async_stream_infer(MODEL, inputs("count 1000 0.01"))
    assert stream.texts(1) == ["0 "]
    client.async_stream_infer(MODEL, inputs("count 20 0.02"))
    until(lambda: len(one.asked) == 2, "second request")
    leaver.stop_stream(cancel_requests=True)
    assert until(lambda: one.finished[:1] == ["count 1000 0.01"], "end of the request") < 1
    leaver.close()
    assert stayer.texts(20) == [f"{number} " for number in range(20)]
    client.close()
    ids = [request.parameters["cancellation_id"].string_param for request in one.requests[:2]]
    assert one.cancelled_ids and set(one.cancelled_ids) == {ids[0]} and ids[0] != ids[1]
    until(lambda: not one.running, "end")
    assert not one.cancelled  # no call was


def test_a_deadline_ends_a_request_by_its_id(served: House) -> None:
    one = served.nodes["one"]
    with (
        triton.InferenceServerClient(served.grpc) as client,
        pytest.raises(exceptions.InferenceServerException, match=r"Deadline|in time"),
    ):
        client.infer(MODEL, inputs("count 1 0.8"), client_timeout=0.3)
    until(lambda: one.finished == ["count 1 0.8"], "end of the request")
    assert one.cancelled_ids and not one.cancelled


def test_a_request_that_its_model_does_not_end_is_ended_by_its_call(
    served: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaving, "_SECONDS", 0.5)
    one = served.nodes["one"]
    one.deaf = True
    with served.client() as client, pytest.raises(Exception, match="timed out"):
        client.post(f"/v2/models/{MODEL}/generate", json={"text_input": "count 1 30", "max_tokens": 4}, timeout=0.2)
    until(lambda: one.cancelled == ["count 1 30"], "cancelled call")
    assert len(one.cancelled_ids) > 1 and len(set(one.cancelled_ids)) == 1


def test_an_answer_that_has_ended_is_not_cancelled(served: House) -> None:
    one = served.nodes["one"]
    for number in range(20):
        assert served.generate(f"done-{number}").status_code == 200
    until(lambda: not ending(served), "end of the calls")
    assert not one.cancelled and not one.cancelled_ids and len(one.finished) == 20


def test_a_client_names_no_id_of_another(served: House) -> None:
    one = served.nodes["one"]
    with served.client() as client:
        body = {"text_input": "hello", "max_tokens": 4, "cancellation_id": "of another"}
        assert client.post(f"/v2/models/{MODEL}/generate", json=body).status_code == 200
    assert one.requests[0].parameters["cancellation_id"].string_param not in ("", "of another")


def test_who_waits_for_the_end_of_a_call_can_be_cancelled() -> None:
    class Silent:
        """A call of which nothing comes."""

        async def read(self) -> None:
            await asyncio.Event().wait()

        def cancelled(self) -> bool:
            return False

    async def cancelled() -> bool:
        waiting = asyncio.ensure_future(leaving.Reader(Silent()).drain())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait((waiting,), timeout=5)
        return waiting.cancelled()

    assert asyncio.run(cancelled())
