"""Engines and checkpoints with what guesses their tokens: converted, built and placed as one plan, with stand-ins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infra.errors import StepFailed, UsageError
from infra.s3.bucket import Bucket
from tasks.kinds.llmapi import LlmApiKind
from tasks.kinds.protocol import EngineKind
from tasks.kinds.trt_engine import TrtEngineKind
from tasks.models.spec import Model
from tasks.serving.called import CALLED_MODEL, DRAFT_MODEL
from tasks.serving.generation import files_in
from tasks.serving.llmapi import ENGINE_PATH
from tasks.serving.settings import ServingSettings
from tasks.steps.assemble import assemble
from tasks.steps.build import build
from tasks.steps.context import Context
from tasks.steps.convert import convert
from tasks.steps.plan import Plan
from tasks.steps.upload import upload
from tasks.steps.workspace import Workspace
from tasks.store.artifact import ArtifactRef
from tasks.store.artifact_store import ArtifactStore
from tasks.store.identity import Identity
from tasks.store.reporter import Reporter
from tasks.triton.placement import place_release, placed_models
from tasks.triton.protobuf import parse_config
from tasks.trtllm.limits import EngineLimits
from tests.standin import toolchain, weights
from tests.tasks.kinds.test_trt_engine import PRODUCT

TARGET, DRAFT = Identity({"source": "target"}), Identity({"source": "draft"})
PAIR = {"mode": "draft_tokens_external", "max_draft_len": 5, "source": "hf://some/draft@main"}
HEADS = {"mode": "medusa", "max_draft_len": 7, "num_heads": 2, "source": "hf://some/heads@main"}


def model(version: str, speculation: dict[str, Any], kind: str = "trt-engine", **changes: Any) -> Model:
    limits = {"max_batch_size": 4, "max_input_len": 64, "max_seq_len": 128, "max_num_tokens": 128}
    runtime = {"tensorrt_llm": version, "gpu": PRODUCT, "arch": "sm90", "gpus": 4}
    return Model.model_validate(
        {
            "name": "tiny",
            "source": {"uri": "hf://some/llama@main"},
            "recipe": {"kind": kind, "runtime": runtime, **limits, "speculation": speculation, **changes},
            "serving": {"tensorrt_llm": {"kv_cache_tokens": 1024}},
            "prompts": [{"name": "count", "text": "Count.", "max_tokens": 4, "expect": {"min_tokens": 1}}],
        }
    )


def heads(folder: Path, weights_file: str, **config: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / weights_file).write_bytes(b"heads")
    return folder


def make(kind: EngineKind, snapshot: Path, draft: Path | None, folder: Path) -> Path:
    """Convert and build below `folder`; the engine's folder."""
    checkpoint, engine, scratch = (folder / name for name in ("checkpoint", "engine", "scratch"))
    for each in (checkpoint, engine, scratch):
        each.mkdir(parents=True)
    kind.convert(snapshot, None, checkpoint, scratch, Reporter(), draft)
    kind.build(checkpoint, engine, scratch, Reporter())
    return engine


def use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setenv("ENGINEHOUSE_TOOLCHAIN", toolchain.make(tmp_path / "image", version).setting)


def release(kind: EngineKind, engine: Path, output: Path) -> dict[str, str]:
    """The parameters of the release's `tensorrt_llm`."""
    kind.assemble(files_in(engine), output)
    parameters = parse_config((output / "tensorrt_llm/config.pbtxt").read_text()).parameters
    return {name: parameter.string_value for name, parameter in parameters.items()}


@pytest.mark.parametrize(
    ("version", "speculation", "change"),
    [
        ("1.2.1", HEADS, {"choices": [[0], [1]]}),
        ("1.2.1", {"mode": "lookahead_decoding", "max_draft_len": 30}, {"window_size": 5}),
        ("1.2.1", {"mode": "lookahead_decoding", "max_draft_len": 30}, {"ngram_size": 4}),
    ],
)
def test_what_the_backend_alone_is_told_makes_another_repository_of_one_engine(
    version: str, speculation: dict[str, Any], change: dict[str, Any]
) -> None:
    one, other = (Plan.of(model(version, given), TARGET, draft=DRAFT) for given in (speculation, speculation | change))
    assert one.engine == other.engine and one.repository != other.repository


@pytest.mark.parametrize("version", ["0.10.0", "1.2.1"])
def test_heads_of_medusa_are_converted_built_and_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    use(tmp_path, monkeypatch, version)
    kind = TrtEngineKind(model(version, {**HEADS, "choices": [[0], [0, 0], [1]]}))
    draft = heads(tmp_path / "heads", "medusa_lm_head.pt", medusa_num_heads=2)
    engine = make(kind, weights.make(tmp_path / "snapshot"), draft, tmp_path / "work")
    config = json.loads((engine / "config.json").read_text())
    assert config["pretrained_config"]["architecture"] == "MedusaForCausalLM"
    parameters = release(kind, engine, tmp_path / "release")
    assert (parameters["decoding_mode"], parameters["medusa_choices"]) == ("medusa", "{0}, {0, 0}, {1}")
    # trtllm-build adds room for the guesses from 0.11 on; a request may have no more than the recipe says.
    settings = ServingSettings.read(tmp_path / "release/llm/1")
    assert (settings.context_tokens, settings.draft_tokens) == (128 if version == "1.2.1" else 121, 0)


def test_heads_of_eagle_are_converted_built_and_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(tmp_path, monkeypatch, "0.16.0")
    kind = TrtEngineKind(model("0.16.0", {**HEADS, "mode": "eagle"}))
    snapshot = weights.make(tmp_path / "snapshot")
    other = heads(tmp_path / "other", "pytorch_model.bin", hidden_size=32)
    with pytest.raises(StepFailed):
        make(kind, snapshot, other, tmp_path / "failed")
    engine = make(kind, snapshot, heads(tmp_path / "heads", "pytorch_model.bin", hidden_size=64), tmp_path / "work")
    parameters = release(kind, engine, tmp_path / "release")
    assert (parameters["decoding_mode"], parameters["eagle_choices"]) == ("eagle", "")


def test_lookahead_needs_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(tmp_path, monkeypatch, "0.19.0")
    kind = TrtEngineKind(model("0.19.0", {"mode": "lookahead_decoding", "max_draft_len": 20, "window_size": 5}))
    engine = make(kind, weights.make(tmp_path / "snapshot"), None, tmp_path / "work")
    parameters = release(kind, engine, tmp_path / "release")
    sizes = [parameters[f"lookahead_{name}_size"] for name in ("window", "ngram", "verification_set")]
    assert (parameters["decoding_mode"], sizes) == ("lookahead", ["5", "3", "4"])


def test_the_decoding_mode_of_a_file_cannot_be_another_than_the_engines(tmp_path: Path) -> None:
    document = {
        **model("1.2.1", PAIR).model_dump(by_alias=True),
        "serving": {"tensorrt_llm": {"decoding_mode": "top_k"}},
    }
    kind = TrtEngineKind(Model.model_validate({**document, "recipe": {**document["recipe"], "speculation": None}}))
    limits = EngineLimits(4, 64, 128, 1, 64, True, True, "FP32", 64, 10, max_draft_len=7, decoding_mode="medusa")
    with pytest.raises(UsageError) as caught:
        kind.assemble(lambda _: limits.to_json().encode(), tmp_path / "release")
    assert caught.value.code == "serving-unfit" and "built for medusa" in caught.value.message


def put(context: Context, plan: Plan, role: str, identity: Identity, folder: Path) -> None:
    """A snapshot into the store, as `fetch` does."""
    ref = ArtifactRef("snapshot", identity.digest)
    context.store.publish(ref, identity, folder, inputs={}, producer=context.producer(f"fetch {role}"))


def run(context: Context, plan: Plan) -> None:
    convert(context, plan)
    build(context, plan)
    upload(context, plan)


def test_a_draft_model_is_an_engine_of_its_own_in_one_plan_and_one_release(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(tmp_path, monkeypatch, "1.2.1")
    plan = Plan.of(model("1.2.1", PAIR, tp_size=2), TARGET, None, DRAFT)
    assert plan.drafting is not None
    # The target's checkpoint does not depend on the draft, and the draft's engine not on the target.
    alone = Plan.of(model("1.2.1", PAIR, tp_size=2), TARGET, None, Identity({"source": "another"}))
    assert alone.checkpoint == plan.checkpoint and alone.engine != plan.engine
    of_one_gpu = Plan.of(model("1.2.1", PAIR), TARGET, None, DRAFT).drafting
    assert of_one_gpu is not None and of_one_gpu.engine == plan.drafting.engine
    commands = [" ".join(argv) for argv in plan.kind.commands()]
    assert len(commands) == 6 and "--model_dir draft-model" in commands[0] and "--tp_size 2" in commands[3]

    context = Context(ArtifactStore(bucket), Workspace(tmp_path / "work"), "", 5.0)
    put(context, plan, "target", TARGET, weights.make(tmp_path / "target", num_hidden_layers=4))
    put(context, plan, "draft", DRAFT, weights.make(tmp_path / "draft", seed="draft"))
    for each in (plan.drafting, plan):
        run(context, each)
    stored = context.store.need(plan.engine_ref)
    assert stored.manifest.inputs == {"checkpoint": str(plan.checkpoint_ref), "draft": str(plan.drafting.engine_ref)}
    files = {file.path for file in stored.manifest.files}
    assert {"rank1.engine", "draft/rank0.engine", "draft/config.json", "tokenizer/tokenizer.json"} <= files

    own, drafts = (
        context.store.read(context.store.need(each.engine_ref), "limits.json") for each in (plan, plan.drafting)
    )
    limits, draft = EngineLimits.from_json(own), EngineLimits.from_json(drafts)
    # Each GPU of two has half of 4 layers' heads; the draft has 2 layers on one GPU.
    assert draft.cache_bytes_per_token is not None
    assert limits.cache_bytes_per_token == 4 * 2 * 2 * 8 * 2 + draft.cache_bytes_per_token
    assert limits.weight_bytes > draft.weight_bytes

    assemble(context, plan)
    repository = tmp_path / "repository"
    context.store.download(context.store.need(plan.repository_ref), repository, context.reporter.progress)
    (tmp_path / "models").mkdir()
    engine = tmp_path / "engine"
    context.store.download(stored, engine, context.reporter.progress)
    place_release(repository, engine, tmp_path / "models", "tiny", 3, grpc="127.0.0.1:1")
    assert placed_models(tmp_path / "models", "tiny", 3) == (
        *("tiny--r3--tensorrt_llm_draft", "tiny--r3--tensorrt_llm", "tiny--r3--llm"),
        "tiny--r3",
    )
    configs = {
        name: parse_config((tmp_path / f"models/tiny--r3--{name}/config.pbtxt").read_text()).parameters
        for name in ("llm", "tensorrt_llm", "tensorrt_llm_draft")
    }
    assert configs["llm"][CALLED_MODEL].string_value == "tiny--r3--tensorrt_llm"
    assert configs["llm"][DRAFT_MODEL].string_value == "tiny--r3--tensorrt_llm_draft"
    assert configs["tensorrt_llm"][ENGINE_PATH].string_value == str(engine)
    assert configs["tensorrt_llm_draft"][ENGINE_PATH].string_value == f"{engine}/draft"
    for name in ("tensorrt_llm", "tensorrt_llm_draft"):
        assert configs[name]["enable_kv_cache_reuse"].string_value == "True"
        assert configs[name]["max_tokens_in_paged_kv_cache"].string_value == "1024"
        assert configs[name]["decoding_mode"].string_value == ""
    settings = ServingSettings.read(tmp_path / "models/tiny--r3--llm/1")
    # The last token is said to a prompt of all others.
    assert (settings.draft_tokens, settings.context_tokens, settings.max_input_tokens) == (5, 65, 64)


@pytest.mark.parametrize("kind", ["trt-engine", "llmapi"])
def test_a_draft_model_of_other_tokens_is_refused(tmp_path: Path, kind: str) -> None:
    snapshot, draft = weights.make(tmp_path / "snapshot"), weights.make(tmp_path / "draft")
    other = json.loads((draft / "tokenizer.json").read_text())
    other["model"]["vocab"] = {token: 1 + number for token, number in other["model"]["vocab"].items()}
    (draft / "tokenizer.json").write_text(json.dumps(other))
    some = model("1.2.1", PAIR, kind)
    (output := tmp_path / "output").mkdir()
    with pytest.raises(StepFailed) as caught:
        if kind == "llmapi":
            LlmApiKind(some).convert(snapshot, None, output, tmp_path, Reporter(), draft)
        else:
            for folder in (snapshot, draft):
                (folder / "tokenizer").mkdir()
                (folder / "tokenizer.json").rename(folder / "tokenizer/tokenizer.json")
            TrtEngineKind(some).build(snapshot, output, tmp_path, Reporter(), draft)
    assert caught.value.code == "draft-unfit"


def test_the_llm_api_gets_the_draft_model_in_its_checkpoint(tmp_path: Path) -> None:
    some = model("1.2.1", PAIR, "llmapi")
    kind, draft = LlmApiKind(some), weights.make(tmp_path / "draft", num_hidden_layers=1)
    plan = Plan.of(some, TARGET, None, DRAFT)
    assert plan.drafting is None and [*plan.snapshots] == ["snapshot", "draft"]
    engine = make(kind, weights.make(tmp_path / "snapshot"), draft, tmp_path / "work")
    assert (engine / "draft/config.json").is_file()
    limits = EngineLimits.from_json((engine / "limits.json").read_text())
    assert limits.cache_bytes_per_token == (2 + 1) * 4 * 2 * 8 * 2, "two layers of its own, and one of the draft"
    kind.assemble(files_in(engine), tmp_path / "release")
    arguments = ServingSettings.read(tmp_path / "release/llm/1").llm_arguments
    assert arguments["speculative_config"] == {
        "decoding_type": "DraftTarget",
        "max_draft_len": 5,
        "speculative_model_dir": "draft",
    }
    assert arguments["sampler_type"] == "TorchSampler"
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(StepFailed) as caught:
        make(kind, tmp_path / "snapshot", empty, tmp_path / "again")
    assert caught.value.code == "checkpoint-unfit"
