"""Part 5: ModelOpt quantizes checkpoints of the kind `llmapi` on the GPU, and their logits against the weights' own."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra import gpu
from tasks.models.recipe import LlmApiRecipe
from tasks.store.reporter import Reporter
from tasks.trtllm.tools.commands import modelopt_command
from tasks.trtllm.tools.run import run_tool, toolchain_for
from tests.gpu.campaign import SMALL, Campaign, tiny_tokenizer
from tests.gpu.toolchain import TENSORRT_LLM

_TINY: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    # Larger than trained models begin with, so that the tokens differ in their scores.
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}
FAMILIES: Mapping[str, dict[str, Any]] = {
    "Qwen2": {},
    "Gemma2": {"sliding_window": 64, "query_pre_attn_scalar": 32},
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}
_NOT_SERVED = ("Gemma2",)
"""The LLM API loads none of these: a rebuild must say so, and ModelOpt's program is run by itself."""
_TEXTS = (
    "The sea is calm in the morning, and the boats go out before the sun is up.",
    "How do I count to nine in French? One begins with un, deux, trois.",
    "A model is a file, and a release is what is made of it.",
    "Write one sentence about the weather in spring, and another about the autumn.",
)


def run(campaign: Campaign) -> None:
    if not (campaign.toolchain and campaign.sizes.on_gpu):
        campaign.table.skipped("ModelOpt", "no GPU, or ENGINEHOUSE_GPU_TOOLCHAIN is not set")
        return
    texts = campaign.folder / "texts"
    texts.mkdir(exist_ok=True)
    lines = [json.dumps({"text": f"{text} {number}"}) for number in range(8) for text in _TEXTS]
    (texts / "train.jsonl").write_text("\n".join(lines) + "\n")
    _quantized(campaign, "smollm2", campaign.weights(SMALL), texts)
    tokenizer = tiny_tokenizer(campaign.folder / "weights" / "tokenizer")
    for family, changes in FAMILIES.items():
        folder = campaign.folder / "weights" / family.lower()
        campaign.program("weights", "random", family, str(tokenizer), str(folder), json.dumps({**_TINY, **changes}))
        _quantized(campaign, family.lower(), folder, texts)


def _quantized(campaign: Campaign, name: str, weights: Path, texts: Path) -> None:
    """One model's failure must not hide what becomes of the next."""
    began = time.monotonic()
    try:
        checkpoint = _checkpoint(campaign, name, weights, texts)
        seconds = time.monotonic() - began
        told = campaign.program("logits", str(weights), str(checkpoint), json.dumps(_TEXTS), python=campaign.toolchain)
        found: dict[str, float] = json.loads(told.rstrip().rpartition("\n")[2])
    except Exception as error:
        said = " ".join(str(error).split())[-400:]
        campaign.table.goal(f"{name}: fp8 by ModelOpt", said, "the step runs", met=False)
        return
    campaign.table.goal(
        f"{name}: fp8 by ModelOpt, {found['matrices']} matrices, after {seconds:.0f} s",
        f"same next token {found['top1']:.3f}, KL {found['kl']:.4f}, logits differ by {found['mean']:.3f} on average"
        f" and {found['most']:.2f} at most, of a standard deviation of {found['deviation']:.2f}",
        "the step runs",
        met=True,
    )


def _checkpoint(campaign: Campaign, name: str, weights: Path, texts: Path) -> Path:
    """What the step `convert` makes of the weights, in the flow where the kind serves such weights."""
    model, house = f"fp8-{name}", campaign.house
    output = campaign.folder / "checkpoints" / name
    recipe = _recipe(campaign, texts)
    house.write(
        model,
        source={"uri": f"file://{weights}"},
        recipe=recipe,
        serving={"slots": 8, "context_tokens": 256, "chat_template": False},
        targets=["local"],
        prompts=[{"name": "any", "text": "Hello", "max_tokens": 1, "expect": {"min_tokens": 1}}],
    )
    if name not in map(str.lower, _NOT_SERVED):
        return campaign.download(house.rebuild(model, "--until", "upload"), "convert", output)
    code = house.rebuild(model, "--until", "upload", code=2)["error"]["code"]
    campaign.table.goal(f"{name}: rebuilt", code, "architecture-unfit", code == "architecture-unfit")
    parsed = LlmApiRecipe.model_validate(recipe)
    place, _ = toolchain_for(parsed.runtime)
    scratch = campaign.folder / "scratch"
    for folder in (output, scratch):
        folder.mkdir(parents=True, exist_ok=True)
    run_tool(
        place,
        modelopt_command(parsed, str(weights), str(output)),
        inputs=[weights, texts],
        outputs=[output],
        folder=scratch,
        reporter=Reporter(),
    )
    return output


def _recipe(campaign: Campaign, texts: Path) -> dict[str, Any]:
    product = gpu.probe().gpus[0].product
    return {
        "kind": "llmapi",
        "runtime": {"tensorrt_llm": TENSORRT_LLM, "gpu": product, "arch": campaign.sizes.architecture, "gpus": 1},
        "dtype": "bfloat16",
        "quantization": "fp8",
        "calibration": {"dataset": str(texts), "size": 32, "max_seq_length": 64},
        "max_batch_size": 8,
        "max_input_len": 128,
        "max_seq_len": 256,
    }
