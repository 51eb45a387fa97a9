from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from infra.errors import SpecError, UsageError
from tasks.models.catalogue import catalogue_entry, catalogue_files, json_schema, load_catalogue, load_model
from tasks.models.overrides import override
from tasks.models.recipe import LlamaCppRecipe, TrtEngineRecipe
from tasks.models.spec import Model, Serving
from tests.tasks.models.mistakes import mistakes

CATALOGUE = Path(__file__).parents[3] / "deployments" / "models"
SHA256 = "ab" * 32
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def entry(**changes: Any) -> dict[str, Any]:
    document: dict[str, Any] = {
        "name": "tiny",
        "source": {"uri": "hf://org/repo@main"},
        "recipe": {"kind": "llamacpp"},
        "prompts": [{"name": "one", "text": "Hello", "max_tokens": 4, "expect": {"min_tokens": 1}}],
    }
    return {**document, **changes}


GPUS = {"sm80": "NVIDIA A100-SXM4-80GB", "sm89": "NVIDIA L40S", "sm100": "NVIDIA B200"}


def engine(**changes: Any) -> dict[str, Any]:
    runtime = {"tensorrt_llm": "1.2.1", "arch": "sm90", "gpus": 4, **changes.pop("runtime", {})}
    gpu = {"gpu": GPUS.get(str(runtime["arch"]), "NVIDIA H200")}
    return {"kind": "trt-engine", "runtime": {**gpu, **runtime}, **changes}


def prompt(**changes: Any) -> dict[str, Any]:
    return {"name": "one", "text": "Hello", "max_tokens": 4, "expect": {"min_tokens": 1}, **changes}


def write(folder: Path, document: Any, name: str = "tiny.yaml") -> Path:
    path = folder / name
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document, sort_keys=False))
    return path


def test_the_catalogue_loads() -> None:
    models = load_catalogue(CATALOGUE).models
    assert list(models) == ["llama3-70b-instruct", "llama3-8b-by-hand", "llama3-8b-instruct", "smollm2-135m"]
    assert isinstance(models["smollm2-135m"].recipe, LlamaCppRecipe)
    large = models["llama3-70b-instruct"].recipe
    assert isinstance(large, TrtEngineRecipe)
    assert (large.tp_size, large.runtime.compute_capability) == (4, 90)
    assert all(
        "How do I count to nine in French?" in [prompt.text for prompt in model.prompts] for model in models.values()
    )


def test_every_mistake_of_a_file_is_named_with_line_and_field(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """\
name: other
source: {uri: 'pip://a@1/b.gguf', trust: [python]}
recipe:
  kind: trt-engine
  runtime: {tensorrt_llm: 1.2.1, gpu: NVIDIA A10, arch: sm86, gpus: 1}
  quantization: fp8
  tp_size: 2
  tp_size: 2
  speed: fast
prompts:
  - name: a
    text: x
    max_tokens: 1
    expect:
      matches: '('
  - name: b
""",
    )
    with pytest.raises(SpecError) as caught:
        load_model(path)
    assert [line.strip() for line in caught.value.message.splitlines()[1:]] == [
        f"{path}:2: source.sha256: a pip:// source needs the sha256 of its wheel",
        f"{path}:2: source.trust: needs a pinned revision: a commit of 40 hex digits or a version of NGC in the uri, "
        "or a sha256",
        f"{path}:3: recipe.pp_size: tp_size 2 x pp_size 1 = 2 GPUs, and runtime.gpus is 1: one host serves a model",
        f"{path}:6: recipe.quantization: fp8 needs sm89 or later, and NVIDIA A10 is sm86",
        f"{path}:8: recipe.tp_size: is given before, in line 7",
        f"{path}:9: recipe.speed: is no field here: enginehouse schema model has them all",
        f"{path}:15: prompts.0.expect.matches: not a regular expression: "
        "missing ), unterminated subpattern at position 0",
        f"{path}:16: prompts.1.expect: is required",
        f"{path}:16: prompts.1.max_tokens: is required",
        f"{path}:16: prompts.1.text: is required",
    ]


def test_mistakes_are_told_in_the_words_of_the_file(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """\
nmae: a
name: A model
source: {uri: 'hf://a/b@main', includes: [x]}
recipe:
  kind: llmapi
  runtime: {tensorrt_llm: 1.2.1, gpu: NVIDIA L4, arch: sm89, gpus: one, gpu_memory: 3}
  quantisation: fp8
serving: {chat_template: maybe, defaults: {temprature: 1}}
targets: h200
gates: {agreement: {referense: auto}, mine: {gate: quality, max_second: 1}}
rollout: {strategy: canary, stepz: []}
prompts:
  - {name: a, text: 1, max_tokens: 1.5, expect: {contain: [x]}}
labels: [a]
""",
    )
    with pytest.raises(SpecError) as caught:
        load_model(path)
    places = [line.strip().removeprefix(f"{path}:") for line in caught.value.message.splitlines()[1:]]
    assert places == [
        "1: nmae: is no field here: did you mean 'name'?",
        "2: name: 'A model' does not have the form ^[a-z0-9][a-z0-9.-]*$",
        "3: source.includes: is no field here: did you mean 'include'?",
        "6: recipe.runtime.gpu_memory: is no field here: did you mean 'gpu_memory_bytes'?",
        "6: recipe.runtime.gpus: must be a whole number",
        "7: recipe.quantisation: is no field here: did you mean 'quantization'?",
        "8: serving.chat_template: must be true or false",
        "8: serving.defaults.temprature: is no field here: did you mean 'temperature'?",
        "9: targets: must be a list, such as [a, b]",
        "10: gates.agreement.referense: is no field here: did you mean 'reference'?",
        "10: gates.mine.max_second: is no field here: did you mean 'max_seconds'?",
        "11: rollout.stepz: is no field here: did you mean 'steps'?",
        "13: prompts.0.expect.contain: is no field here: did you mean 'contains'?",
        "13: prompts.0.max_tokens: must be a whole number",
        "13: prompts.0.text: must be text: put it in quotes",
        "14: labels: must be a table of names and values",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name: [unclosed\nsource: x\n", 2),
        ("", 1),
        ("name: a\n---\nname: b\n", 2),
        ("name: !!python/object/apply:os.system [id]\n", 1),
        ("- a list\n", 1),
        ("name: \x07\n", 1),
    ],
)
def test_what_is_no_document_is_told_with_its_line(tmp_path: Path, text: str, line: int) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SpecError) as caught:
        load_model(path)
    problem = caught.value.message.splitlines()[1]
    assert problem.strip().startswith(f"{path}:{line}: ")


def test_a_file_that_is_not_there_is_a_spec_error(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load_model(tmp_path / "absent.yaml")
    assert f"{tmp_path / 'absent.yaml'}:1: " in caught.value.message
    with pytest.raises(SpecError) as caught:
        load_catalogue(tmp_path / "absent")


def test_the_name_is_the_files(tmp_path: Path) -> None:
    path = write(tmp_path, entry(), "other.yaml")
    with pytest.raises(SpecError) as caught:
        load_model(path)
    assert f"{path}:1: name: " in caught.value.message


def test_a_catalogue_tells_the_mistakes_of_all_files_at_once_and_has_the_other_models(tmp_path: Path) -> None:
    write(tmp_path, entry())
    write(tmp_path, entry(name="short"), "short.yml")
    first = write(tmp_path, entry(name="first", accepts=["file:///etc/*"]), "first.yaml")
    second = write(tmp_path, entry(name="second", accepts=["pip://some/where"]), "second.yaml")
    found = load_catalogue(tmp_path)
    assert list(found.models) == ["short", "tiny"] and list(found.broken) == ["first", "second"]
    with pytest.raises(SpecError) as caught:
        found.require_whole()
    assert f"{first}:12: accepts: 'file:///etc/*' must begin with one of hf://, s3://, ngc://" in caught.value.message
    assert (
        f"{second}:12: accepts: 'pip://some/where' must begin with one of hf://, s3://, ngc://" in caught.value.message
    )


def test_a_broken_file_costs_its_own_model_alone(tmp_path: Path) -> None:
    write(tmp_path, entry())
    write(tmp_path, "name: [", "zz.yaml")
    assert catalogue_entry(tmp_path, "tiny").name == "tiny"
    with pytest.raises(SpecError) as caught:
        catalogue_entry(tmp_path, "zz")
    assert caught.value.code == "spec-invalid" and f"{tmp_path / 'zz.yaml'}:" in caught.value.message
    with pytest.raises(UsageError) as missing:
        catalogue_entry(tmp_path, "../tiny")
    assert missing.value.code == "model-missing" and missing.value.hint == "models: tiny, zz"


def test_a_catalogue_that_is_looked_at_again_has_what_its_files_say_now(tmp_path: Path) -> None:
    path, _ = write(tmp_path, entry()), write(tmp_path, entry(name="other"), "other.yaml")
    before, changed_at = load_catalogue(tmp_path).models, path.stat().st_mtime_ns
    write(tmp_path, entry(description="Changed."))
    os.utime(path, ns=(changed_at, changed_at))
    after = load_catalogue(tmp_path).models
    assert (before["tiny"].description, after["tiny"].description) == (entry().get("description", ""), "Changed.")
    assert after["other"] is before["other"]
    path.write_text("name: [")
    assert set(load_catalogue(tmp_path).models) == {"other"}


def test_labels_are_plain_words() -> None:
    assert Model.model_validate(entry(labels={"team": "search", "cost/centre": "A-7"})).labels["team"] == "search"
    for labels in ({"Team": "x"}, {"team": ""}, {"team": "two words"}, {"team": "x" * 64}, {"team": 7}):
        with pytest.raises(ValidationError) as caught:
            Model.model_validate(entry(labels=labels))
        assert all(place.startswith("labels.") for place in mistakes(caught.value))


def test_two_files_of_one_model_are_a_mistake(tmp_path: Path) -> None:
    write(tmp_path, entry())
    write(tmp_path, entry(), "tiny.yml")
    with pytest.raises(SpecError) as caught:
        catalogue_entry(tmp_path, "tiny")
    assert caught.value.code == "spec-invalid"
    assert not load_catalogue(tmp_path).models and list(load_catalogue(tmp_path).broken) == ["tiny"]


@pytest.mark.parametrize(
    "name",
    [
        *("Tiny", "-tiny", "ti--ny", "ti/ny", "", "tiny\n", "tiny--r1", "tiny:1", "tiny@1", "..", "0" * 64),
        *("nodes", "ensemble", "preprocessing", "tensorrt_llm_bls"),
    ],
)
def test_names_that_a_release_could_not_carry(name: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Model.model_validate(entry(name=name))
    assert mistakes(caught.value).keys() == {"name"}


@pytest.mark.parametrize(
    ("aliases", "where"), [(["chat"], "0"), (["ensemble", "ensemble"], ""), (["ensemble", "preprocessing"], "1")]
)
def test_aliases_that_no_published_client_asks_for_or_that_are_named_twice(aliases: list[str], where: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Model.model_validate(entry(serving={"aliases": aliases}))
    assert mistakes(caught.value).keys() == {f"serving.aliases.{where}".rstrip(".")}


@pytest.mark.parametrize(
    ("source", "where", "kind"),
    [
        ({"uri": "hf://org/repo"}, "source.uri", "value_error"),
        ({"uri": "hf://org/repo@main", "trust": ["python"]}, "source.trust", "value_error"),
        ({"uri": "hf://org/repo@main", "sha256": SHA256}, "source.sha256", "value_error"),
        ({"uri": "pip://a@1/b.gguf"}, "source.sha256", "value_error"),
        ({"uri": "pip://a@1/b.gguf", "sha256": "abc"}, "source.sha256", "string_pattern_mismatch"),
        ({"uri": "pip://a@1/b.gguf", "sha256": SHA256, "include": ["*.gguf"]}, "source.include", "value_error"),
        ({"uri": "s3://bucket/a", "trust": ["pickle"]}, "source.trust", "value_error"),
        ({"uri": f"hf://org/repo@{COMMIT}", "trust": ["shell"]}, "source.trust.0", "literal_error"),
    ],
)
def test_sources_that_are_not_allowed(source: dict[str, Any], where: str, kind: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Model.model_validate(entry(source=source))
    assert mistakes(caught.value) == {where: kind}


def test_trust_goes_with_a_commit_or_a_hash() -> None:
    for source in (
        {"uri": f"hf://org/repo@{COMMIT}", "trust": ["python", "pickle"]},
        {"uri": "pip://a@1/b.gguf", "sha256": SHA256, "trust": ["pickle"]},
        {"uri": "file:///models/a.bin", "sha256": SHA256, "trust": ["pickle"]},
    ):
        assert list(Model.model_validate(entry(source=source)).source.trust) == source["trust"]


@pytest.mark.parametrize(
    ("recipe", "where", "kind"),
    [
        (engine(quantization="nvfp4"), "recipe.quantization", "value_error"),
        (engine(tp_size=2, pp_size=4), "recipe.pp_size", "value_error"),
        (engine(runtime={"tensorrt_llm": "1.3.0rc22"}), "recipe.runtime", "value_error"),
        (engine(runtime={"tensorrt_llm": "0.7.1"}), "recipe.runtime", "value_error"),
        (engine(runtime={"tensorrt_llm": "latest"}), "recipe.runtime.tensorrt_llm", "value_error"),
        (engine(runtime={"arch": "sm75"}), "recipe.runtime.arch", "literal_error"),
        ({**engine(runtime={"tensorrt_llm": "0.21.0"}), "kind": "llmapi"}, "recipe.runtime", "value_error"),
        (engine(max_seq_len=100, max_input_len=100), "recipe.max_input_len", "value_error"),
        ({"kind": "llamacpp", "quantization": "fp8"}, "recipe.quantization", "literal_error"),
        ({"kind": "onnx"}, "recipe", "union_tag_invalid"),
    ],
)
def test_recipes_that_their_hardware_or_version_cannot_do(recipe: dict[str, Any], where: str, kind: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Model.model_validate(entry(recipe=recipe))
    assert mistakes(caught.value) == {where: kind}


def test_recipes_at_the_edge_of_the_rules() -> None:
    written: tuple[dict[str, Any], ...] = (
        engine(tp_size=2, pp_size=2, quantization="fp8", runtime={"tensorrt_llm": "0.8.0", "arch": "sm89"}),
        {**engine(quantization="nvfp4", runtime={"arch": "sm100", "tensorrt_llm": "1.4.0rc1"}), "kind": "llmapi"},
        engine(quantization="int8_sq", runtime={"arch": "sm80"}),
    )
    for recipe in written:
        parsed = Model.model_validate(entry(recipe=recipe)).recipe.model_dump(exclude_unset=True)
        assert parsed == recipe


@pytest.mark.parametrize(
    ("prompts", "where", "kind"),
    [
        ([], "prompts", "value_error"),
        ([prompt(), prompt()], "prompts", "value_error"),
        ([prompt(expect={})], "prompts.0.expect", "value_error"),
        ([prompt(expect={"json": False})], "prompts.0.expect", "value_error"),
        ([prompt(expect={"min_tokens": 5})], "prompts.0.expect", "value_error"),
        ([prompt(expect={"repeats_with_seed": True})], "prompts.0.expect", "value_error"),
        ([prompt(expect={"stream_equals": True})], "prompts.0.expect", "value_error"),
        ([prompt(seed=-1)], "prompts.0.seed", "greater_than_equal"),
    ],
)
def test_prompts_that_could_not_fail_or_not_pass(prompts: list[dict[str, Any]], where: str, kind: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Model.model_validate(entry(prompts=prompts))
    assert mistakes(caught.value) == {where: kind}


def test_models_are_frozen() -> None:
    model = Model.model_validate(entry())
    with pytest.raises(ValidationError) as caught:
        model.recipe.dtype = "bfloat16"  # pyright: ignore[reportAttributeAccessIssue]
    assert mistakes(caught.value) == {"dtype": "frozen_instance"}
    assert hash(model) == hash(Model.model_validate(entry()))


def test_a_recipe_overridden_is_checked_like_a_written_one() -> None:
    model = Model.model_validate(entry())
    assert override(model, recipe={}).model is model
    changed = override(model, recipe={"quantization": "q4_0", "dtype": "bfloat16"}).model
    assert changed.recipe == LlamaCppRecipe(kind="llamacpp", dtype="bfloat16", quantization="q4_0")
    assert changed.prompts == model.prompts
    with pytest.raises(SpecError) as caught:
        override(model, recipe={"quantization": "q9"})
    assert "quantization=q9" in caught.value.message and "recipe.quantization: " in caught.value.message
    with pytest.raises(SpecError) as caught:
        override(model, recipe={"speed": "fast"})
    assert caught.value.hint == "Fields: dtype, quantization."
    with pytest.raises(UsageError) as changes:
        override(model, recipe={"kind": "llmapi"})
    assert changes.value.code == "kind-changes"


def test_an_override_that_breaks_a_hardware_rule_says_which() -> None:
    model = Model.model_validate(entry(recipe=engine()))
    changed = override(model, recipe={"tp_size": "4"}).model.recipe
    assert isinstance(changed, TrtEngineRecipe)
    assert changed.tp_size == 4
    with pytest.raises(SpecError) as caught:
        override(model, recipe={"tp_size": "8"})
    assert "tp_size=8" in caught.value.message and "recipe.pp_size: " in caught.value.message
    with pytest.raises(SpecError) as caught:
        override(model, recipe={"runtime": "x"})
    assert "runtime" in caught.value.message and "runtime" not in caught.value.hint


def test_the_json_schema_speaks_of_files_as_they_are_written() -> None:
    schema: dict[str, Any] = json_schema()
    assert schema["additionalProperties"] is False
    assert "json" in schema["$defs"]["Expectations"]["properties"]
    assert set(schema["properties"]["recipe"]["discriminator"]["mapping"]) == {
        "llamacpp",
        "trt-engine",
        "llmapi",
        "transformers",
    }


def test_parsers_need_a_contract_with_chats() -> None:
    assert Serving(tool_parser="hermes", reasoning_parser="think").contract == 2
    with pytest.raises(ValidationError, match="need contract 2"):
        Serving(contract=1, tool_parser="hermes")
    with pytest.raises(ValidationError, match="'llama3', 'mistral'"):
        Serving.model_validate({"tool_parser": "lama3"})


ROOM = {"target_modules": ["attn_q"], "max_rank": 8}
LLMAPI = {"kind": "llmapi", "runtime": engine()["runtime"]}


@pytest.mark.parametrize(
    "recipe",
    [{"kind": "llamacpp"}, LLMAPI, engine(lora=ROOM), engine(lora=ROOM, runtime={"tensorrt_llm": "0.9.0"})],
)
def test_adapters_that_requests_choose(recipe: dict[str, Any]) -> None:
    adapters = {"sql": "hf://org/loras@main/sql", "chat-2": "s3://bucket/loras/chat/"}
    model = Model.model_validate(entry(recipe=recipe, adapters=adapters))
    assert model.adapters == {"sql": "hf://org/loras@main/sql", "chat-2": "s3://bucket/loras/chat"}
    assert Model.model_validate_json(model.model_dump_json(by_alias=True)) == model
    assert not Model.model_validate(entry(recipe=recipe)).adapters


CACHE: dict[str, Any] = {"tensorrt_llm": {"lora_cache": {}}}


WRONG: tuple[tuple[dict[str, Any], str, str], ...] = (
    ({"adapters": {"SQL": "hf://org/a@main"}}, "adapters.SQL.[key]", "pattern"),
    ({"adapters": {"sql": "pip://some@1/file"}}, "adapters", "pip:// names one file"),
    ({"adapters": {"sql": "org/a"}}, "adapters", "is not the address of a source"),
    ({"serving": {"contract": 1}}, "adapters", "contract 1 has no lora_name"),
    ({"recipe": engine()}, "adapters", "built with room for them. give recipe.lora"),
    ({"recipe": engine(lora=ROOM, runtime={"tensorrt_llm": "0.8.0"})}, "recipe", "it is one of 0.9 to 1.2"),
    ({"recipe": engine(lora={**ROOM, "max_rank": 128})}, "adapters", "lora_cache.max_adapter_size is 64"),
    ({"recipe": engine(), "adapters": {}, "serving": CACHE}, "adapters", "built with room for them"),
    ({"recipe": LLMAPI, "adapters": {}, "serving": CACHE}, "adapters", "lora_cache holds adapters"),
)


@pytest.mark.parametrize(("changes", "place", "words"), WRONG)
def test_adapters_that_no_request_could_choose(changes: dict[str, Any], place: str, words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Model.model_validate(entry(**{"adapters": {"sql": "hf://org/a@main"}, **changes}))
    assert list(mistakes(caught.value)) == [place] and words in str(caught.value)


def test_room_for_adapters_may_come_before_them() -> None:
    Model.model_validate(entry(recipe=engine(lora=ROOM), serving=CACHE))
    room = {"llm_args": {"lora_config": {"lora_target_modules": ["attn_q"]}}}
    Model.model_validate(entry(recipe={**LLMAPI, **room}, serving=CACHE))


def test_editors_take_the_examples_and_refuse_mistakes() -> None:
    check: Any = Draft202012Validator(json_schema())
    for path in catalogue_files(CATALOGUE):
        document = yaml.safe_load(path.read_text())
        assert not list(check.iter_errors(document)), path
        assert not check.is_valid({**document, "serving": {"slot": 1}})
