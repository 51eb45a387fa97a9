"""The repository artifact: a release's folder of Triton models, with relative names and without the engine's files."""

from __future__ import annotations

import shutil
from pathlib import Path

from tasks.serving.settings import ADAPTER_FOLDER, FILE_NAME, ServingSettings
from tasks.triton.config import LLM, RELEASE, TENSORRT_LLM, TENSORRT_LLM_DRAFT, llm_config, release_config
from tasks.triton.serving_code import serving_code

LOAD_ORDER = (TENSORRT_LLM_DRAFT, TENSORRT_LLM, LLM, RELEASE)
"""The models that a release may have, each before those that call it. They are unloaded in the opposite order."""

TOKENIZER_FOLDER = "tokenizer"
"""The tokenizer among an engine's files, and in the version folder of an `llm` that needs no other of them."""


def write_release(
    output: Path,
    serving: ServingSettings,
    *,
    instances: int | None = 1,
    tensorrt_llm: str = "",
    tensorrt_llm_draft: str = "",
    engine_in_place: bool = False,
) -> None:
    """Fill `output` with the models of a release.

    They are `llm` and `release`, and for an engine in the C++ backend also `tensorrt_llm`, with that text as its
    configuration, and `tensorrt_llm_draft` for that of a draft model. With `engine_in_place`, `llm` itself reads the
    engine where the node keeps it. `instances` of `llm`, processes, None: as many as its node finds right
    (`tasks/triton/llm_processes.py`).
    """
    for name, text in ((TENSORRT_LLM, tensorrt_llm), (TENSORRT_LLM_DRAFT, tensorrt_llm_draft)):
        if text:
            (output / name).mkdir(parents=True)
            (output / name / "config.pbtxt").write_text(text)
    version = output / LLM / "1"
    version.mkdir(parents=True)
    calls = TENSORRT_LLM if tensorrt_llm else ""
    hands_on = instances != 1
    config = llm_config(
        contract=serving.contract,
        instances=instances or 1,
        calls=calls,
        drafts=TENSORRT_LLM_DRAFT if tensorrt_llm_draft else "",
        engine_in_place=engine_in_place,
        tickets=True,
        hands_on=hands_on,
    )
    (output / LLM / "config.pbtxt").write_text(config)
    (version / FILE_NAME).write_text(serving.to_json())
    for path in serving_code():
        shutil.copyfile(path, version / path.name)
    (output / RELEASE).mkdir()
    (output / RELEASE / "config.pbtxt").write_text(release_config(serving.contract, tickets=True, hands_on=hands_on))


def adapter_folder(repository: Path, name: str) -> Path:
    """A new folder of an adapter in a repository that `write_release` has filled."""
    folder = repository / LLM / "1" / ADAPTER_FOLDER / name
    folder.mkdir(parents=True)
    return folder


def models_of(repository: Path) -> tuple[str, ...]:
    """The models that a repository artifact holds, relative names in the order of loading."""
    return tuple(relative for relative in LOAD_ORDER if (repository / relative).is_dir())
