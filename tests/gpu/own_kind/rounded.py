"""A kind of the campaign's own: a checkpoint whose matrices were rounded to FP8, in bfloat16, served by PyTorch.

TensorRT-LLM, which would serve FP8 itself, is on no machine of ours. So what FP8 costs in the weights is here, and what
it costs in the inputs of each matrix is not: those stay as they are.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from infra.errors import StepFailed
from tasks.kinds.choice import KINDS
from tasks.kinds.transformers import TransformersKind
from tasks.models.recipe import RECIPES, TransformersRecipe
from tasks.models.spec import Model
from tasks.store.identity import Identity
from tasks.store.reporter import Peak, Reporter

KIND = "rounded-to-fp8"
POOL = "build-rounded"


class RoundedRecipe(TransformersRecipe):
    """`scales` is a checkpoint that ModelOpt has quantized to FP8. Without one the largest weight of each matrix gives
    its scale."""

    kind: Literal["rounded-to-fp8"]  # pyright: ignore[reportIncompatibleVariableOverride]
    scales: str = ""


class RoundedKind(TransformersKind):
    def __init__(self, model: Model) -> None:
        super().__init__(model)
        assert isinstance(model.recipe, RoundedRecipe)
        self.scales = model.recipe.scales

    def pool(self) -> str:
        return POOL

    def checkpoint_identity(self, inputs: Mapping[str, Identity]) -> Identity:
        return Identity.of("convert", 1, inputs=inputs, fields={"kind": KIND, "scales": self.scales})

    def convert(
        self,
        snapshot: Path,
        adapter: Path | None,
        output: Path,
        scratch: Path,
        reporter: Reporter,
        draft: Path | None = None,
    ) -> Peak:
        peak = super().convert(snapshot, adapter, output, scratch, reporter, draft)
        command = [sys.executable, "-m", "tests.gpu.round_weights", str(output), self.scales]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise StepFailed(
                f"the weights were not rounded: {done.stderr[-500:]}", hint="the machine needs PyTorch and safetensors"
            )
        return peak


def register() -> None:
    """Let this process know the kind."""
    RECIPES[KIND] = RoundedRecipe
    KINDS[KIND] = RoundedKind
