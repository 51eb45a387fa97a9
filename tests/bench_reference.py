"""Tokens that kind `transformers` makes on a CPU: by plain passes, by shared passes, by transformers' own batching.

    .venv-transformers/bin/python -m tests.bench_reference

Two Llamas of random numbers in 32 bits; `small` has the sizes of SmolLM2 135M. Answers are the 32 likeliest tokens, and
what the three ways say is compared. Time is that of the process, which has one thread to compute: others on the machine
count little.
"""

from __future__ import annotations

import importlib
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.serving.contract import GenerationRequest
from tasks.serving.llmapi import ENGINE_PATH
from tasks.serving.settings import Sampling, ServingSettings
from tests.tasks.serving.asked import Loop
from tests.tasks.serving.small_tokenizers import byte_level

STREAMS = (1, 8, 32)
TOKENS = 32
CONTEXT = 512
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1024,
    },
    "small": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
}
TEXT = "The quick brown fox jumps over the lazy dog and counts to nine in French. " * 12
CASES = (("tiny", 4), ("tiny", 56), ("small", 4), ("small", 27))
"""Sizes, and by how many characters of 16 prompts each is longer than the one before it."""

Said = list[str]


def main() -> None:
    for size, longer in CASES:
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = _write(Path(folder), SIZES[size])
            prompts = [TEXT[: 8 + longer * (index % 16)] for index in range(max(STREAMS))]
            _measure(f"{size}, prompts to {max(map(len, prompts))} characters", checkpoint, prompts)


def _measure(case: str, checkpoint: Path, prompts: Sequence[str]) -> None:
    engine_of: Any = importlib.import_module("tasks.serving.transformers_engine").Transformers
    settings = ServingSettings(
        "transformers",
        "engine",
        slots=max(STREAMS),
        context_tokens=CONTEXT,
        chat_template=False,
        request_timeout_s=600.0,
        threads=1,
        sampling=Sampling(temperature=0.0),
        contract=2,
        device="cpu",
        dtype="float32",
    )
    loop, engine = Loop(), engine_of(checkpoint, settings, {ENGINE_PATH: str(checkpoint)})

    def ours(asked: Sequence[str], seed: int | None) -> Said:
        running = [loop.ask(engine, GenerationRequest(text, max_tokens=TOKENS, seed=seed)) for text in asked]
        return ["".join(piece.text for piece in each) for each in running]

    ours(prompts[:8], None)
    found: dict[tuple[str, int], Said] = {}
    for streams in STREAMS:
        for way, seed in (("plain", 1), ("shared", None)):
            begin = time.process_time()
            found[way, streams] = ours(prompts[:streams], seed)
            _tell(case, way, streams, time.process_time() - begin)
    loop.close(engine)
    for streams in STREAMS:
        seconds, found["transformers", streams] = _transformers(checkpoint, prompts[:streams])
        _tell(case, "transformers", streams, seconds)
    for (way, streams), said in found.items():
        same = sum(one == other for one, other in zip(said, found["plain", max(STREAMS)], strict=False))
        print(f"{case}: {way:12} {streams:3} streams: {same} of {streams} answers as the plain passes say", flush=True)


def _tell(case: str, way: str, streams: int, seconds: float) -> None:
    print(
        f"{case}: {way:12} {streams:3} streams: {streams * TOKENS / seconds:8.1f} tokens a second of one core",
        flush=True,
    )


def _transformers(checkpoint: Path, prompts: Sequence[str]) -> tuple[float, Said]:
    """By transformers' own continuous batching, with a cache of the same size."""
    transformers: Any = importlib.import_module("transformers")
    importlib.import_module("torch").set_num_threads(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    ids = [tokenizer.encode(text, add_special_tokens=True) for text in prompts]
    config = transformers.ContinuousBatchingConfig(
        page_size=32, num_blocks=max(STREAMS) * CONTEXT // 32, max_batch_tokens=CONTEXT, allow_block_sharing=False
    )
    greedy = transformers.GenerationConfig(do_sample=False, max_new_tokens=TOKENS, eos_token_id=-1)
    with model.continuous_batching_context_manager(
        generation_config=greedy, continuous_batching_config=config
    ) as manager:
        _ask(manager, ids[:1], 4)
        begin = time.process_time()
        made = _ask(manager, ids, TOKENS)
        seconds = time.process_time() - begin
    return seconds, [tokenizer.decode(each, skip_special_tokens=True) for each in made]


def _ask(manager: Any, prompts: Sequence[list[int]], tokens: int) -> list[list[int]]:
    asked = [manager.add_request(ids, max_new_tokens=tokens, eos_token_id=-1) for ids in prompts]
    done: dict[str, list[int]] = {}
    while len(done) < len(asked):
        if (result := manager.get_result(timeout=1)) is not None and result.is_finished():
            done[result.request_id] = list(result.generated_tokens)
        elif not manager.is_running():
            raise SystemExit("transformers' own batching has ended")
    return [done[each] for each in asked]


def _write(folder: Path, sizes: dict[str, Any]) -> Path:
    """A Llama with a tokenizer that has a text for each of its tokens."""
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    tokenizers: Any = importlib.import_module("tokenizers")
    document = json.loads(byte_level().tokenizer.to_str())
    known = document["model"]["vocab"]
    document["model"]["vocab"] = {**known, **{f"t{each}": each for each in range(len(known), sizes["vocab_size"])}}
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **sizes, max_position_embeddings=2048, initializer_range=0.1, bos_token_id=1, eos_token_id=2
    )
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        # The score of the token that ends an answer is 0 then, which is never the highest.
        model.get_output_embeddings().weight[config.eos_token_id] = 0
    model.save_pretrained(folder)
    tokenizers.Tokenizer.from_str(json.dumps(document)).save(str(folder / "tokenizer.json"))
    marks = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **marks}))
    return folder


if __name__ == "__main__":
    main()
