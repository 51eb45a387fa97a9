"""Kind `llmapi`: a Hugging Face checkpoint, which ModelOpt quantizes if the recipe asks, and the LLM's arguments."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from infra.files import link_all
from tasks.kinds.draft_engine import of_draft
from tasks.kinds.protocol import LIMITS_FILE, NO_ADAPTERS, RequestAdapters, limits_in
from tasks.kinds.serving_mode import ServingMode
from tasks.kinds.tensorrt_llm import TensorRtLlmKind
from tasks.lora.backend_tensors import MODULES
from tasks.lora.config import FILES, AdapterConfig, check_requested, not_by_request
from tasks.lora.merge import merged
from tasks.lora.requested import by_layer, rank, read_requested
from tasks.models.recipe import LlmApiRecipe
from tasks.models.spec import Model
from tasks.serving.generation import Files
from tasks.store.artifact import Manifest
from tasks.store.identity import Identity
from tasks.store.reporter import Peak, Reporter
from tasks.targets.node_report import Machine
from tasks.trtllm.architectures import ArchitectureUnfit, check_llm_api
from tasks.trtllm.fits import Found, Planned, differences
from tasks.trtllm.limits import EngineLimits
from tasks.trtllm.llmapi.arguments import LoraRoom, llm_arguments, release_arguments, takes_adapters
from tasks.trtllm.llmapi.checkpoint_limits import checkpoint_limits
from tasks.trtllm.speculation import DRAFT_FOLDER, Speculation
from tasks.trtllm.tools import commands
from tasks.trtllm.tools.check import (
    add_tokenizer,
    require_config,
    require_same_tokens,
    require_tokenizer,
    require_weights,
)
from tasks.trtllm.tools.run import described, run_tool, toolchain_for
from tasks.trtllm.weights_fit import architecture_unfit, require_architecture
from tasks.weights.config import facts_of
from tasks.weights.facts import WeightsFacts

ARGUMENTS_FILE = "llm_args.json"
"""The keyword arguments of `tensorrt_llm.LLM`, without the model's path, which is the node's."""

_CONVERT_VERSION = 1
_BUILD_VERSION = 2


class LlmApiKind(TensorRtLlmKind[LlmApiRecipe]):
    def __init__(self, model: Model) -> None:
        assert isinstance(model.recipe, LlmApiRecipe)
        super().__init__(model, model.recipe)
        self.takes_adapters = takes_adapters(model.recipe, model.adapters)

    def _of(self, model: Model) -> LlmApiKind:
        return LlmApiKind(model)

    def serving_mode(self) -> ServingMode:
        return ServingMode("single", "the LLM API starts the workers of its GPUs itself")

    def require_weights(self, facts: WeightsFacts) -> None:
        recipe = self.recipe
        architecture = require_architecture(recipe, facts)
        try:
            check_llm_api(architecture, recipe.runtime.version, recipe.llm_args.get("backend"))
        except ArchitectureUnfit as error:
            raise architecture_unfit(error) from error
        if facts.draft is not None and recipe.speculation is not None:
            self._require_draft(facts.draft, recipe.speculation)
        super().require_weights(facts)

    def _require_draft(self, facts: WeightsFacts, given: Speculation) -> None:
        """The heads of Eagle 3 are of architectures of their own."""
        if given.mode == "draft_tokens_external":
            try:
                check_llm_api(facts.architecture, self.recipe.runtime.version, self.recipe.llm_args.get("backend"))
            except ArchitectureUnfit as error:
                raise of_draft(architecture_unfit(error)) from error

    def tool_release(self) -> None:
        return None

    def commands(self, facts: WeightsFacts | None = None) -> tuple[tuple[str, ...], ...]:
        recipe = self.recipe
        if recipe.quantization == "none":
            return ()
        return (commands.modelopt_command(recipe, "model", "checkpoint").argv,)

    def require_worker(self) -> None:
        if self.recipe.quantization != "none":  # else no tool runs
            toolchain_for(self.recipe.runtime)

    def fits(self, engine: Manifest, machine: Machine) -> list[str]:
        # Nothing was built for a product: every GPU of the recipe's architecture does.
        runtime = self.recipe.runtime
        planned = Planned(tensorrt_llm=runtime.tensorrt_llm, architecture=runtime.arch, gpus=self.gpus())
        return differences(planned, Found.on_node(machine))

    def runtime(self) -> Mapping[str, str]:
        if self.recipe.quantization == "none":
            return {}
        return described(toolchain_for(self.recipe.runtime)[1])

    def checkpoint_identity(self, inputs: Mapping[str, Identity]) -> Identity:
        recipe = self.recipe
        fields: dict[str, JsonValue] = {"kind": "llmapi", "quantization": recipe.quantization}
        if recipe.quantization != "none":
            fields |= {
                "dtype": recipe.dtype,
                "kv_cache_dtype": recipe.kv_cache_dtype,
                "calibration": recipe.calibration.model_dump(mode="json"),
                "awq_block_size": recipe.awq_block_size,
                "runtime": {"tensorrt_llm": recipe.runtime.tensorrt_llm},
            }
        return Identity.of("convert", _CONVERT_VERSION, inputs=inputs, fields=fields)

    def engine_identity(self, checkpoint: Identity, draft: Identity | None = None) -> Identity:
        recipe = self.recipe
        return Identity.of(
            "build",
            _BUILD_VERSION,
            inputs={"checkpoint": checkpoint},
            fields={
                "kind": "llmapi",
                "arguments": llm_arguments(recipe),
                "runtime": {"tensorrt_llm": recipe.runtime.tensorrt_llm},
            },
        )

    def check_adapter(self, config: AdapterConfig) -> None:
        if config.alpha_pattern:
            # `LoraManager.load_from_hf` of lora_manager.py reads one for all modules, and ranks from the matrices.
            raise not_by_request("it has an alpha_pattern, which the LLM API does not read")
        check_requested(config)

    def kept(self) -> Mapping[str, str]:
        return {}

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
        self.require_weights(facts_of(snapshot))
        if adapter is not None:
            snapshot = merged(snapshot, adapter, scratch / "merged")
        peak = Peak()
        if recipe.quantization == "none":
            link_all(snapshot, output)
            require_weights(output)
            require_tokenizer(output)
            _add_draft(snapshot, draft, output)
            return Peak()
        place, _ = toolchain_for(recipe.runtime)
        command = commands.modelopt_command(recipe, str(snapshot), str(output))
        inputs = [snapshot, *recipe.calibration.local_folders]
        peak, _ = run_tool(place, command, inputs=inputs, outputs=[output], folder=scratch, reporter=reporter)
        require_weights(output)
        # transformers saves what it has loaded: neither templates that it does not read, nor a generation config.
        add_tokenizer(snapshot, output)
        _add_draft(snapshot, draft, output)
        return peak

    def build(
        self, checkpoint: Path, output: Path, scratch: Path, reporter: Reporter, draft: Path | None = None
    ) -> Peak:
        link_all(checkpoint, output)
        arguments = llm_arguments(self.recipe)
        (output / ARGUMENTS_FILE).write_text(json.dumps(arguments, indent=1, sort_keys=True))
        (output / LIMITS_FILE).write_text(checkpoint_limits(checkpoint, self.recipe).to_json())
        return Peak()

    def assemble(self, engine: Files, output: Path, adapters: RequestAdapters = NO_ADAPTERS) -> None:
        from tasks.kinds.answers import require_template, sampling_of
        from tasks.serving.settings import ServingSettings
        from tasks.triton.config import ENGINE_FOLDER
        from tasks.triton.repository import adapter_folder, write_release

        recipe, serving, known = self.recipe, self.model.serving, EngineLimits.from_json(limits_in(engine))
        require_template(serving, engine)
        parameters = self.served(known)
        context_tokens = min(serving.context_tokens, known.max_seq_len)
        arguments = release_arguments(
            recipe,
            parameters,
            max_batch_size=min(serving.slots, known.max_batch_size),
            max_seq_len=context_tokens,
            kv_cache_tokens=self.cache_tokens(known),
            kv_cache_bytes=self.cache_bytes(known),
            room=_room(adapters),
        )
        chunked = bool(arguments.get("enable_chunked_prefill"))
        write_release(
            output,
            ServingSettings(
                engine="llmapi",
                engine_path=ENGINE_FOLDER,
                slots=serving.slots,
                context_tokens=context_tokens,
                chat_template=serving.chat_template,
                request_timeout_s=serving.request_timeout_s,
                tensorrt_llm=recipe.runtime.tensorrt_llm,
                # Without chunks a whole prompt goes through the model in one pass.
                max_input_tokens=known.max_input_len if chunked else min(known.max_input_len, recipe.max_num_tokens),
                max_beam_width=parameters.max_beam_width,
                guided_decoding="guided_decoding_backend" in arguments,
                llm_arguments=arguments,
                sampling=sampling_of(serving, engine),
                max_tokens=serving.max_tokens,
                contract=serving.contract,
                adapters=adapters.names,
            ),
            engine_in_place=True,
        )
        for name in adapters.names:
            folder = adapter_folder(output, name)
            for file in FILES:
                shutil.copyfile(adapters.folders[name] / file, folder / file)


def _add_draft(snapshot: Path, draft: Path | None, output: Path) -> None:
    if draft is not None:
        require_same_tokens(snapshot, draft)
        link_all(draft, output / DRAFT_FOLDER)
        require_config(output / DRAFT_FOLDER)


def _room(adapters: RequestAdapters) -> LoraRoom | None:
    """What the LLM has to know of all adapters before it is asked for one."""
    found = [read_requested(adapters.folders[name]) for name in adapters.names]
    modules = {name for adapter in found for _, name in by_layer(adapter)}
    if others := sorted(modules - MODULES.keys()):
        raise not_by_request(f"{', '.join(others)}: only {', '.join(MODULES)} can be added")
    if not found:
        return None
    return LoraRoom(tuple(sorted(MODULES[name] for name in modules)), max(map(rank, found)), len(found))
