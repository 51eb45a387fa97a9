"""Kind `trt-engine`: convert_checkpoint.py or quantize.py makes a checkpoint, trtllm-build an engine, up to 1.2."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from infra.errors import StepFailed, UsageError
from infra.files import link_all
from tasks.kinds.build_machine import BuildMachine
from tasks.kinds.draft_engine import draft_engine, of_draft, without_prompts
from tasks.kinds.engine_identity import checkpoint_identity, engine_identity
from tasks.kinds.protocol import LIMITS_FILE, NO_ADAPTERS, RequestAdapters, limits_in
from tasks.kinds.serving_mode import ServingMode, engine_serving_mode
from tasks.kinds.tensorrt_llm import TensorRtLlmKind
from tasks.lora.backend_tensors import LoraEngine, LoraTensors, lora_tensors
from tasks.lora.config import AdapterConfig, check_requested
from tasks.lora.merge import merged
from tasks.models.recipe import TrtEngineRecipe
from tasks.models.spec import Model
from tasks.serving.backend_inputs import save_adapter
from tasks.serving.generation import Files
from tasks.store.artifact import Manifest
from tasks.store.identity import Identity
from tasks.store.reporter import Peak, Reporter
from tasks.targets.node_report import Machine
from tasks.trtllm.fits import Found, Planned, differences
from tasks.trtllm.limits import EngineLimits, engine_limits
from tasks.trtllm.planned_limits import planned_limits
from tasks.trtllm.releases import FIRST, Release, in_span, release_of
from tasks.trtllm.speculation import DRAFT_FOLDER
from tasks.trtllm.tools import commands
from tasks.trtllm.tools.check import (
    TOKENIZER,
    check_checkpoint,
    check_engine,
    copy_tokenizer,
    quantization_of,
    require_same_tokens,
)
from tasks.trtllm.tools.failures import known_failure
from tasks.trtllm.tools.run import described, run_tool, toolchain_for
from tasks.trtllm.weights_fit import architecture_unfit, require_architecture, require_positions
from tasks.weights.config import facts_of
from tasks.weights.facts import WeightsFacts


class TrtEngineKind(TensorRtLlmKind[TrtEngineRecipe]):
    """A model with a recipe of this kind. Raises UsageError for a model of another kind."""

    def __init__(self, model: Model) -> None:
        if not isinstance(model.recipe, TrtEngineRecipe):
            raise UsageError(f"{model.name} is of kind {model.kind}, and only kind trt-engine has engines")
        super().__init__(model, model.recipe)
        self.takes_adapters = model.recipe.lora is not None

    def _of(self, model: Model) -> TrtEngineKind:
        return TrtEngineKind(model)

    def draft_model(self) -> Model | None:
        return draft_engine(self.model, self.recipe)

    def build_machine(self) -> BuildMachine:
        machine = super().build_machine()
        return replace(machine, product="") if self.recipe.portable else machine

    def serving_mode(self) -> ServingMode:
        return engine_serving_mode(self.recipe.runtime.version, self.recipe.world_size)

    def gpus(self) -> tuple[int, ...]:
        chosen = {gpu for instance in self.parameters.gpu_device_ids for gpu in instance}
        return tuple(sorted(chosen)) or super().gpus()

    def require_weights(self, facts: WeightsFacts) -> None:
        require_architecture(self.recipe, facts)
        try:
            commands.checkpoint_command(self.recipe, "model", "checkpoint", facts)
        except ValueError as error:
            raise architecture_unfit(error) from error
        require_positions(self.recipe, facts)
        super().require_weights(facts)
        draft = self.draft_model()
        if draft is not None and facts.draft is not None:
            try:
                TrtEngineKind(draft).require_weights(without_prompts(facts.draft))
            except UsageError as error:
                raise of_draft(error) from error

    def _planned_limits(self, facts: WeightsFacts) -> EngineLimits:
        limits, draft = planned_limits(self.recipe, facts), self.draft_model()
        if draft is None or facts.draft is None:
            return limits  # heads are part of the engine
        return limits.with_draft(planned_limits(TrtEngineKind(draft).recipe, facts.draft))

    def tool_release(self) -> Release | None:
        return release_of(self.recipe.runtime.version)

    def commands(self, facts: WeightsFacts | None = None) -> tuple[tuple[str, ...], ...]:
        draft = self.draft_model()
        drafts = (
            () if draft is None else TrtEngineKind(draft)._commands("draft-", None if facts is None else facts.draft)
        )
        return *drafts, *self._commands(facts=facts)

    def _commands(self, prefix: str = "", facts: WeightsFacts | None = None) -> tuple[tuple[str, ...], ...]:
        recipe, prompt = self.recipe, self.model.prompts[0]
        already = facts is not None and facts.quantization is not None
        model, checkpoint, engine = f"{prefix}model", f"{prefix}checkpoint", f"{prefix}engine"
        return (
            commands.checkpoint_command(recipe, model, checkpoint, facts).argv,
            commands.build_command(recipe, checkpoint, engine, quantized_already=already).argv,
            commands.check_command(recipe, engine, f"{engine}/{TOKENIZER}", prompt.text, prompt.max_tokens).argv,
        )

    def require_worker(self) -> None:
        toolchain_for(self.recipe.runtime)

    def fits(self, engine: Manifest, machine: Machine) -> list[str]:
        built = engine.producer.runtime
        planned = Planned(
            tensorrt_llm=built.get("tensorrt_llm", ""),
            tensorrt=built.get("tensorrt", ""),
            architecture=built.get("architecture", ""),
            product="" if self.recipe.portable else built.get("gpu", ""),
            gpus=self.gpus(),
        )
        return differences(planned, Found.on_node(machine))

    def runtime(self) -> Mapping[str, str]:
        return described(toolchain_for(self.recipe.runtime)[1])

    def checkpoint_identity(self, inputs: Mapping[str, Identity]) -> Identity:
        return checkpoint_identity(self.recipe, inputs)

    def engine_identity(self, checkpoint: Identity, draft: Identity | None = None) -> Identity:
        return engine_identity(self.recipe, checkpoint, draft)

    def kept(self) -> Mapping[str, str]:
        runtime = self.recipe.runtime
        product = re.sub(r"[^a-z0-9]+", "-", runtime.gpu.lower())
        return {commands.TIMING_CACHE: f"timing-caches/{runtime.planned_tensorrt}/{product}.cache"}

    def convert(
        self,
        snapshot: Path,
        adapter: Path | None,
        output: Path,
        scratch: Path,
        reporter: Reporter,
        draft: Path | None = None,
    ) -> Peak:
        recipe = self.recipe
        facts = facts_of(snapshot)
        self.require_weights(facts)
        if adapter is not None:
            snapshot = merged(snapshot, adapter, scratch / "merged")
        command = commands.checkpoint_command(recipe, str(snapshot), str(output), facts, str(draft))
        place, _ = toolchain_for(recipe.runtime)
        inputs = [snapshot, *recipe.calibration.local_folders, *([] if draft is None else [draft])]
        peak, _ = run_tool(place, command, inputs=inputs, outputs=[output], folder=scratch, reporter=reporter)
        check_checkpoint(recipe, output, facts.quantization)
        copy_tokenizer(snapshot, output)
        return peak

    def build(
        self, checkpoint: Path, output: Path, scratch: Path, reporter: Reporter, draft: Path | None = None
    ) -> Peak:
        recipe, prompt = self.recipe, self.model.prompts[0]
        if draft is not None:
            require_same_tokens(checkpoint / TOKENIZER, draft / TOKENIZER)
        place, _ = toolchain_for(recipe.runtime)
        # Of its own, or what the recipe asked for.
        already = recipe.quantization == "none" and quantization_of(checkpoint) is not None
        command = commands.build_command(recipe, str(checkpoint), str(output), quantized_already=already)
        peak, tail = run_tool(place, command, inputs=[checkpoint], outputs=[output], folder=scratch, reporter=reporter)
        try:
            check_engine(recipe, output)
        except StepFailed as error:
            # 0.10 and 0.11 exit with 0 although the GPU's memory ran out and there is no engine.
            if (known := known_failure(command.tool, tail)) is not None:
                raise known from error
            raise
        copy_tokenizer(checkpoint / TOKENIZER, output)
        limits = engine_limits(output)
        command = commands.check_command(recipe, str(output), str(output / TOKENIZER), prompt.text, prompt.max_tokens)
        asked, answer = run_tool(place, command, inputs=[output], outputs=[], folder=scratch, reporter=reporter)
        _require_answer(answer)
        if draft is not None:
            link_all(draft, output / DRAFT_FOLDER)
            limits = limits.with_draft(EngineLimits.from_json((draft / LIMITS_FILE).read_bytes()))
        (output / LIMITS_FILE).write_text(limits.to_json())
        return peak | asked

    def check_adapter(self, config: AdapterConfig) -> None:
        if self.recipe.lora is not None:
            check_requested(config, self.recipe.lora.max_rank)

    def assemble(self, engine: Files, output: Path, adapters: RequestAdapters = NO_ADAPTERS) -> None:
        limits = EngineLimits.from_json(limits_in(engine))
        limits = replace(limits, max_num_tokens=self.recipe.max_num_tokens)
        self.write_release(limits, lambda name: engine(f"{TOKENIZER}/{name}"), output, adapters=adapters)

    def write_release(
        self,
        limits: EngineLimits,
        files: Files,
        output: Path,
        tokenizer: str | None = None,
        adapters: RequestAdapters = NO_ADAPTERS,
    ) -> None:
        """Fill `output` with `tensorrt_llm`, `llm` and `release`. Raises UsageError if they do not go together.

        `files` are those of the tokenizer. `tokenizer` is its folder, absolute, by default the one in the engine's own.
        Raises StepFailed `adapter-unfit` for an adapter that the engine has no room for.
        """
        from tasks.kinds.engine_release import write_engine_release
        from tasks.triton.repository import adapter_folder

        recipe, tokens = self.recipe, self.cache_tokens(limits)
        write_engine_release(
            output,
            recipe.runtime.version,
            self.model.serving.model_copy(update={"tensorrt_llm": self.served(limits)}),
            limits,
            tokens,
            files,
            tokenizer,
            lora_type="BF16" if recipe.lora is not None and recipe.dtype == "bfloat16" else "FP16",
            adapters=adapters.names,
            speculation=recipe.speculation,
        )
        for name in adapters.names:
            tensors = self._lora_tensors(adapters, name)
            save_adapter(adapter_folder(output, name), tensors.weights, tensors.config)

    def _lora_tensors(self, adapters: RequestAdapters, name: str) -> LoraTensors:
        recipe = self.recipe
        assert recipe.lora is not None  # the model's file has adapters
        engine = LoraEngine.of(
            adapters.engine_file("config.json").read_bytes(),
            recipe.lora.target_modules,
            recipe.lora.max_rank,
            whole_heads=in_span(recipe.runtime.version, FIRST, "0.17"),
        )
        return lora_tensors(adapters.folders[name], engine)


def _require_answer(output: str) -> None:
    found = re.search(r'Output \[Text 0 Beam 0\]: "(.*?)"', output, re.DOTALL)
    if found is None or not found[1].strip():
        raise StepFailed(
            "the engine was built, but does not answer the first test prompt",
            hint="see the output of run.py in the log of this run; the engine was not uploaded",
            code="engine-silent",
        )
