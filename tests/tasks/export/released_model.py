"""A release whose weights have a card, as the hub's have."""

from __future__ import annotations

from pathlib import Path

from pydantic import JsonValue

from tasks.store.identity import Identity
from tasks.targets.gate_record import Comparison, Verdict
from tasks.targets.release import Intent, Result
from tests.fleet import Fleet, Made

README = """---
license: apache-2.0
base_model: org/base
datasets:
- org/texts
---
# Tiny
"""
CONFIG = '{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}'
RECIPE: dict[str, JsonValue] = {
    "kind": "trt-engine",
    "dtype": "bfloat16",
    "quantization": "fp8",
    "awq_block_size": None,
    "runtime": {"tensorrt_llm": "1.1.0"},
}


def released(fleet: Fleet, folder: Path, **recipe: JsonValue) -> Made:
    """Release 1 of `tiny`, which has passed its gates. `folder` is an empty one, for the weights."""
    folder.mkdir()
    (folder / "README.md").write_text(README)
    (folder / "config.json").write_text(CONFIG)
    pin: dict[str, JsonValue] = {"scheme": "hf", "repository": "org/tiny", "commit": "a" * 40, "files": []}
    snapshot = Identity.of("fetch", 1, inputs={}, fields={"source": pin})
    fleet.publish("snapshot", "tiny", snapshot, folder)
    made = fleet.rebuild()
    intent = fleet.target.reserve(
        made.model,
        lambda number: Intent(
            model=made.model,
            release=number,
            repository=str(made.repository),
            digest="d",
            recipe={**RECIPE, **recipe},
            serving={"slots": 4, "system": None},
            source="hf://org/tiny@main",
            flow_run="some-run",
        ),
    )
    found = Comparison(
        measure="next-token agreement",
        candidate=0.98125,
        other=1,
        difference=-0.01875,
        lower=-0.03,
        upper=0,
        margin=0.05,
        p_worse=1,
        p_fine=0.001,
        samples=320,
    )
    verdict = Verdict(gate="same", kind="agreement", state="passed", reason="", samples=320, decisive=found)
    fleet.target.conclude(made.model, Result(release=intent.release, state="passed", gates=(verdict,)))
    return made
