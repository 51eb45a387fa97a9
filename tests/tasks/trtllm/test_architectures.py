"""Twenty models that people serve, planned at every version: the converter of each, or a refusal by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version
from pydantic import ValidationError

from deployments.cli.plan import preview
from infra.errors import SpecError, UsageError
from tasks.kinds.choice import engine_kind
from tasks.models.overrides import override
from tasks.trtllm.architectures import ARCHITECTURES, ArchitectureUnfit, check_llm_api, engine_architecture
from tasks.trtllm.releases import LAST, in_span
from tasks.trtllm.tools.options import CONVERTERS, span
from tasks.weights.config import read_facts
from tests.tasks.trtllm.model_files import ENGINES, LLM_API_ALONE, SERVED, Served, model_file


def planned(served: Served, version: str, **recipe: Any) -> str:
    """The script that would make the checkpoint, or the refusal."""
    try:
        command = engine_kind(model_file(served, version, **recipe)).commands()[0]
    except ValidationError as error:
        (detail,) = error.errors()
        return detail["msg"]
    assert command[0] == "python3"
    return command[1]


def moved_to_llm_api(served: Served, version: str) -> str:
    """The kind that `plan --runtime VERSION` moves an engine to, or the refusal."""
    last = next(each for each in reversed(ENGINES) if not served.engine or in_span(Version(each), served.engine))
    engine = model_file(served, last) if served.engine else model_file(served, version, kind="llmapi")
    try:
        return preview(engine, {}, version).model.kind
    except SpecError as error:
        return error.message


def test_each_model_at_each_version_gets_its_own_converter_or_a_refusal_by_name() -> None:
    converters = refusals = 0
    for served in SERVED:
        for version in ENGINES:
            found = planned(served, version)
            if served.engine and in_span(Version(version), served.engine):
                folder = f"models/{served.moved}" if in_span(Version(version), "0.20") else served.folder
                assert found == f"examples/{folder}/convert_checkpoint.py", (served.name, version)
                converters += 1
            else:
                assert served.architecture in found, (served.name, version)
                assert f"{version}" in found or "no version" in found
                if served.engine and served.variant is None:
                    assert f"kind trt-engine does from {served.engine} to {LAST}" in found
                refusals += 1
    assert (converters, refusals) == (210, 130) and converters + refusals == len(SERVED) * len(ENGINES)


def test_each_model_moves_to_the_llm_api_where_that_loads_it() -> None:
    kinds = refusals = 0
    for served in SERVED:
        for version in LLM_API_ALONE:
            if served.llm_api:
                assert moved_to_llm_api(served, version) == "llmapi", (served.name, version)
                kinds += 1
            else:
                found = moved_to_llm_api(served, version)
                assert f"the LLM API of TensorRT-LLM {version} does not load {served.architecture}" in found
                refusals += 1
    assert (kinds, refusals) == (26, 14)


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0", "1.2.1"])
def test_the_llm_api_of_a_version_with_both_kinds(version: str) -> None:
    for served in SERVED:
        loads = bool(served.llm_api) and in_span(Version(version), served.llm_api)
        try:
            model_file(served, version, kind="llmapi")
        except ValidationError as error:
            assert not loads and served.architecture in str(error), served.name
        else:
            assert loads, served.name


@pytest.mark.parametrize(
    ("architecture", "what"),
    [
        ("BertModel", "is an encoder"),
        ("Qwen3ForTextEmbedding", "is an embedding model"),
        ("SiglipVisionModel", "is a vision model"),
        ("T5ForConditionalGeneration", "is an encoder with a decoder"),
        ("LlamaForSequenceClassification", "is a model that judges"),
        ("MistralModel", "without a head that predicts tokens"),
        ("Qwen2ForCasualLM", "did you mean Qwen2ForCausalLM?"),
        ("SomethingElse", "is known to take SomethingElse"),
    ],
)
def test_what_writes_no_text_and_what_nobody_knows_is_refused_by_name(architecture: str, what: str) -> None:
    for kind in ("trt-engine", "llmapi"):
        with pytest.raises(ValidationError) as caught:
            model_file(Served("other", "a/b", architecture), "1.2.1", kind=kind)
        assert architecture in str(caught.value) and what in str(caught.value)


@pytest.mark.parametrize("architecture", ["FooForCausalLM", "Glm4ForCausalLM"])
def test_a_name_is_not_near_by_its_ending(architecture: str) -> None:
    with pytest.raises(ArchitectureUnfit) as caught:
        check_llm_api(architecture, Version("1.2.1"), None)
    assert architecture in str(caught.value) and "did you mean" not in str(caught.value)


def test_autodeploy_is_asked_for_by_name() -> None:
    check_llm_api("DeepseekV2ForCausalLM", Version("1.3.0rc24"), "_autodeploy")
    with pytest.raises(ArchitectureUnfit) as caught:
        check_llm_api("DeepseekV2ForCausalLM", Version("1.3.0rc24"), None)
    assert "`llm_args: {backend: _autodeploy}` does from 1.3 on" in str(caught.value)


def test_an_engine_does_not_move_to_an_llm_api_that_cannot_load_it() -> None:
    falcon = next(served for served in SERVED if served.name == "falcon")
    with pytest.raises(SpecError) as caught:
        override(model_file(falcon, "1.2.1"), recipe={"kind": "llmapi"}, tensorrt_llm="1.3.0rc24")
    assert "kind trt-engine does from 0.8 to 1.2, kind llmapi never does" in caught.value.message


def test_every_architecture_has_a_converter_that_is_known_from_its_first_version_on() -> None:
    for name, known in ARCHITECTURES.items():
        assert bool(known.converter) == bool(known.engine), name
        assert known.engine or known.pytorch or known.autodeploy, name
        if known.engine:
            assert engine_architecture(name, Version(known.engine)) is known
            for option in (*known.gives, *filter(None, [known.variant])):
                assert option in CONVERTERS[known.converter], (name, option)
            where = [span(known.converter, each, Version(known.engine)) for each in ("--model_dir", "--model-dir")]
            assert any(where), name


SMALL: dict[str, Any] = {"max_batch_size": 4}


@pytest.mark.parametrize(
    ("name", "version", "recipe", "words"),
    [
        ("qwen2.5", "0.10.0", {}, "--qwen_type qwen2"),
        ("qwen2.5", "0.16.0", {"quantization": "int8_wo"}, "--use_weight_only"),
        ("phi-3", "0.10.0", {}, "--model_type Phi-3-mini-4k-instruct"),
        ("nemotron", "0.16.0", {"tp_size": 2}, "--gpt_variant nemotron"),
        ("gemma-2", "0.16.0", {"tp_size": 2}, "--model-dir model --output-model-dir checkpoint"),
        ("gemma-2", "0.16.0", {"tp_size": 2}, "--world-size 2"),
        ("gemma", "0.9.0", {"quantization": "int4_wo"}, "--use-weight-only-with-precision int4"),
        ("gemma", "1.2.1", {"quantization": "int4_wo"}, "--use_weight_only --weight_only_precision int4"),
        ("gemma", "0.9.0", {}, "--ckpt-type hf"),
        ("glm-4", "0.12.0", {}, "--chatglm_version glm-4"),
        ("glm-4", "0.13.0", {}, "--chatglm_version glm4"),
        ("mixtral", "0.16.0", {"tp_size": 2, "moe_tp_size": 1, "moe_ep_size": 2}, "--moe_tp_size 1 --moe_ep_size 2"),
        ("qwen3-moe", "1.0.0", {"tp_size": 2, "moe_tp_size": 1, "moe_ep_size": 2}, "--moe_ep_size 2"),
        ("internlm2", "0.16.0", {"extra_args": {"convert": ["--use_parallel_embedding"]}}, "--use_parallel_embedding"),
    ],
)
def test_a_converter_gets_its_own_words(name: str, version: str, recipe: dict[str, Any], words: str) -> None:
    served = next(each for each in SERVED if each.name == name)
    command = engine_kind(model_file(served, version, **recipe)).commands()[0]
    assert f" {words} " in f" {' '.join(command)} "


@pytest.mark.parametrize(
    ("name", "version", "recipe", "facts"),
    [
        ("qwen2.5", "0.16.0", {"kv_cache_dtype": "fp8"}, ("--fp8_kv_cache", "converter of qwen")),
        ("qwen2.5", "0.10.0", {"tp_size": 2, "moe_tp_size": 1, "moe_ep_size": 2}, ("--moe_tp_size", "0.11 to 1.2")),
        ("gemma-2", "0.16.0", {"pp_size": 2}, ("--pp_size", "converter of gemma")),
        ("phi-3", "0.10.0", {"tp_size": 2}, ("--tp_size", "converter of phi", "0.11 to 1.2")),
        ("phi-3", "0.16.0", {"pp_size": 2}, ("Phi3ForCausalLM", "one pipeline stage")),
        ("glm-4", "0.13.0", {"variant": None}, ("ChatGLMModel", "variant is one of glm4, chatglm3, chatglm2")),
        ("glm-4", "0.11.0", {}, ("ChatGLMModel", "0.11.0", "no variant glm4")),
        ("falcon", "0.16.0", {"variant": "glm4"}, ("FalconForCausalLM", "asks for none")),
        ("phi-3", "0.10.0", {"quantization": "int8_wo"}, ("--use_weight_only", "converter of phi", "0.11 to 1.2")),
        ("qwen2.5", "0.16.0", {"extra_args": {"convert": ["--qwen_type", "qwen"]}}, ("--qwen_type", "from the recipe")),
        ("qwen3", "1.2.1", {"extra_args": {"convert": ["--grup_size", "64"]}}, ("did you mean --group_size?",)),
        (
            "qwen2.5",
            "0.16.0",
            {"extra_args": {"convert": ["--embedding_sharding_dim=2"]}},
            ("--embedding_sharding_dim", "takes 0, 1, not '2'"),
        ),
        ("llama-3", "0.16.0", {"tp_size": 16}, ("16 GPUs", "one host")),
        ("llama-3", "0.16.0", {"plugins": {"multiple_profiles": 1}}, ("enable, disable", "'1'")),
    ],
)
def test_what_a_converter_lacks_is_an_error_of_the_file(
    name: str, version: str, recipe: dict[str, Any], facts: tuple[str, ...]
) -> None:
    served = next(each for each in SERVED if each.name == name)
    found = planned(served, version, **recipe)
    assert all(fact in found for fact in facts), found


def test_an_option_of_some_converter_may_stand_in_a_file_that_names_no_architecture() -> None:
    llama = next(served for served in SERVED if served.name == "llama-3")
    for word, fits in (("--load_by_shard", True), ("--nemo_ckpt_path=x", True), ("--unheard_of", False)):
        found = planned(llama, "0.16.0", architecture=None, extra_args={"convert": [word]})
        assert found.endswith("convert_checkpoint.py") == fits, found


def test_integers_among_the_plugins() -> None:
    llama = next(served for served in SERVED if served.name == "llama-3")
    recipe = {"plugins": {"opt_num_tokens": 64, "max_prompt_embedding_table_size": 512, "multiple_profiles": True}}
    build = engine_kind(model_file(llama, "0.16.0", **recipe)).commands()[1]
    for words in ("--opt_num_tokens 64", "--max_prompt_embedding_table_size 512", "--multiple_profiles enable"):
        assert f" {words} " in f" {' '.join(build)} "


def test_a_named_llama_is_the_checkpoint_that_was_made_before_names(tmp_path: Path) -> None:
    from tasks.store.identity import Identity

    def digest(served: Served, **recipe: Any) -> str:
        kind = engine_kind(model_file(served, "0.16.0", **recipe))
        return kind.checkpoint_identity({"snapshot": Identity.of("fetch", 1, inputs={}, fields={})}).digest

    llama, qwen = SERVED[:2]
    assert digest(llama) == digest(llama, architecture=None) == digest(qwen, architecture=None)
    assert digest(qwen) != digest(llama) and digest(qwen, quantization="fp8") == digest(llama, quantization="fp8")


@pytest.mark.parametrize(
    ("name", "version", "taken"),
    [
        ("qwen2.5", "0.12.0", "--use_weight_only --weight_only_precision int4_gptq --per_group"),
        ("qwen2.5", "0.16.0", "--model_dir model --output_dir checkpoint"),
        ("falcon", "0.12.0", ""),
        ("falcon", "0.16.0", ""),
        ("gemma-2", "1.2.1", ""),
    ],
)
def test_weights_that_are_quantized_already_need_a_converter_that_knows_how(
    name: str, version: str, taken: str
) -> None:
    served = next(each for each in SERVED if each.name == name)
    quantized = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}
    config = {"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 8, "hidden_size": 64}
    config |= {"architectures": [served.architecture], "quantization_config": quantized}
    kind = engine_kind(model_file(served, version))
    facts = read_facts({"config.json": json.dumps(config).encode()})
    if taken:
        assert f" {taken} " in f" {' '.join(kind.commands(facts)[0])} "
        return
    with pytest.raises(UsageError) as caught:
        kind.require_weights(facts)
    assert caught.value.code == "weights-quantized" and f"examples/{served.folder}/" in caught.value.message
