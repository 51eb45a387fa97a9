"""The engine `transformers`, held against what transformers and PEFT themselves make of the same checkpoint."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from tasks.serving.contract import GenerationRequest, LogProb, PromptTooLong, RequestRefused
from tasks.serving.engine import EngineFailed
from tasks.serving.settings import ADAPTER_FOLDER
from tasks.serving.torch_model import SCORED_AT_ONCE, TorchModel
from tests.tasks.lora.small_adapters import write_adapter
from tests.tasks.serving.asked import Loop
from tests.tasks.serving.small_tokenizers import byte_level
from tests.tasks.serving.small_torch import FAMILIES, PROMPT, TOKENS, Engines, answer, write_model

pytestmark = pytest.mark.slow
for _package in ("torch", "peft"):
    pytest.importorskip(_package, reason="the extra `transformers` is not installed: make test-reference")

torch: Any = importlib.import_module("torch")
transformers: Any = importlib.import_module("transformers")
peft: Any = importlib.import_module("peft")


@pytest.fixture
def loop() -> Loop:
    """Closed by `start`, which every test has."""
    return Loop()


@pytest.fixture
def start(loop: Loop, tmp_path: Path) -> Iterator[Engines]:
    engines = Engines(loop, tmp_path)
    yield engines
    engines.close()


def expected(checkpoint: Path, text: str = PROMPT, adapter: Path | None = None) -> tuple[str, list[float]]:
    """What transformers' own `generate` says, and the log probabilities of one forward pass over all of it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    if adapter is not None:
        model = peft.PeftModel.from_pretrained(model, adapter)
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    prompt = tokenizer(text, return_tensors="pt").input_ids
    with torch.inference_mode():
        whole = model.generate(input_ids=prompt, max_new_tokens=TOKENS, do_sample=False)
        scores = torch.log_softmax(model(whole).logits[0].float(), -1)
    begin = prompt.shape[1]
    told = [scores[place - 1, whole[0, place]].item() for place in range(begin, whole.shape[1])]
    return tokenizer.decode(whole[0, begin:], skip_special_tokens=True), told


@pytest.mark.parametrize("family", FAMILIES)
def test_it_says_what_transformers_says(family: str, loop: Loop, start: Engines, tmp_path: Path) -> None:
    checkpoint = write_model(tmp_path / "model", family)
    text, log_probs = expected(checkpoint)
    said = answer(loop, start(checkpoint), return_log_probs=True, num_top_log_probs=3)
    assert said[0] == text and len(said[1]) == TOKENS
    assert said[1] == pytest.approx(log_probs, abs=1e-4)
    for each in said[1]:
        assert isinstance(each, LogProb) and len(each.top) == 3
        assert each.top[0] == (each.token, each)


def scored(loop: Loop, engine: Any, given: str, **fields: Any) -> list[float]:
    asked = GenerationRequest(text_input=PROMPT, given_output=given, return_log_probs=True, **fields)
    (piece,) = list(loop.ask(engine, asked))
    assert (piece.text, piece.finish_reason, piece.output_tokens) == (given, "stop", len(piece.log_probs))
    return list(piece.log_probs)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_given_text_gets_the_scores_of_one_pass_over_it(
    family: str, loop: Loop, start: Engines, tmp_path: Path
) -> None:
    checkpoint = write_model(tmp_path / "model", family)
    given = " You say un, deux, trois, quatre, cinq, six, sept, huit, neuf; then you are done. 🎉"
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    prompt, ids = (byte_level().encode(text, add_special_tokens=False) for text in (PROMPT, given))
    assert len(ids) > SCORED_AT_ONCE
    with torch.inference_mode():
        own = torch.log_softmax(model(torch.tensor([[*prompt, *ids]])).logits[0].float(), -1)[len(prompt) - 1 :]
    found = scored(loop, start(checkpoint), given, num_top_log_probs=1)
    assert found == pytest.approx([own[place, token].item() for place, token in enumerate(ids)], abs=1e-4)
    for place, each in enumerate(found):
        assert isinstance(each, LogProb)
        assert each.top[0][1] == pytest.approx(own[place].max().item(), abs=1e-4)


def test_what_a_model_says_itself_is_likeliest_in_each_place(loop: Loop, start: Engines, tmp_path: Path) -> None:
    engine = start(write_model(tmp_path / "model", "Llama"))
    # As text, for which the tokenizer may choose other tokens than the model did.
    text, log_probs, _ = answer(loop, engine, max_tokens=1, return_log_probs=True)
    (found,) = scored(loop, engine, text, num_top_log_probs=2)
    assert found == pytest.approx(log_probs[0], abs=1e-6)
    assert isinstance(found, LogProb) and found.top[0] == (found.token, found)
    with pytest.raises(PromptTooLong, match=r"'given_output' have .* tokens of 256"):
        scored(loop, engine, "un deux trois " * 100)


def test_weights_of_16_bits_are_computed_as_they_are_or_as_asked(loop: Loop, start: Engines, tmp_path: Path) -> None:
    checkpoint = write_model(tmp_path / "model", "Llama", dtype="bfloat16")
    as_they_are, wider = (
        answer(loop, start(checkpoint, dtype=dtype), return_log_probs=True)[1] for dtype in ("auto", "float32")
    )
    text, exact = expected(checkpoint)
    assert as_they_are[:4] == pytest.approx(exact[:4], abs=0.1) and as_they_are != wider
    assert text


def test_no_request_changes_another(loop: Loop, start: Engines, tmp_path: Path) -> None:
    engine = start(write_model(tmp_path / "model", "Qwen2"))
    texts = ["a", PROMPT, "the " * 40, "naïve café", "1 2 3", "def f(x):"]
    fields: list[dict[str, Any]] = [
        {"seed": number, "temperature": 0.5 * number, "return_log_probs": True} for number in range(len(texts))
    ]
    alone = [answer(loop, engine, text, **each) for text, each in zip(texts, fields, strict=True)]
    # Of six, two run at once, and the others wait for their rooms.
    asked = [
        loop.ask(engine, GenerationRequest(text_input=text, max_tokens=TOKENS, **each))
        for text, each in zip(texts, fields, strict=True)
    ]
    for (text, log_probs, _), each in zip(alone, asked, strict=True):
        pieces = list(each)
        assert "".join(piece.text for piece in pieces) == text
        assert [value for piece in pieces for value in piece.log_probs] == log_probs


def test_who_leaves_makes_room(loop: Loop, start: Engines, tmp_path: Path) -> None:
    engine = start(write_model(tmp_path / "model", "Llama"))
    long = GenerationRequest(text_input=PROMPT, max_tokens=200)
    for _ in range(3):
        running = [loop.ask(engine, long) for _ in range(4)]
        next(iter(running[0]))
        assert engine.cache_usage() > 0
        for each in running:
            each.cancel()
    assert answer(loop, engine, max_tokens=3)[2] == "length"
    assert engine.cache_usage() == 0


def test_where_an_answer_ends(loop: Loop, start: Engines, tmp_path: Path) -> None:
    engine = start(write_model(tmp_path / "model", "Llama"))
    text, _, _ = answer(loop, engine)
    word = text[10:14]
    stopped = answer(loop, engine, stop_words=(word,))
    assert stopped[0] == text[: text.index(word)] and stopped[2] == "stop_words"
    tokens = [each.token for each in answer(loop, engine, return_log_probs=True)[1] if isinstance(each, LogProb)]
    spelled = [byte_level().encode(token.decode(errors="replace"), add_special_tokens=False) for token in tokens]
    place, end_id = next((at, ids[0]) for at, ids in enumerate(spelled) if at > 3 and len(ids) == 1)
    first = next(at for at, ids in enumerate(spelled) if ids == [end_id])
    ended = answer(loop, engine, end_id=end_id, return_log_probs=True)
    assert (len(ended[1]), ended[2]) == (first, "stop")
    later = answer(loop, engine, end_id=end_id, min_tokens=place + 2, return_log_probs=True)
    assert len(later[1]) >= place + 2
    assert answer(loop, engine, max_tokens=None)[2] == "length"


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT 0.21 asks for it
def test_each_request_has_its_adapter(loop: Loop, start: Engines, tmp_path: Path) -> None:
    checkpoint = write_model(tmp_path / "model", "Llama")
    shapes = {"self_attn.q_proj": (48, 48), "mlp.down_proj": (48, 96)}
    names = ("french", "prose")
    for seed, name in enumerate(names):
        write_adapter(tmp_path / ADAPTER_FOLDER / name, shapes, layers=3, seed=seed)
    engine = start(checkpoint, adapters=names)
    wanted = {name: expected(checkpoint, adapter=tmp_path / ADAPTER_FOLDER / name) for name in names}
    wanted[""] = expected(checkpoint)
    assert len({text for text, _ in wanted.values()}) == 3
    asked = {
        name: loop.ask(
            engine,
            GenerationRequest(text_input=PROMPT, max_tokens=TOKENS, lora_name=name, return_log_probs=True),
        )
        for name in wanted
    }
    for name, each in asked.items():
        pieces = list(each)
        assert "".join(piece.text for piece in pieces) == wanted[name][0]
        told = [value for piece in pieces for value in piece.log_probs]
        assert told == pytest.approx(wanted[name][1], abs=1e-4)
    with pytest.raises(RequestRefused, match="'lora_name'"):
        answer(loop, engine, lora_name="latin")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"beam_width": 2}, "'beam_width'"),
        ({"length_penalty": 2.0}, "'length_penalty'"),
        ({"guided_decoding_guide_type": "json", "min_tokens": 4}, "'min_tokens'"),
        ({"messages": ({"role": "user", "content": "a"},), "text_input": "a" * 20_000}, "the prompt has"),
    ],
)
def test_what_it_cannot_honour(fields: dict[str, Any], named: str, loop: Loop, start: Engines, tmp_path: Path) -> None:
    engine = start(write_model(tmp_path / "model", "Llama"))
    with pytest.raises(RequestRefused, match=named):
        asked: dict[str, Any] = {"text_input": "a", **fields}
        list(loop.ask(engine, GenerationRequest(**asked)))


def test_a_request_without_memory_fails_alone(
    loop: Loop, start: Engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(write_model(tmp_path / "model", "Llama"))
    whole, passed = answer(loop, engine), cast(Any, TorchModel)._pass

    def scarce(self: Any, ids: Any, *arguments: Any) -> Any:
        if len(ids) > 100:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nand more lines")
        return passed(self, ids, *arguments)

    monkeypatch.setattr(TorchModel, "_pass", scarce)
    long = loop.ask(engine, GenerationRequest(text_input="a b " * 40, max_tokens=4))
    short = loop.ask(engine, GenerationRequest(text_input=PROMPT, max_tokens=TOKENS))
    with pytest.raises(EngineFailed, match=r"the memory of the GPU does not suffice for this request.*2.00 GiB.$"):
        list(long)
    assert "".join(piece.text for piece in short) == whole[0]


def test_a_checkpoint_that_lacks_weights_is_not_filled_with_random_ones(start: Engines, tmp_path: Path) -> None:
    checkpoint = write_model(tmp_path / "model", "Llama")
    safetensors: Any = importlib.import_module("safetensors.torch")
    file = checkpoint / "model.safetensors"
    tensors = safetensors.load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    safetensors.save_file(tensors, file, {"format": "pt"})
    with pytest.raises(EngineFailed, match=r"missing_keys.*layers.1.mlp.up_proj"):
        start(checkpoint)
    file.unlink()
    np.save(checkpoint / "pytorch_model.bin", np.zeros(1))
    with pytest.raises(EngineFailed, match="cannot load"):
        start(checkpoint)


def test_a_release_for_a_gpu_needs_one(start: Engines, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(EngineFailed, match="runs on a GPU"):
        start(write_model(tmp_path / "model", "Llama"), device="cuda")
