"""Logits of a checkpoint that ModelOpt has quantized to FP8, against those of the weights that it was made of.

    PYTHON -m tests.gpu.logits WEIGHTS CHECKPOINT TEXTS          # TEXTS as JSON; prints figures as JSON

No engine is needed: each matrix in FP8 is the stored one times its scale, and what goes into it is rounded to FP8 by
the scale that was calibrated, as the engines do. It runs in the toolchain and imports nothing of Enginehouse.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

LARGEST = 448.0
"""Of FP8 as E4M3."""


def main(weights: str, checkpoint: str, texts: list[str]) -> None:
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = transformers.AutoTokenizer.from_pretrained(weights, local_files_only=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        weights, torch_dtype=torch.bfloat16, local_files_only=True
    ).to(device)
    model.eval()

    def scores() -> Any:
        with torch.inference_mode():
            return torch.cat([model(**tokenizer(text, return_tensors="pt").to(device)).logits[0] for text in texts])

    before = scores().float()
    matrices = _quantize(torch, model, tensors_of(Path(checkpoint)))
    after = scores().float()
    logs = [torch.log_softmax(each, dim=-1) for each in (before, after)]
    difference = (after - before).abs()
    found = {
        "matrices": matrices,
        "top1": (before.argmax(-1) == after.argmax(-1)).float().mean().item(),
        "kl": (logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean().item(),
        "mean": difference.mean().item(),
        "most": difference.max().item(),
        "deviation": before.std().item(),
    }
    print(json.dumps(found))


def tensors_of(checkpoint: Path) -> dict[str, Any]:
    safetensors: Any = importlib.import_module("safetensors.torch")
    found: dict[str, Any] = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        found |= safetensors.load_file(file)
    return found


def matrix(tensors: dict[str, Any], module: str) -> Any:
    """What a matrix in FP8 stands for: the stored one times its scale, or the scales of its rows."""
    scale = tensors[f"{module}.weight_scale"].float()
    return tensors[f"{module}.weight"].float() * (scale[:, None] if scale.dim() == 1 and len(scale) > 1 else scale)


def _quantize(torch: Any, model: Any, tensors: dict[str, Any]) -> int:
    """Give the model's matrices the values of the checkpoint. Returns how many there are; each must find its module."""
    stored = {name.removesuffix(".weight") for name, each in tensors.items() if each.dtype == torch.float8_e4m3fn}
    modules = dict(model.named_modules())
    assert stored and stored <= modules.keys(), f"of no module: {sorted(stored - modules.keys())[:3]}"
    for name in stored:
        module = modules[name]
        with torch.no_grad():
            module.weight.copy_(matrix(tensors, name))
        module.register_forward_pre_hook(_rounding(torch, tensors[f"{name}.input_scale"].float().to(model.device)))
    return len(stored)


def _rounding(torch: Any, scale: Any) -> Any:
    def rounded(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        first = inputs[0]
        small = (first.float() / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
        return ((small.float() * scale).to(first.dtype), *inputs[1:])

    return rounded


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
