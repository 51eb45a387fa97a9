"""The gateway's figures, apart from its servers."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from deployments.gateway.figures import Figures
from deployments.gateway.heard import Heard
from deployments.gateway.messages import InferResponse, infer_response

_utilities: Any = importlib.import_module("tritonclient.utils")


def response(**outputs: int | list[str]) -> InferResponse:
    made = infer_response()
    for name, value in outputs.items():
        if isinstance(value, int):
            made.outputs.add(name=name, datatype="INT32", shape=[1, 1])
            made.raw_output_contents.append(np.array([value], np.int32).tobytes())
        else:
            made.outputs.add(name=name, datatype="BYTES", shape=[len(value)])
            texts = np.array([text.encode() for text in value], np.object_)
            made.raw_output_contents.append(_utilities.serialize_byte_tensor(texts).item())
    return made


def test_an_answer_is_timed_by_its_tokens_and_not_by_responses_without_any() -> None:
    heard = Heard(begun=0.0)
    heard.note(response(text_output=[""], num_output_tokens=0, num_input_tokens=5))
    assert heard.first_at is None
    for _ in range(2):
        heard.note(response(text_output=["word"], num_output_tokens=2, num_input_tokens=5))
    first, last = heard.first_at, heard.last_at
    assert first is not None
    heard.note(response(text_output=[""], num_output_tokens=0, finish_reason=["length"]))
    assert (heard.tokens_in, heard.tokens_out, heard.reasons) == (5, 4, ["length"])
    assert heard.whole_at is not None and heard.last_at == last and heard.gap == (last - first) / 2


def test_reasons_of_an_end_are_those_of_the_contract() -> None:
    heard = Heard(begun=0.0)
    heard.note(response(text_output=["a", "b", "c"], finish_reason=["stop", "made up", "stop_words"]))
    assert heard.reasons == ["stop", "stop_words"]


@pytest.mark.parametrize("kept_s", [0.0, 60.0])
def test_figures_of_a_release_go_after_a_while_when_no_node_has_it(kept_s: float) -> None:
    figures = Figures(kept_s)
    for number in ("1", "2"):
        heard = Heard(begun=0.0, asked_at=1.0)
        heard.note(response(text_output=["a"], num_output_tokens=1, num_input_tokens=1, finish_reason=["stop"]))
        figures.ended("tiny", number, "ok")
        figures.heard("tiny", number, heard)
    figures.ended("tiny", "", "model-not-ready")
    figures.ended("", "", "key-missing")
    figures.state({"tiny": 1}, {("tiny", "2")}, stale=False)
    text = figures.text().decode()
    assert ('release="1"' in text) == (kept_s > 0)
    assert (
        'outcome="ok",release="2"' in text and 'outcome="model-not-ready"' in text and 'outcome="key-missing"' in text
    )
    assert 'enginehouse_gateway_nodes_ready{model="tiny"} 1.0' in text
    figures.state({}, (), stale=True)
    text = figures.text().decode()
    assert ('model="tiny"' in text) == (kept_s > 0) and 'outcome="key-missing"' in text
    assert "enginehouse_gateway_state_stale 1.0" in text


def test_an_answer_that_no_node_was_asked_for_is_none() -> None:
    figures = Figures()
    figures.heard("tiny", "", Heard(begun=0.0))
    assert 'model="tiny"' not in figures.text().decode()
