"""A release's folder of Triton models: as an artifact with relative names, and as a node puts it before Triton."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from infra.files import remove_tree, whole_folder
from tasks.serving.settings import FILE_NAME, ServingSettings
from tasks.store.identity import canonical
from tasks.triton.config import (
    ENGINE_FOLDER,
    ENGINE_PATH,
    LLM,
    RELEASE,
    TENSORRT_LLM,
    instantiate,
    llm_config,
    parse_config,
    public_config,
    release_config,
)

REPOSITORY_VERSION = 2
"""Raise when what `write_release` writes beside the serving code changes, or the tables behind it."""

LOAD_ORDER = (TENSORRT_LLM, LLM, RELEASE)
"""The models that a release may have: each before those that call it. They go in the opposite order."""

TOKENIZER_FOLDER = "tokenizer"
"""The tokenizer among an engine's files, and inside the version folder of an `llm` that needs nothing else of it."""

_SERVING = Path(__file__).resolve().parent.parent / "serving"


@dataclass(frozen=True)
class EngineServer:
    """The server that an engine has for itself on a node: the folder of its models, and `host:port` of its gRPC."""

    models: Path
    grpc: str


def _serving_code() -> list[Path]:
    return sorted(_SERVING.glob("*.py"))


def serving_code_digest() -> str:
    """sha256 over the code that runs inside Triton: part of the identity of every repository."""
    return hashlib.sha256(
        canonical({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in _serving_code()})
    ).hexdigest()


def write_release(
    output: Path,
    serving: ServingSettings,
    *,
    instances: int = 1,
    tensorrt_llm: str = "",
    engine_in_place: bool = False,
) -> None:
    """Fill `output` with the models of a release, relative names, without the engine's files.

    They are `llm`, `release`, and where there is an engine for the C++ backend its `tensorrt_llm` with that
    configuration. Without one, `engine_in_place` has `llm` read its engine where the node keeps it.
    """
    if tensorrt_llm:
        (output / TENSORRT_LLM).mkdir(parents=True)
        (output / TENSORRT_LLM / "config.pbtxt").write_text(tensorrt_llm)
    version = output / LLM / "1"
    version.mkdir(parents=True)
    calls = TENSORRT_LLM if tensorrt_llm else ""
    config = llm_config(instances=instances, calls=calls, engine_in_place=engine_in_place)
    (output / LLM / "config.pbtxt").write_text(config)
    (version / FILE_NAME).write_text(serving.to_json())
    for path in _serving_code():
        shutil.copyfile(path, version / path.name)
    (output / RELEASE).mkdir()
    (output / RELEASE / "config.pbtxt").write_text(release_config())


def release_names(model: str, release: int, relatives: Iterable[str] = LOAD_ORDER) -> dict[str, str]:
    """Names on the server by relative name, in the order of loading, the ensemble that clients call last."""
    public = f"{model}--r{release}"
    return {relative: public if relative == RELEASE else f"{public}--{relative}" for relative in relatives}


def place_release(
    repository: Path, engine: Path, models: Path, model: str, release: int, server: EngineServer | None = None
) -> None:
    """Put a release before Triton: each model's folder appears whole, read-only, under its name on the server.

    `engine` is the folder with the engine's files, verified and to stay as it is. Models that are told its path read it
    there: it is outside of what Triton watches, so tens of gigabytes lie on the disk once. Files that belong to a
    model's folder are copies: a hard link made or removed elsewhere changes an inode's ctime, and Triton would then
    load the running model anew when the public name moves.

    With `server` the engine's own model is put before that one, and `llm` here is told to call it there.
    """
    relatives = models_of(repository)
    names = release_names(model, release, relatives)
    readers = [relative for relative in relatives if _reads_in_place(repository / relative)]
    if readers:
        _make_read_only(engine)
    for relative, name in names.items():
        folder = (models if server is None or relative != TENSORRT_LLM else server.models) / name
        if folder.is_dir():
            continue
        # Outside of what Triton watches: it would take a folder in the making for a model.
        with whole_folder(folder, partial=models.parent / "placing" / name) as partial:
            write_model(repository / relative, partial, names, engine, "" if server is None else server.grpc)
            if relative == LLM and LLM not in readers:
                own = TOKENIZER_FOLDER if readers else ENGINE_FOLDER
                shutil.copytree(engine / own if readers else engine, partial / "1" / own)
            _make_read_only(partial)


def write_model(source: Path, folder: Path, names: Mapping[str, str], engine: Path, engine_server: str = "") -> None:
    """A model's folder as Triton loads it, from that of an artifact: with names, and where the engine lies and runs."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    config = folder / "config.pbtxt"
    config.write_text(instantiate(config.read_text(), names, str(engine.absolute()), engine_server))
    # Triton wants one even for an ensemble, and artifacts hold no empty folders.
    (folder / "1").mkdir(exist_ok=True)


def models_of(repository: Path) -> tuple[str, ...]:
    """The models that a repository artifact holds, relative names in the order of loading."""
    return tuple(relative for relative in LOAD_ORDER if (repository / relative).is_dir())


def placed_models(models: Path, model: str, release: int) -> tuple[str, ...]:
    """Names on the server of what `place_release` put there, in the order of loading; none where it did not finish."""
    names = release_names(model, release)
    placed = tuple(name for name in names.values() if (models / name).is_dir())
    return placed if names[RELEASE] in placed else ()


def withdraw_release(models: Path, model: str, release: int) -> None:
    """Remove a release's folders; Triton must have unloaded it."""
    for name in reversed(release_names(model, release).values()):
        remove_tree(models / name)


def withdraw_everything(models: Path) -> None:
    """Remove all that was ever placed, for a Triton that has just started and was told of nothing yet."""
    for folder in models.iterdir():
        remove_tree(folder)


def write_public(models: Path, model: str, release: int) -> None:
    """Point the public name at a release: one file, replaced in one step. Triton hears of it by a load."""
    folder = models / model
    (folder / "1").mkdir(parents=True, exist_ok=True)
    fresh = models.parent / "placing" / f"{model}.pbtxt"
    fresh.parent.mkdir(exist_ok=True)
    placed = models / release_names(model, release)[RELEASE]
    fresh.write_text(public_config(model, (placed / "config.pbtxt").read_text()))
    fresh.replace(folder / "config.pbtxt")


def _reads_in_place(model: Path) -> bool:
    return ENGINE_PATH in parse_config((model / "config.pbtxt").read_text()).parameters


def _make_read_only(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    # The folder itself stays writable for its owner, who has to rename and remove it.
