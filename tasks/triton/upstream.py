"""The layout `upstream`: NVIDIA's own `inflight_batcher_llm` models, their templates filled without `fill_template.py`.

NVIDIA's program splits its arguments at commas and colons, and leaves `${name}` for each placeholder without a value. A
bare placeholder that is left does not parse. A quoted one is mostly taken for "not set", but not everywhere: the
tensorrt_llm_bls of 0.9 to 0.12 calls a model `${tensorrt_llm_model_name}`, and 0.19 takes `${lora_prefetch_dir}` for a
folder of adapters. Enginehouse leaves none: it removes the whole parameter, and every version then takes its default.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from google.protobuf import text_encoding
from packaging.version import Version

from infra.errors import TemplateError, UsageError
from infra.files import whole_folder
from tasks.triton.protobuf import ModelConfig, parse_config, render
from tasks.triton.upstream_templates import MODELS, opened_templates
from tasks.triton.upstream_values import Values

_PLACEHOLDER = re.compile(r"\$\{(\w+)\}")
# A comment (0.10 to 0.19 keep an old parameter in one), a string, or a placeholder that stands alone.
_TOKEN = re.compile(r"""\#[^\n]*|(?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')|\$\{(?P<bare>\w+)\}""")
_BARE_VALUE = re.compile(r"[+-]?[A-Za-z0-9_.]+")

# For placeholders without a default. The queue is as fill_template.py of 0.12 and 0.19 fills it, the types are those of
# the published commands, the tokenizer is what 0.9 does, which no longer has the choice.
_DEFAULTS = {
    "triton_backend": "tensorrtllm",
    "tokenizer_type": "auto",
    "max_queue_delay_microseconds": "0",
    "max_queue_size": "0",
    "encoder_input_features_data_type": "TYPE_FP16",
    "prompt_embedding_table_data_type": "TYPE_FP16",
    "logits_datatype": "TYPE_FP32",
}

# Without these nothing loads. Source: initialize() of the two models, and getBatchingTypeFromParams and the
# constructor in model_instance_state.cc.
_REQUIRED = {
    ("preprocessing", "tokenizer_dir"),
    ("postprocessing", "tokenizer_dir"),
    ("tensorrt_llm", "gpt_model_type"),
    ("tensorrt_llm", "gpt_model_path"),
}

# The models read these without asking whether they exist, and take empty for not set. Source: initialize() of
# preprocessing, 0.12 to 0.18 and from 0.19 on; getGuidedDecodingConfigFromParams in model_instance_state.cc, from 0.19.
_KEPT_EMPTY = {
    ("preprocessing", "visual_model_path"),
    ("preprocessing", "multimodal_model_path"),
    ("tensorrt_llm", "tokenizer_dir"),
    ("tensorrt_llm", "xgrammar_tokenizer_info_path"),
    ("tensorrt_llm", "guided_decoding_backend"),
}

# The templates of 0.12 to 0.14 have these, but their C++ backend reads multiBlockMode and enableContextFMHAFP32Acc.
# Source: getExtendedRuntimePerfKnobConfigFromParams in model_instance_state.cc.
_UNREAD = ("multi_block_mode", "enable_context_fmha_fp32_acc")

_FETCH_AGAIN = "Fetch the templates again."


def fill_upstream(templates: Path, values: Values, output: Path, version: str) -> None:
    """Write the five models to `output`, a folder that must not exist yet; it appears whole or not at all.

    `templates` is a checkout, a folder or an archive; `values` are texts by model and placeholder; `version` is the
    TensorRT-LLM version of the templates. Raises UsageError `output-exists`, and TemplateError `template-missing`,
    `template-unknown-key`, `template-unfilled` or `template-invalid`.
    """
    if output.exists():
        raise UsageError(f"{output} exists already", hint="Remove it, or name another folder.", code="output-exists")
    _check_version(values, version)
    with opened_templates(templates) as root, whole_folder(output) as whole:
        for model in MODELS:
            _copy(root / model, whole / model)
            config = whole / model / "config.pbtxt"
            config.write_text(_fill(model, _read(config), values.get(model, {}), version), encoding="utf-8")


def _check_version(values: Values, version: str) -> None:
    release = Version(version).release[:2]
    if not (0, 8) <= release < (1, 3):
        raise TemplateError(
            f"TensorRT-LLM {version} has no inflight_batcher_llm templates",
            hint="Versions 0.8 to 1.2 have them; from 1.3 on serve with kind llmapi.",
            code="template-missing",
        )
    if unknown := sorted(values.keys() - set(MODELS)):
        raise _unknown(f"no model is called {', '.join(unknown)}", f"models: {', '.join(MODELS)}")
    engine = values.get("tensorrt_llm", {})
    unread = [name for name in _UNREAD if name in engine]
    if unread and (0, 12) <= release <= (0, 14) and engine.get("triton_backend") != "python":
        raise _unknown(
            f"tensorrt_llm: the template of {version} has {', '.join(unread)}, but its C++ backend does not read it",
            "Leave it out. From 0.15 on the backend reads it.",
        )


def _copy(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for path in [source, *sorted(source.rglob("*"))]:
        relative = path.relative_to(source)
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise TemplateError(f"{path} is a link or a special file", hint="Give the templates as plain files.")
        # A server that ran from the checkout left these behind.
        if "__pycache__" in relative.parts:
            continue
        if path.is_dir():
            (target / relative).mkdir(exist_ok=True)
        else:
            shutil.copyfile(path, target / relative)
    # Triton wants a version folder even for an ensemble, and git keeps no empty folders.
    (target / "1").mkdir(exist_ok=True)


def _read(config: Path) -> str:
    try:
        return config.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TemplateError(f"{config.parent.name}/config.pbtxt is not text: {error}", hint=_FETCH_AGAIN) from error


def _fill(model: str, template: str, values: Mapping[str, str], version: str) -> str:
    """The text of one config.pbtxt, rendered from the message, with the template's licence notice at the top."""
    names = _names(template)
    if unknown := sorted(values.keys() - names):
        raise _unknown(
            f"the template of {model} has no placeholder {', '.join(unknown)} in version {version}",
            f"placeholders: {', '.join(sorted(names))}",
        )
    for name, value in values.items():
        if "${" in value:
            raise _unfilled(model, f"the value of {name} holds '${{', which backends take for a placeholder")
    known = {name: value for name, value in {**_DEFAULTS, **values}.items() if name in names}
    filled = _substitute(model, template, known)
    with _filled_template(model):
        config = parse_config(filled)
    _settle_leftovers(model, config)
    with _filled_template(model):
        text = render(config)
    if leftover := sorted(set(re.findall(r"\$\{[^}\"]*\}?", text))):
        raise _unfilled(model, f"{', '.join(leftover)} cannot be left out, and nothing sets it")
    return _notice(template) + text


def _names(template: str) -> set[str]:
    """The placeholders outside comments."""
    names: set[str] = set()
    for token in _TOKEN.finditer(template):
        if token["bare"] or token["string"]:
            names.update(_PLACEHOLDER.findall(token[0]))
    return names


def _substitute(model: str, template: str, known: dict[str, str]) -> str:
    unfilled: list[str] = []

    def replace(token: re.Match[str]) -> str:
        if (name := token["bare"]) is not None:
            if name not in known:
                unfilled.append(name)
                return "0"
            if not _BARE_VALUE.fullmatch(known[name]):
                raise TemplateError(
                    f"{model}: {name} is {known[name]!r}", hint="It must be a number, True, False or a type's name."
                )
            return known[name]
        if (string := token["string"]) is not None:
            return _PLACEHOLDER.sub(lambda found: _escaped(known.get(found[1], found[0])), string)
        return token[0]

    filled = _TOKEN.sub(replace, template)
    if unfilled:
        raise _unfilled(model, f"nothing sets {', '.join(sorted(set(unfilled)))}")
    return filled


def _escaped(value: str) -> str:
    return text_encoding.CEscape(value.encode(), as_utf8=False)


def _settle_leftovers(model: str, config: ModelConfig) -> None:
    """Remove the parameters that nothing set, or empty those that a version reads without asking."""
    leftover = {
        key: match[1]
        for key, parameter in config.parameters.items()
        if (match := _PLACEHOLDER.fullmatch(parameter.string_value))
    }
    for key, name in leftover.items():
        if (model, key) in _REQUIRED:
            raise _unfilled(model, f"nothing sets {name}, and the model does not load without the parameter {key}")
        if (model, key) in _KEPT_EMPTY:
            config.parameters[key].string_value = ""
        else:
            del config.parameters[key]


@contextmanager
def _filled_template(model: str) -> Generator[None]:
    """Turn the error of a configuration into that of the template that it came from."""
    try:
        yield
    except UsageError as error:
        raise TemplateError(
            f"the filled template of {model}: {error.message}",
            hint="Is each value a number, True, False or a type where the template wants one?",
        ) from error


def _notice(template: str) -> str:
    """The comment at the top: it carries the copyright and has to stay with the file."""
    lines = template.splitlines(keepends=True)
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "".join(lines[:end])


def _unknown(message: str, hint: str) -> TemplateError:
    return TemplateError(message, hint=hint, code="template-unknown-key")


def _unfilled(model: str, message: str) -> TemplateError:
    return TemplateError(f"{model}: {message}", hint="Give it a value.", code="template-unfilled")
