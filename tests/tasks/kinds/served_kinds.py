"""The kinds as the contract tests serve them: what differs between them is data here.

A further kind joins by a `Kind` of its own in `KINDS`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
from packaging.version import Version

from tasks.kinds.llmapi import LlmApiKind
from tasks.kinds.protocol import LIMITS_FILE, RequestAdapters
from tasks.kinds.transformers import TransformersKind
from tasks.kinds.trt_engine import TrtEngineKind
from tasks.lora.gguf_adapter import write_gguf_adapter
from tasks.models.spec import Model
from tasks.serving.contract import CONTRACT
from tasks.serving.generation import files_in
from tasks.serving.llamacpp import ADAPTER_FILE
from tasks.serving.settings import Sampling, ServingSettings
from tasks.store.reporter import Reporter
from tasks.triton.backend_config import BACKEND
from tasks.triton.config import LLM, TENSORRT_LLM
from tasks.triton.repository import TOKENIZER_FOLDER, adapter_folder, write_release
from tasks.trtllm.limits import EngineLimits
from tests.standin import backend_sampler, llm_package
from tests.standin.guide import pieces
from tests.tasks.kinds import trained_model
from tests.tasks.kinds.trained_model import write_trained
from tests.tasks.lora.small_adapters import Shapes, write_adapter
from tests.tasks.serving.small_tokenizers import CORPUS, byte_level

Fields = dict[str, Any]

QUESTION: Fields = {"text_input": "How do I count to nine in French?", "max_tokens": 24}


@dataclass(frozen=True)
class Role:
    """A model that the tests need. Requests are answered within `timeout_s` seconds or fail."""

    slots: int
    context_tokens: int
    chat_template: bool
    timeout_s: float
    greedy: bool = False
    streams: bool = True
    adapters: tuple[str, ...] = ()


# By name: a chat model with room for many, and one for raw text with one slot and little time.
CHAT, RAW = "chat", "raw"

ADAPTERS = ("french", "prose", "sql")
"""The adapters of the first, where its kind takes any. Each has two modules of every layer."""


@dataclass(frozen=True)
class Kind:
    """How one kind is served in the tests, and in what it differs from the others.

    `write` fills a repository artifact and a folder of engine files for a role. `rendered` is the chat template with
    `{}` for the text. `refused` has fields that only this kind refuses, and how. `end_id` is the model's own.
    """

    name: str
    write: Callable[[Path, Path, Role], None]
    rendered: str
    refused: tuple[tuple[Fields, str], ...]
    end_id: int
    deadline_s: float
    guides: tuple[tuple[str, str, str], ...]
    """Types of guides that it keeps to, with a guide and what matches it; none: it is served without."""
    waiting: int = 30
    """Requests that run or wait when their deadline comes."""
    log_probs_within_characters: bool = True
    tells_the_likeliest: bool = False
    scores: bool = False
    takes_adapters: bool = True

    @property
    def releases(self) -> Mapping[tuple[str, int], Role]:
        chat = Role(8, 512, True, 60.0, adapters=ADAPTERS if self.takes_adapters else ())
        return {(CHAT, 1): chat, (CHAT, 2): chat, (RAW, 1): Role(1, 2048, False, self.deadline_s, greedy=True)}


def llamacpp(gguf: Path) -> Kind:
    def write(artifact: Path, engine: Path, role: Role) -> None:
        sampling = Sampling(temperature=0.0 if role.greedy else 1.0)
        settings = ServingSettings(
            "llamacpp",
            "engine/model.gguf",
            role.slots,
            role.context_tokens,
            role.chat_template,
            role.timeout_s,
            sampling=sampling,
            contract=CONTRACT,
            adapters=role.adapters,
        )
        write_release(artifact, settings)
        for seed, name in enumerate(role.adapters):
            # Those of SmolLM2 135M.
            shapes = {"self_attn.q_proj": (576, 576), "mlp.down_proj": (576, 1536)}
            made = write_adapter(artifact.parent / name, shapes, layers=30, seed=seed, size=1.2)
            write_gguf_adapter(gguf, made, adapter_folder(artifact, name) / ADAPTER_FILE)
        # A copy each: Triton takes a new link to an engine's file, of which the change time tells, for a new engine.
        shutil.copyfile(gguf, engine / "model.gguf")

    return Kind(
        name="llamacpp",
        write=write,
        rendered="<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
        refused=(
            ({"beam_width": 2}, "'beam_width'"),
            ({"length_penalty": 0.5}, "'length_penalty'"),
            ({"min_tokens": 1}, "'min_tokens'"),
            ({"min_length": 1}, "'min_tokens'"),
            ({"end_id": 0}, "'end_id' must be the model's own, 2"),
            ({"text_input": "word " * 800}, "the prompt has 8.. tokens; it may have 511"),
            ({"guided_decoding_guide_type": "regex", "guided_decoding_guide": "a"}, "cannot be 'regex'"),
            ({"guided_decoding_guide_type": "json", "bad_words": ["a"]}, "'bad_words' .* beside a guide"),
            (
                {"guided_decoding_guide_type": "ebnf_grammar", "guided_decoding_guide": "root ::= ("},
                "'guided_decoding_guide'",
            ),
            ({"guided_decoding_guide_type": "json_schema", "guided_decoding_guide": '{"not": {}}'}, "every keyword"),
            ({"text_input": "a" * 40_000}, "the prompt has 40000 characters; of 511 tokens it may have 32704"),
        ),
        end_id=2,
        deadline_s=6.0,
        guides=(
            ("json_schema", SCHEMA, ONE_OF_SCHEMA),
            ("ebnf_grammar", 'root ::= "un" [0-9] [0-9]? "deux"', "un[0-9]{1,2}deux"),
        ),
        waiting=2,  # each costs this machine's own cores
        log_probs_within_characters=False,
        tells_the_likeliest=True,
    )


SCHEMA = '{"enum": ["un", "deux", "trois"]}'
ONE_OF_SCHEMA = '"(un|deux|trois)"'
STANDIN_GUIDES = (
    ("json_schema", SCHEMA, ONE_OF_SCHEMA),
    ("ebnf_grammar", 'root ::= "un" | "deux"', "un|deux"),
    ("regex", "[0-9]{3}-[a-c]{2}", "[0-9]{3}-[a-c]{2}"),
)

MAX_BEAM_WIDTH = 4
MAX_INPUT_TOKENS = 300
TOKEN_SECONDS = 0.005
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
RENDERED = "user: {}\nassistant:"
TEXTS = (
    *CORPUS,
    *(
        RENDERED.format(QUESTION["text_input"]) + answer
        for answer in (
            " You say un, deux, trois, quatre, cinq, six, sept, huit, neuf, and then you are done with all of it!",
            " Count in French like this: un and deux, trois and quatre, cinq and six, sept and huit, then neuf.",
            " Nothing is easier than that. Listen to me: un, deux, trois, quatre; the others you know by yourself.",
        )
    ),
    "1 2 3 4 5 6 7 8 9 " * 9,
    "🎉🎊🥳" * 9,
    "ha " * 9,
)
"""What the stand-in has read. The last three have no end: it says them for ever."""


class Spoken(Protocol):
    """What a stand-in speaks: a tokenizer with all that is beside it, and texts in tokens that it has read."""

    def tokenizer(self) -> Any: ...

    def corpus(self) -> list[list[int]]: ...

    def write(self, folder: Path) -> Path: ...


class _ByteLevel:
    def tokenizer(self) -> Any:
        return byte_level().tokenizer

    def corpus(self) -> list[list[int]]:
        texts: list[list[int]] = [self.tokenizer().encode(text).ids for text in TEXTS]
        for text in texts[:-3]:
            text.append(END_ID)
        return texts

    def write(self, folder: Path) -> Path:
        return write_tokenizer(folder, self.tokenizer())


BYTE_LEVEL: Spoken = _ByteLevel()
END_ID: int = byte_level().tokenizer.token_to_id("</s>")


def trt_engine(version: str, *, llm_instances: int | None = None, spoken: Spoken = BYTE_LEVEL) -> Kind:
    """An engine of TensorRT-LLM, whose C++ backend the stand-in stands in for."""
    guided = Version(version) >= Version("0.19")
    takes_adapters = Version(version) >= Version("0.9")

    def write(artifact: Path, engine: Path, role: Role) -> None:
        parameters: Fields = {
            "max_beam_width": MAX_BEAM_WIDTH,
            "llm_instances": llm_instances,
            "decoupled": role.streams,
        }
        if guided:
            parameters |= {"guided_decoding": "xgrammar", "xgrammar_tokenizer_info": "/unread"}
        if role.adapters:
            # Two of them, of 4 rows of 192 numbers each. What the engine drops has to be given again.
            parameters |= {"lora_cache": {"host_bytes": 2 * 4 * 192 * 2}}
        model, limits = _model("trt-engine", version, role, parameters), _limits(role)
        _write_engine(engine, version, limits, spoken)
        files = files_in(engine / TOKENIZER_FOLDER)
        TrtEngineKind(model).write_release(limits, files, artifact, adapters=_adapters(role, engine))
        backend = artifact / TENSORRT_LLM
        config = (backend / "config.pbtxt").read_text()
        assert f'backend: "{BACKEND}"' in config
        (backend / "config.pbtxt").write_text(config.replace(f'backend: "{BACKEND}"', 'backend: "python"'))
        (backend / "1").mkdir()
        sampler = Path(str(backend_sampler.__file__))
        shutil.copyfile(sampler.with_name("backend_model.py"), backend / "1" / "model.py")
        for name in (sampler.name, "backend_lora.py", "guide.py"):
            shutil.copyfile(sampler.with_name(name), backend / "1" / name)

    return Kind(
        name=f"trt-engine-{version}",
        write=write,
        rendered=RENDERED,
        refused=(
            ({"beam_width": MAX_BEAM_WIDTH + 1}, f"'beam_width' is 5; .* with {MAX_BEAM_WIDTH} at most"),
            ({"beam_width": 2, "stream": True}, "'stream' must be false with a 'beam_width'"),
            ({"length_penalty": 0.5}, "'length_penalty'"),
            ({"top_k": 1025}, "'top_k' is 1025; the most is 1024"),
            ({"text_input": "word " * 400}, f"the prompt has .* tokens; it may have {MAX_INPUT_TOKENS}"),
            ({"guided_decoding_guide_type": "regex", "guided_decoding_guide": "("}, "missing \\)")
            if guided
            else ({"guided_decoding_guide_type": "json"}, "this model is served without guides"),
        ),
        end_id=END_ID,
        deadline_s=3.0,
        guides=STANDIN_GUIDES if guided else (),
        takes_adapters=takes_adapters,
    )


def llmapi(version: str, *, spoken: Spoken = BYTE_LEVEL) -> Kind:
    """A checkpoint that the LLM API loads, for which the stand-in stands in."""

    def write(artifact: Path, engine: Path, role: Role) -> None:
        model = _model("llmapi", version, role, {"guided_decoding": "xgrammar"})
        spoken.write(engine)
        llm_package.write_model(engine, version, spoken.tokenizer(), spoken.corpus(), TOKEN_SECONDS)
        (engine / LIMITS_FILE).write_text(_limits(role).to_json())
        LlmApiKind(model).assemble(files_in(engine), artifact, _adapters(role, engine))
        llm_package.install(artifact / LLM / "1")

    return Kind(
        name=f"llmapi-{version}",
        write=write,
        rendered=RENDERED,
        refused=(
            ({"beam_width": 2}, "'beam_width' must be 1"),
            ({"length_penalty": 0.5}, "'length_penalty'"),
            ({"text_input": "word " * 400}, f"the prompt has .* tokens; it may have {MAX_INPUT_TOKENS}"),
        ),
        end_id=END_ID,
        deadline_s=3.0,
        guides=STANDIN_GUIDES,
    )


def transformers(trained: Path) -> Kind:
    """A checkpoint in PyTorch, which has read the same texts. `trained` is a folder for it."""
    if not (trained / "config.json").is_file():
        tokenizer = BYTE_LEVEL.tokenizer()
        write_trained(trained, BYTE_LEVEL.corpus(), vocabulary=tokenizer.get_vocab_size(), end_id=END_ID)
        write_tokenizer(trained, tokenizer)

    def write(artifact: Path, engine: Path, role: Role) -> None:
        kind = TransformersKind(_of_kind({"kind": "transformers"}, role))
        kind.build(trained, engine, engine.parent, Reporter())
        hidden, inner = trained_model.CONFIG["hidden_size"], trained_model.CONFIG["intermediate_size"]
        shapes = {"self_attn.q_proj": (hidden, hidden), "mlp.down_proj": (hidden, inner)}
        kind.assemble(files_in(engine), artifact, _adapters(role, engine, shapes))

    return Kind(
        name="transformers",
        write=write,
        rendered=RENDERED,
        refused=(
            ({"beam_width": 2}, "'beam_width' must be 1"),
            ({"length_penalty": 0.5}, "'length_penalty'"),
            ({"text_input": "word " * 400}, "the prompt has .* tokens; it may have 511"),
            ({"guided_decoding_guide_type": "json", "min_tokens": 1}, "'min_tokens' must be 0 beside a guide"),
            (
                {"guided_decoding_guide_type": "regex", "guided_decoding_guide": "("},
                "'guided_decoding_guide' cannot be honoured: .*regex",
            ),
            (
                {"guided_decoding_guide_type": "json_schema", "guided_decoding_guide": '{"not": {}}'},
                "'guided_decoding_guide' cannot be honoured",
            ),
        ),
        end_id=END_ID,
        deadline_s=5.0,
        guides=STANDIN_GUIDES,
        tells_the_likeliest=True,
        scores=True,
    )


def _model(kind: str, version: str, role: Role, parameters: Fields) -> Model:
    recipe: Fields = {
        "kind": kind,
        "runtime": {"tensorrt_llm": version, "gpu": "NVIDIA H100 80GB HBM3", "arch": "sm90", "gpus": 1},
        "max_beam_width": MAX_BEAM_WIDTH,
        **({"dtype": "float16", "lora": LORA} if kind == "trt-engine" and role.adapters else {}),
    }
    return _of_kind(recipe, role, {"tensorrt_llm": parameters})


def _of_kind(recipe: Fields, role: Role, serving: Fields | None = None) -> Model:
    return Model.model_validate(
        {
            "name": "standin",
            "source": {"uri": "hf://org/repo@main"},
            "recipe": recipe,
            "adapters": {name: f"hf://org/{name}@main" for name in role.adapters},
            "serving": {
                "slots": role.slots,
                "context_tokens": role.context_tokens,
                "chat_template": role.chat_template,
                "request_timeout_s": role.timeout_s,
                "defaults": {"temperature": 0.0} if role.greedy else {},
                **(serving or {}),
            },
            "prompts": [{"name": "any", "text": "any", "max_tokens": 1, "expect": {"min_tokens": 1}}],
        }
    )


SHAPES: Shapes = {"self_attn.q_proj": (16, 16), "mlp.down_proj": (16, 32)}


def _adapters(role: Role, engine: Path, shapes: Shapes = SHAPES) -> RequestAdapters:
    folders = {
        name: write_adapter(engine.parent / name, shapes, layers=2, seed=seed)
        for seed, name in enumerate(role.adapters)
    }
    return RequestAdapters(folders, lambda name: engine / name)


LORA: Fields = {"target_modules": ["attn_q", "mlp_4h_to_h"], "max_rank": 8}
SIZES: Fields = {
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_size": 4,
    "dtype": "float16",
}


def _limits(role: Role) -> EngineLimits:
    return EngineLimits(
        max_batch_size=role.slots,
        max_input_len=MAX_INPUT_TOKENS,
        max_seq_len=role.context_tokens,
        max_beam_width=MAX_BEAM_WIDTH,
        tokens_per_block=64,
        paged_kv_cache=True,
        paged_context_fmha=True,
        logits_type="FP32",
        cache_bytes_per_token=1024,
        weight_bytes=10**9,
    )


def _write_engine(folder: Path, version: str, limits: EngineLimits, spoken: Spoken) -> None:
    build = {
        name: getattr(limits, name) for name in ("max_batch_size", "max_input_len", "max_seq_len", "max_beam_width")
    }
    config = {
        "version": version,
        "pretrained_config": {"vocab_size": spoken.tokenizer().get_vocab_size(), "mapping": {"tp_size": 1}, **SIZES},
        "build_config": {
            **build,
            "lora_config": {"lora_target_modules": LORA["target_modules"], "max_lora_rank": LORA["max_rank"]},
            "plugin_config": {"lora_plugin": "float16"},
        },
    }
    (folder / "rank0.engine").touch()
    (folder / "config.json").write_text(json.dumps(config))
    standin = {"corpus": spoken.corpus(), "pieces": pieces(spoken.tokenizer()), "token_seconds": TOKEN_SECONDS}
    (folder / "standin.json").write_text(json.dumps(standin))
    spoken.write(folder / TOKENIZER_FOLDER)


def write_tokenizer(folder: Path, tokenizer: Any, **changes: Any) -> Path:
    """A tokenizer of the library as a folder that transformers loads; `changes` go into its configuration."""
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        **changes,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


LLAMACPP, LLMAPI, TRANSFORMERS = "llamacpp", "llmapi-1.2.1", "transformers"
TRT_ENGINES = ("trt-engine-0.8.0", "trt-engine-0.19.0", "trt-engine-1.2.1")

KINDS: Mapping[str, Callable[[pytest.FixtureRequest], Kind]] = {
    LLAMACPP: lambda request: llamacpp(request.getfixturevalue("smollm2_gguf")),
    TRT_ENGINES[0]: lambda _: trt_engine("0.8.0", llm_instances=2),
    TRT_ENGINES[1]: lambda _: trt_engine("0.19.0"),
    TRT_ENGINES[2]: lambda _: trt_engine("1.2.1"),
    LLMAPI: lambda _: llmapi("1.2.1"),
    TRANSFORMERS: lambda request: transformers(request.getfixturevalue("trained_folder")),
}

SLOW = ("trt-engine-0.8.0", "trt-engine-0.19.0", LLMAPI, TRANSFORMERS)
"""What they share with trt-engine 1.2.1 is most of it, and each takes half a minute."""
