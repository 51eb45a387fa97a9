"""What is read of a card, and that a hostile one says nothing."""

from __future__ import annotations

import pytest

from tasks.export.licence import spdx
from tasks.export.model_card import ModelCard, parse

CONFIG = b'{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}'


def test_a_card_of_the_hub() -> None:
    head = b"license: other\nlicense_name: qwen\nbase_model:\n- a/b\n- c/d\ndatasets: e/f\ntags: [x]\n"
    readme = b"---\n" + head + b"---\nText\n---\n"
    assert parse(readme, CONFIG) == ModelCard("qwen", ("a/b", "c/d"), ("e/f",), "Qwen2ForCausalLM", "qwen2")
    assert parse(b"", b"") == ModelCard()


@pytest.mark.parametrize(
    "readme",
    [
        b"# no head",
        b"---\nlicense: mit\n",
        b"---\n[license\n---\n",
        b"---\n- license\n---\n",
        b"---\nlicense: [[x]]\n---\n",
        b"---\nlicense: !!python/name:os.system\n---\n",
        b"---\n" + b"[" * 3_000 + b"\n---\n",
        b"---\nlicense: mit\nx: " + b"x" * (1 << 15) + b"\n---\n",
        b'---\nlicense: "a\\nb"\n---\n',
        b"\xff\xfe",
    ],
)
def test_what_is_no_card_says_nothing(readme: bytes) -> None:
    assert parse(readme, b"[") == parse(readme, b"[" * 100_000) == ModelCard()


def test_licences_have_the_names_of_spdx() -> None:
    named = {"apache-2.0": "Apache-2.0", "mit": "MIT", "cc-by-nc-4.0": "CC-BY-NC-4.0"}
    assert {licence: spdx(licence) for licence in named} == named
    for licence in ("llama3", "other", "", "mit or apache-2.0", "LicenseRef-x", "-"):
        assert spdx(licence) == ""
