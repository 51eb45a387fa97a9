"""An engine without weights, from the command line that a recipe gives its version's `trtllm-build`."""

from __future__ import annotations

import json
from contextlib import chdir
from pathlib import Path

from tasks.trtllm.limits import EngineLimits
from tasks.trtllm.recipe import TrtEngineFields
from tasks.trtllm.tools.commands import build_command
from tests.standin import build, checkpoint, facts
from tests.standin.context import Context

LLAMA_3_8B = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "max_position_embeddings": 8192,
}

LIMITS = EngineLimits(
    max_batch_size=64,
    max_input_len=4096,
    max_seq_len=8192,
    max_beam_width=1,
    tokens_per_block=64,
    paged_kv_cache=True,
    paged_context_fmha=True,
    logits_type="FP32",
    cache_bytes_per_token=131072,
    weight_bytes=8 << 30,
)
"""The limits of such an engine, with weights of 8 bits."""


def make(recipe: TrtEngineFields, folder: Path) -> Path:
    """Make the folder `folder` with `config.json` and the rank files of a Llama 3 8B, and return it."""
    version = recipe.runtime.tensorrt_llm
    context = Context(version, recipe.runtime.arch, recipe.runtime.gpus)
    mapping = checkpoint.Mapping(recipe.tp_size, recipe.pp_size, recipe.cp_size)
    model = checkpoint.config(LLAMA_3_8B, context, recipe.dtype, mapping, checkpoint.Quantization(), {})
    path = folder.parent / f"{folder.name}-model.json"
    path.write_text(json.dumps(model))
    argv = build_command(recipe, "checkpoint", str(folder)).argv[1:]
    given = argv.index("--checkpoint_dir")
    argv = (*argv[:given], "--model_config", str(path), *argv[given + 2 :])
    with chdir(folder.parent):  # the timing cache goes into the current folder
        build.run(facts.parser(build.TOOL, version).parse_args(argv), context)
    return folder
