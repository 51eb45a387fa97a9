"""Kind `transformers`: a checkpoint that is linked, planned and described; it is served in tests of its engine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from infra.errors import EnginehouseError, StepFailed, UsageError
from tasks.kinds.protocol import LIMITS_FILE
from tasks.kinds.torch_memory import ACTIVATIONS, CONTEXT_BYTES, HOST_BYTES
from tasks.kinds.transformers import SLOW, TransformersKind
from tasks.models.spec import Model
from tasks.serving.generation import files_in
from tasks.serving.llmapi import ENGINE_PATH
from tasks.serving.settings import ServingSettings
from tasks.serving.torch_model import SCORED_AT_ONCE
from tasks.store.identity import Identity
from tasks.store.reporter import Reporter
from tasks.triton.protobuf import parse_config
from tasks.weights.config import facts_of, read_facts
from tests.standin import weights
from tests.tasks.weights.configs import DEEPSEEK_V3


def kind(serving: dict[str, Any] | None = None, **recipe: Any) -> TransformersKind:
    model = Model.model_validate(
        {
            "name": "tiny",
            "source": {"uri": "hf://some/llama@main"},
            "recipe": {"kind": "transformers", **recipe},
            "serving": {"slots": 4, "context_tokens": 256, **(serving or {})},
            "prompts": [{"name": "count", "text": "Count.", "max_tokens": 4, "expect": {"min_tokens": 1}}],
        }
    )
    return TransformersKind(model)


def built(folder: Path, served: TransformersKind, **changes: Any) -> tuple[Path, Path]:
    """A snapshot, and the engine that is made of it."""
    snapshot = weights.make(folder / "snapshot", **changes)
    for name in ("checkpoint", "engine"):
        (folder / name).mkdir()
    served.convert(snapshot, None, folder / "checkpoint", folder, Reporter())
    served.build(folder / "checkpoint", folder / "engine", folder, Reporter())
    return snapshot, folder / "engine"


def test_the_checkpoint_is_served_as_it_is(tmp_path: Path) -> None:
    served = kind(arch="sm90")
    snapshot, engine = built(tmp_path, served)
    for path in snapshot.iterdir():
        assert (engine / path.name).stat().st_ino == path.stat().st_ino  # no second copy on this disk
    repository = tmp_path / "repository"
    served.assemble(files_in(engine), repository)
    config = parse_config((repository / "llm" / "config.pbtxt").read_text())
    assert config.parameters[ENGINE_PATH].string_value == "engine"
    settings = ServingSettings.read(repository / "llm" / "1")
    assert (settings.engine, settings.device, settings.dtype) == ("transformers", "cuda", "auto")
    assert settings.planned_bytes == served.memory_bytes(0, (engine / LIMITS_FILE).read_bytes())


def test_its_limits_replace_no_file_of_the_checkpoint(tmp_path: Path) -> None:
    served, snapshot = kind(), weights.make(tmp_path / "snapshot")
    (snapshot / LIMITS_FILE).write_text("{}")
    engine = tmp_path / "engine"
    engine.mkdir()
    served.build(snapshot, engine, tmp_path, Reporter())
    assert (snapshot / LIMITS_FILE).read_text() == "{}" != (engine / LIMITS_FILE).read_text()


def test_memory_is_planned_by_weights_cache_and_the_longest_pass(tmp_path: Path) -> None:
    snapshot, engine = built(tmp_path, kind())
    limits, facts = (engine / LIMITS_FILE).read_bytes(), facts_of(snapshot)
    numbers, vocabulary = json.loads(limits)["weights"], facts.vocabulary
    assert vocabulary is not None
    assert 2 * numbers <= sum(path.stat().st_size for path in snapshot.glob("*.safetensors"))
    sizes: tuple[tuple[dict[str, Any], int, int], ...] = (
        ({}, 2, HOST_BYTES),
        ({"dtype": "float32"}, 4, HOST_BYTES),
        ({"dtype": "float16", "device": "cuda"}, 2, CONTEXT_BYTES),
    )
    for recipe, number, process in sizes:
        served = kind(**recipe)
        # Two layers of four heads of eight numbers, keys and values; 4 slots of 256 tokens; a hidden size of 64.
        cache = 4 * 256 * 2 * 2 * 4 * 8 * number
        longest = 256 * 64 * ACTIVATIONS * number + SCORED_AT_ONCE * vocabulary * (4 + number)
        assert served.memory_bytes(0, limits) == numbers * number + cache + longest + process
        planned = served.planned_cache(facts)
        assert (planned.bytes_per_token, planned.tokens) == (2 * 2 * 4 * 8 * number, 4 * 256)
        assert planned.notes[0] == SLOW
    whole = json.loads(limits)["weight_file_bytes"]
    assert kind().memory_bytes(whole + 1000, limits) == kind().memory_bytes(0, limits) + 1000, "adapters"


def test_where_it_is_built_and_served() -> None:
    places: tuple[tuple[dict[str, Any], str, tuple[int, ...]], ...] = (
        ({}, "build-cpu", ()),
        ({"device": "cpu"}, "build-cpu", ()),
        ({"device": "cuda"}, "build-cpu", (0,)),
        ({"arch": "sm90"}, "build-sm90", (0,)),
        ({"device": "cuda", "arch": "sm120"}, "build-sm120", (0,)),
    )
    for recipe, pool, gpus in places:
        served = kind(**recipe)
        assert (served.pool(), served.gpus()) == (pool, gpus)
    with pytest.raises(ValidationError, match="device is cpu"):
        kind(device="cpu", arch="sm90")


def test_what_it_cannot_serve_is_refused_before_the_fetch(tmp_path: Path) -> None:
    snapshot = weights.make(tmp_path / "snapshot")
    facts = facts_of(snapshot)
    own_code = replace(facts, model_type="xverse")
    unheard_of = replace(facts, model_type="unheard_of")
    latent = read_facts({"config.json": json.dumps(DEEPSEEK_V3).encode()})
    for refused, code in (
        (own_code, "architecture-unfit"),
        (unheard_of, "architecture-unfit"),
        (replace(facts, dtype="float8_e4m3fn"), "weights-unfit"),
        (facts_of(weights.make(tmp_path / "gptq", quantization_config=weights.GPTQ)), "weights-unfit"),
        (replace(facts, has_template=False), "template-missing"),
        (replace(latent, quantization=None), "cache-unknown"),
    ):
        with pytest.raises(UsageError) as caught:
            kind().require_weights(refused)
        assert caught.value.code == code
    kind(cache_bytes_per_token=1000).require_weights(replace(latent, quantization=None))
    assert kind(cache_bytes_per_token=1000).planned_cache(latent).bytes_per_token == 1000


def test_more_context_than_the_model_was_made_for(tmp_path: Path) -> None:
    snapshot = weights.make(tmp_path / "snapshot", max_position_embeddings=128)
    (engine := tmp_path / "engine").mkdir()
    assert "128" in kind().planned_cache(facts_of(snapshot)).notes[1]
    with pytest.raises(StepFailed) as caught:
        kind().build(snapshot, engine, tmp_path, Reporter())
    assert caught.value.code == "context-too-long"


def test_a_checkpoint_without_all_its_files(tmp_path: Path) -> None:
    for pattern, code in (("*.safetensors", "checkpoint-unfit"), ("tokenizer.json", "tokenizer-missing")):
        snapshot = weights.make(tmp_path / code / "snapshot")
        next(snapshot.glob(pattern)).unlink()
        (checkpoint := tmp_path / code / "checkpoint").mkdir()
        with pytest.raises(EnginehouseError) as caught:
            kind().convert(snapshot, None, checkpoint, tmp_path, Reporter())
        assert caught.value.code == code


def test_one_engine_serves_every_type_and_device() -> None:
    identity = Identity.of("fetch", 1, inputs={}, fields={})
    recipes: list[dict[str, Any]] = [{}, {"dtype": "float32"}, {"device": "cuda"}, {"arch": "sm90"}]
    made = [kind(**recipe) for recipe in recipes]
    engines = {each.engine_identity(each.checkpoint_identity({"snapshot": identity})).digest for each in made}
    releases = {each.repository_identity(identity, {}).digest for each in made}
    assert len(engines) == 1
    assert len(releases) == 3, "which architecture a GPU has changes nothing"
