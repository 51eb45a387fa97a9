"""What Triton's interface must never be asked."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Generator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.serving.contract import Answer, GenerationRequest, Tensor


class Sender:
    """As Triton's: what it looks at is gone with the last response. Triton 2.51 dies of that."""

    def __init__(self) -> None:
        self.responses: list[Any] = []
        self.ended = False

    def send(self, response: Any = None, flags: int = 0) -> None:
        assert not self.ended
        self.responses.append(response)
        self.ended = flags == 1

    def is_cancelled(self) -> bool:
        assert not self.ended
        return True


class TritonError:
    INTERNAL = 1

    def __init__(self, message: str, code: int) -> None:
        self.message = message


def tensor(name: str, value: Tensor) -> tuple[str, Any]:
    return name, value.tolist()


def response(tensors: Sequence[tuple[str, Any]] = (), error: TritonError | None = None) -> dict[str, Any]:
    return dict(tensors) if error is None else {"error": error.message}


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Generator[Any]:
    triton = SimpleNamespace(
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=1, Tensor=tensor, InferenceResponse=response, TritonError=TritonError
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton)
    monkeypatch.delitem(sys.modules, "tasks.serving.model", raising=False)
    yield importlib.import_module("tasks.serving.model")
    sys.modules.pop("tasks.serving.model", None)


@pytest.mark.parametrize("fails", [False, True])
def test_an_answer_that_has_ended_is_not_asked_whether_its_client_is_there(model: Any, fails: bool) -> None:
    reply = model.TritonReply(Sender(), [GenerationRequest("a", stream=True)], 2)
    reply.send([Answer("a")], final=False)
    assert reply.is_cancelled()
    if fails:
        reply.fail("internal", "broken")
    else:
        reply.send([Answer("b")], final=True)
    assert not reply.is_cancelled()


def test_the_indexes_of_one_row_are_in_each_response(model: Any) -> None:
    sender = Sender()
    reply = model.TritonReply(sender, [GenerationRequest("a", stream=True)], 2)
    for text in "ab":
        reply.send([Answer(text)], final=False)
    zero = {"batch_index": [[0]], "sequence_index": [[0]]}
    assert sender.responses == [{"text_output": [text.encode()], **zero} for text in "ab"]
