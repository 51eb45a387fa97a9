"""The reference of a checkpoint of Hugging Face, held against what transformers itself says next."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from tasks.gates.agreement.passages import Passage
from tasks.gates.agreement.reference import places
from tasks.kinds.reference import TransformersReference
from tasks.models.gate_specs.agreement import AgreementSpec
from tasks.models.spec import Model
from tasks.steps.plan import Plan
from tasks.steps.reference import PlannedReference, read_reference
from tasks.store.identity import Identity
from tests.tasks.serving.small_torch import write_model

pytestmark = pytest.mark.slow
for _package in ("torch", "peft"):
    pytest.importorskip(_package, reason="the extra `transformers` is not installed: make test-reference")

PASSAGES = tuple(Passage(f"p{number}", f"The answer to {number} comes after a few words.") for number in range(3))


def model(**recipe: Any) -> Model:
    return Model.model_validate(
        {
            "name": "tiny",
            "source": {"uri": "hf://some/llama@main"},
            "recipe": {"kind": "transformers", **recipe},
            "serving": {"slots": 4, "context_tokens": 256, "chat_template": False},
            "prompts": [{"name": "count", "text": "Count.", "max_tokens": 4, "expect": {"min_tokens": 1}}],
        }
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_says_what_one_plain_pass_in_the_type_of_the_weights_says(dtype: str, tmp_path: Path) -> None:
    checkpoint = write_model(tmp_path / "model", "Llama", dtype=dtype)
    source = TransformersReference.of(model(dtype="float16"), on_gpu=False)
    plan = Plan.of(source.model, Identity({"source": "tiny"}))
    asked = AgreementSpec(positions=3, reference="always")
    assert source.lacking() == ""
    said = read_reference(PlannedReference(asked, PASSAGES, source, plan), checkpoint)
    assert said.kind == "transformers"
    expected = _expected(checkpoint, [prefix for _, prefix in places(PASSAGES, 3)])
    assert [each.text for each in said.tokens] == expected and len(set(expected)) > 1


def _expected(checkpoint: Path, texts: list[str]) -> list[str]:
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    plain = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    found: list[str] = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.inference_mode():
            best = plain(ids).logits[0, -1].argmax()
        before, after = (tokenizer.decode(each) for each in (ids[0], [*ids[0].tolist(), best.item()]))
        found.append(after.removeprefix(before))
    return found
