"""AIPerf on the models on which the load was measured, where ENGINEHOUSE_TEST_AIPERF names an environment that has it.

It asks for 139 packages, so it has an environment of its own: `python3 -m venv DIR && DIR/bin/pip install aiperf`.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.load.arrivals import at_rate
from tasks.load.lengths import parse_lengths
from tasks.load.prompts import drawn_prompts
from tests.tasks.load.test_against_model import MEASURED, SHOWN, TOKENS, WARM_UP, first_in_turn, measure, openai
from tests.tasks.load.timed_model import Delays, Seen, timed_model

AIPERF = os.environ.get("ENGINEHOUSE_TEST_AIPERF", "")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not AIPERF, reason="ENGINEHOUSE_TEST_AIPERF names no environment with AIPerf"),
]


def tokenizer(folder: Path) -> Path:
    """One of a single word: AIPerf wants to load one, though the server counts."""
    tokenizers: Any = importlib.import_module("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    return folder


def profile(folder: Path, delays: Delays, rate: float, *more: str) -> tuple[dict[str, Any], list[Seen]]:
    """AIPerf's figures, and what the model saw of the requests that it measured."""
    asks = islice(at_rate("constant", rate, 4, drawn_prompts(4, parse_lengths("20"), parse_lengths("1"))), 600)
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"text": ask.prompt.text}) + "\n" for ask in asks))
    with timed_model(delays) as model:
        options = {
            "--model": "tiny", "--url": model.http, "--endpoint-type": "chat", "--request-rate": f"{rate:g}",
            "--arrival-pattern": "constant", "--request-count": str(MEASURED), "--warmup-request-count": str(WARM_UP),
            "--input-file": str(prompts), "--custom-dataset-type": "single_turn",
            "--extra-inputs": f"max_tokens:{TOKENS}",
            "--tokenizer": str(tokenizer(folder / "tokenizer")), "--output-artifact-dir": str(folder / "out"),
            "--ui": "none",
        }  # fmt: skip
        words = [word for option in options.items() for word in option]
        flags = ("--streaming", "--use-server-token-count", "--use-legacy-max-tokens")
        command = [f"{AIPERF}/bin/aiperf", "profile", *words, *flags, *more]
        with first_in_turn():
            subprocess.run(command, cwd=folder, check=True, timeout=240, stdout=subprocess.DEVNULL)
    seen = sorted(model.seen, key=lambda each: each.came)[-MEASURED:]
    return json.loads((folder / "out" / "profile_export_aiperf.json").read_text()), seen


def told(name: str, values: Sequence[float | None]) -> str:
    return f"{name:44}" + "".join(f"{value or 0:9.1f}" for value in values)


def percentiles(times: Sequence[float]) -> list[float | None]:
    return [float(np.percentile(times, which)) * 1000 for which in SHOWN]


def test_aiperf_and_the_load_say_the_same_of_a_steady_model(tmp_path: Path) -> None:
    delays = Delays(first_s=0.2, token_s=0.02)
    theirs, seen = profile(tmp_path, delays, 40)
    found, own = measure(openai, delays, "constant", 40)
    print("\n" + " " * 44 + "".join(f"{f'p{which:g}':>9}" for which in SHOWN))
    for name in ("time_to_first_token", "request_latency"):
        end = "first" if name == "time_to_first_token" else "last"
        ours = next(each for each in found.figures if each.metric.name == name)
        print(told(f"{name}, AIPerf", [theirs[name][f"p{which:g}"] for which in SHOWN]))
        print(told("  the model's own", percentiles([getattr(each, end) - each.came for each in seen])))
        print(told(f"{name}, the load", [each.value for each in ours.percentiles if each.which in SHOWN]))
        print(told("  the model's own", percentiles([getattr(each, end) - each.came for each in own])))
        middle = next(each.value for each in ours.percentiles if each.which == 50)
        assert middle is not None and theirs[name]["p50"] == pytest.approx(middle, rel=0.1)


def test_aiperf_does_not_see_a_stall_behind_a_cap_and_the_load_does(tmp_path: Path) -> None:
    delays = Delays(first_s=0.08, token_s=0.005, spread=0.1, stall_at=200, stall_s=2.0)
    theirs, _ = profile(tmp_path, delays, 40, "--concurrency", "8")
    found, _ = measure(openai, delays, "constant", 40, 8)
    ours = next(each for each in found.figures if each.metric.name == "time_to_first_token")
    print("\n" + " " * 44 + "".join(f"{f'p{which:g}':>9}" for which in SHOWN))
    print(told("time_to_first_token, AIPerf", [theirs["time_to_first_token"][f"p{which:g}"] for which in SHOWN]))
    if "effective_latency" in theirs:
        print(told("effective_latency, AIPerf", [theirs["effective_latency"][f"p{which:g}"] for which in SHOWN]))
    print(told("time_to_first_token, the load", [each.value for each in ours.percentiles if each.which in SHOWN]))
    value = next(each.value for each in ours.percentiles if each.which == 95)
    assert value is not None and value > 1000 > theirs["time_to_first_token"]["p95"]
