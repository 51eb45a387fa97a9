"""Which version and kind serves which speculation, and in what words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from packaging.version import Version
from pydantic import ValidationError

from tasks.models.spec import Model
from tasks.trtllm.limits import EngineLimits
from tasks.trtllm.speculation import Speculation, backend_speculation, llm_speculation

DRAFT = {"mode": "draft_tokens_external", "max_draft_len": 5, "source": "hf://some/draft@main"}
MEDUSA = {"mode": "medusa", "max_draft_len": 7, "source": "hf://some/heads@main"}
EAGLE = {**MEDUSA, "mode": "eagle"}
LOOKAHEAD = {"mode": "lookahead_decoding", "max_draft_len": 15}


def model(kind: str, version: str, speculation: dict[str, Any] | None, **recipe: Any) -> Model:
    runtime = {"tensorrt_llm": version, "gpu": "NVIDIA H200", "arch": "sm90", "gpus": 1}
    return Model.model_validate(
        {
            "name": "tiny",
            "source": {"uri": "hf://some/llama@main"},
            "recipe": {"kind": kind, "runtime": runtime, "speculation": speculation, **recipe},
            "prompts": [{"name": "count", "text": "Count.", "max_tokens": 4, "expect": {"min_tokens": 1}}],
        }
    )


@pytest.mark.parametrize(
    ("kind", "version", "speculation"),
    [
        ("trt-engine", "0.10.0", DRAFT),
        ("trt-engine", "1.2.1", DRAFT),
        ("trt-engine", "0.10.0", MEDUSA),
        ("trt-engine", "0.16.0", EAGLE),
        ("trt-engine", "1.2.1", {**EAGLE, "choices": [[0], [0, 0], [1]]}),
        ("trt-engine", "0.19.0", LOOKAHEAD),
        ("llmapi", "1.0.0", DRAFT),
        ("llmapi", "1.4.0", EAGLE),
    ],
)
def test_what_a_version_serves_is_taken(kind: str, version: str, speculation: dict[str, Any]) -> None:
    found = model(kind, version, speculation)
    assert (found.draft is None) == ("source" not in speculation)


@pytest.mark.parametrize(
    ("kind", "version", "speculation", "facts"),
    [
        ("trt-engine", "0.9.0", MEDUSA, ("medusa", "0.9.0", "trt-engine of 0.10 to 1.2 does")),
        ("trt-engine", "0.15.0", EAGLE, ("trt-engine of 0.16 to 1.2 and llmapi of 1.0 and later do",)),
        ("trt-engine", "0.18.2", LOOKAHEAD, ("trt-engine of 0.19 to 1.2 does",)),
        ("llmapi", "1.3.0", MEDUSA, ("medusa", "kind llmapi", "trt-engine of 0.10 to 1.2 does")),
        ("llmapi", "1.2.1", LOOKAHEAD, ("trt-engine of 0.19 to 1.2 does",)),
        ("trt-engine", "1.2.1", {**DRAFT, "mode": "explicit_draft_tokens"}, ("no kind does", "medusa and eagle")),
        ("trt-engine", "0.12.0", {"mode": "medusa", "max_draft_len": 63}, ("`source` names the heads of Medusa",)),
        ("trt-engine", "0.12.0", {"mode": "draft_tokens_external", "max_draft_len": 4}, ("the draft model",)),
        ("trt-engine", "0.19.0", {**LOOKAHEAD, "source": "hf://a/b@main"}, ("remove `source`",)),
        ("trt-engine", "0.19.0", {**LOOKAHEAD, "window_size": 7, "ngram_size": 7}, ("guess 65",)),
        ("llmapi", "1.2.1", {**EAGLE, "choices": [[0]]}, ("choices are of Medusa and Eagle in kind trt-engine",)),
        ("trt-engine", "0.12.0", {**MEDUSA, "choices": [[0], [1, 0]]}, ("[1, 0] hangs on no other path",)),
        ("trt-engine", "0.12.0", {**MEDUSA, "max_draft_len": 1, "choices": [[0], [1]]}, ("2 choices are more",)),
        ("trt-engine", "0.12.0", {**DRAFT, "source": "pip://some@1.0/a.bin"}, ("pip:// names one file",)),
        ("trt-engine", "0.12.0", {**MEDUSA, "trust": ["pickle"]}, ("a commit of 40 hex digits",)),
    ],
)
def test_what_leads_nowhere_is_refused_with_what_would_do(
    kind: str, version: str, speculation: dict[str, Any], facts: tuple[str, ...]
) -> None:
    with pytest.raises(ValidationError) as caught:
        model(kind, version, speculation)
    (detail,) = caught.value.errors()
    assert "recipe" in detail["loc"] and all(fact in detail["msg"] for fact in facts), detail["msg"]


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"max_beam_width": 2}, "beam search checks no guesses"),
        ({"max_num_tokens": 512}, "raise max_num_tokens to 4096"),
        ({"paged_context_fmha": False}, "compute the whole prompt anew"),
    ],
)
def test_a_draft_model_asks_much_of_its_engine(changes: dict[str, Any], fact: str) -> None:
    with pytest.raises(ValidationError, match=fact):
        model("trt-engine", "1.2.1", DRAFT, **changes)


def test_two_ways_to_say_the_same_are_refused() -> None:
    also = {"speculative_config": {"decoding_type": "NGram", "max_draft_len": 4}}
    with pytest.raises(ValidationError, match=r"follows from recipe\.speculation"):
        model("llmapi", "1.2.1", DRAFT, llm_args=also)


@pytest.mark.parametrize(("version", "kind"), [("1.0.0", "Eagle"), ("1.2.1", "DraftTarget"), ("1.4.0", "PARD")])
def test_weights_that_nothing_would_fetch_are_refused(version: str, kind: str) -> None:
    arguments = {"speculative_config": {"decoding_type": kind, "max_draft_len": 4}}
    with pytest.raises(ValidationError, match=f"{kind} needs weights, which nothing would fetch"):
        model("llmapi", version, None, llm_args=arguments)


def test_what_guesses_without_the_recipe_has_no_path_to_weights() -> None:
    """The node decides where they lie, and nothing would fetch them."""
    with pytest.raises(ValidationError, match="unknown to SpeculativeConfig"):
        Model.model_validate(
            {
                **model("llmapi", "1.2.1", DRAFT).model_dump(by_alias=True),
                "recipe": {
                    "kind": "llmapi",
                    "runtime": {"tensorrt_llm": "1.2.1", "gpu": "NVIDIA H200", "arch": "sm90", "gpus": 1},
                    "llm_args": {"speculative_config": {"decoding_type": "AUTO", "speculative_model_dir": "/a"}},
                },
            }
        )


@pytest.mark.parametrize(
    ("version", "mode", "given", "parameters"),
    [
        ("0.9.0", "medusa", None, {}),
        ("0.10.0", "medusa", MEDUSA, {"decoding_mode": "medusa"}),
        (
            "0.16.0",
            "eagle",
            {**EAGLE, "choices": [[0], [0, 0], [1]]},
            {"decoding_mode": "eagle", "eagle_choices": "{0}, {0, 0}, {1}"},
        ),
        (
            "0.19.0",
            "lookahead",
            {**LOOKAHEAD, "window_size": 3},
            {
                "decoding_mode": "lookahead",
                "lookahead_window_size": "3",
                "lookahead_ngram_size": "3",
                "lookahead_verification_set_size": "4",
            },
        ),
        ("1.2.1", "redrafter", None, {"decoding_mode": "redrafter"}),
        ("1.2.1", "", DRAFT, {}),
    ],
)
def test_the_backend_is_told_what_the_engine_was_built_for(
    version: str, mode: str, given: dict[str, Any] | None, parameters: dict[str, str]
) -> None:
    speculation = None if given is None else Speculation.model_validate(given)
    assert backend_speculation(Version(version), mode, speculation) == parameters


def test_an_engine_that_a_backend_cannot_decode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"does not serve lookahead: 0\.19 to 1\.2 do"):
        backend_speculation(Version("0.16.0"), "lookahead", None)


@pytest.mark.parametrize(
    ("version", "speculation", "arguments"),
    [
        ("1.0.0", DRAFT, {"decoding_type": "DraftTarget", "speculative_model_dir": "draft"}),
        ("1.2.1", EAGLE, {"decoding_type": "Eagle", "speculative_model_dir": "draft"}),
        ("1.3.0rc3", DRAFT, {"decoding_type": "Draft_Target", "speculative_model": "draft"}),
        ("1.4.0", EAGLE, {"decoding_type": "Eagle3", "speculative_model": "draft"}),
    ],
)
def test_the_llm_api_in_its_versions_words(
    version: str, speculation: dict[str, Any], arguments: dict[str, Any]
) -> None:
    given = Speculation.model_validate(speculation)
    assert llm_speculation(Version(version), given) == {**arguments, "max_draft_len": given.max_draft_len}


@pytest.mark.parametrize(
    ("architecture", "mode", "decoding"),
    [
        ("LlamaForCausalLM", 1, ""),
        ("LlamaForCausalLM", 2, ""),
        ("MedusaForCausalLM", None, "medusa"),
        ("MedusaForCausalLM", 2, "medusa"),
        ("EagleForCausalLM", 32, "eagle"),
        ("LlamaForCausalLM", 8, "lookahead"),
        ("LlamaForCausalLM", "LOOKAHEAD_DECODING", "lookahead"),
        ("ReDrafterForLLaMALM", 16, "redrafter"),
    ],
)
def test_an_engines_own_config_says_how_it_decodes(architecture: str, mode: Any, decoding: str) -> None:
    config = {
        "pretrained_config": {
            "architecture": architecture,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "hidden_size": 64,
            "mapping": {"world_size": 1, "tp_size": 1, "pp_size": 1},
        },
        "build_config": {
            "max_batch_size": 4,
            "max_input_len": 64,
            "max_seq_len": 135,
            "max_beam_width": 1,
            "max_draft_len": 7,
            "plugin_config": {"tokens_per_block": 64},
            **({} if mode is None else {"speculative_decoding_mode": mode}),
        },
    }
    limits = EngineLimits.of(json.dumps(config), {"rank0.engine": 10})
    assert (limits.decoding_mode, limits.max_draft_len) == (decoding, 7)
