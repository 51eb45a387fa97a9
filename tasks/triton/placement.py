"""How a node puts a release before Triton, points the public name at it, and takes it away again."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from infra.files import remove_tree, whole_folder
from tasks.serving.llmapi import ENGINE_PATH
from tasks.serving.settings import ServingSettings
from tasks.triton.config import (
    ENGINE_FOLDER,
    LLM,
    RELEASE,
    TENSORRT_LLM,
    TENSORRT_LLM_DRAFT,
    instantiate,
    public_config,
)
from tasks.triton.llm_processes import chosen_processes, is_chosen_by_node, own_cores
from tasks.triton.protobuf import parse_config, render
from tasks.triton.repository import LOAD_ORDER, TOKENIZER_FOLDER, models_of

ENGINES = (TENSORRT_LLM, TENSORRT_LLM_DRAFT)
_OF_RELEASE = re.compile(rf"(?P<model>.+?)--r(?P<release>\d+)(--({'|'.join(LOAD_ORDER)}))?")


@dataclass(frozen=True)
class EngineServer:
    """The server that an engine has for itself on a node: the folder of its models, and `host:port` of its gRPC."""

    models: Path
    grpc: str


def release_names(model: str, release: int, relatives: Iterable[str] = LOAD_ORDER) -> dict[str, str]:
    """Names on the server by relative name, in the order of loading: the ensemble that clients call comes last."""
    public = f"{model}--r{release}"
    return {relative: public if relative == RELEASE else f"{public}--{relative}" for relative in relatives}


def place_release(
    repository: Path,
    engine: Path,
    models: Path,
    model: str,
    release: int,
    *,
    grpc: str,
    server: EngineServer | None = None,
    cores: int | None = None,
) -> None:
    """Put a release before Triton: each model's folder appears whole, read-only, under its name on the server.

    `engine` is the folder with the engine's files; they are verified and stay as they are. Models whose configuration
    has the engine's path read it in that folder, which Triton does not watch: tens of gigabytes lie on the disk once.
    Files inside a model's folder are copies. A hard link that is made or removed elsewhere changes an inode's ctime,
    and Triton would then load the running model again when the public name moves.

    The release's `llm` calls the model of the C++ backend at `grpc`, `host:port` of Triton's own. With `server` that
    model is put before the server of the engine, and called there. `cores` are those of the node, by default of this
    machine, by which `llm` gets its processes where the release leaves that to its node.
    """
    relatives = models_of(repository)
    names = release_names(model, release, relatives)
    readers = [relative for relative in relatives if _reads_in_place(repository / relative)]
    if readers:
        _make_read_only(engine)
    for relative, name in names.items():
        folder = (models if server is None or relative not in ENGINES else server.models) / name
        if folder.is_dir():
            continue
        # Outside of what Triton watches: it would take an unfinished folder for a model.
        with whole_folder(folder, partial=models.parent / "placing" / name) as partial:
            write_model(repository / relative, partial, names, engine, grpc if server is None else server.grpc)
            if relative == LLM:
                _choose_processes(partial, own_cores() if cores is None else cores)
            if relative == LLM and LLM not in readers:
                own = TOKENIZER_FOLDER if readers else ENGINE_FOLDER
                shutil.copytree(engine / own if readers else engine, partial / "1" / own)
            _make_read_only(partial)


def write_model(source: Path, folder: Path, names: Mapping[str, str], engine: Path, engine_server: str = "") -> None:
    """Write a model's folder as Triton loads it, from that of an artifact.

    Its configuration gets the `names`, the absolute path of the `engine` and the address of its server.
    """
    shutil.copytree(source, folder, dirs_exist_ok=True)
    config = folder / "config.pbtxt"
    config.write_text(instantiate(config.read_text(), names, str(engine.absolute()), engine_server))
    # Triton wants a version folder even for an ensemble, and artifacts hold no empty folders.
    (folder / "1").mkdir(exist_ok=True)


def placed_models(models: Path, model: str, release: int) -> tuple[str, ...]:
    """Names on the server of a placed release's models, in the order of loading; empty if placing did not finish."""
    placed = placed_folders(models, model, release)
    return placed if release_names(model, release)[RELEASE] in placed else ()


def placed_folders(models: Path, model: str, release: int) -> tuple[str, ...]:
    """The same for a release of which perhaps not all is placed, or was left when it was half unloaded."""
    return tuple(name for name in release_names(model, release).values() if (models / name).is_dir())


def release_of(name: str) -> tuple[str, int] | None:
    """The model and the release to which a model of that name on the server belongs; None for any other name."""
    found = _OF_RELEASE.fullmatch(name)
    return (found["model"], int(found["release"])) if found else None


def withdraw_release(models: Path, model: str, release: int) -> None:
    """Remove a release's folders. Triton must have unloaded it before."""
    for name in reversed(release_names(model, release).values()):
        remove_tree(models / name)


def withdraw_everything(models: Path) -> None:
    """Remove all that was ever placed, for a Triton that has just started and has no model loaded yet."""
    for folder in models.iterdir():
        remove_tree(folder)


def write_public(models: Path, model: str, release: int, alias: str = "") -> None:
    """Point the public name, or an alias of it, at a release: one file, replaced in one step.

    Triton reads it at the next load.
    """
    name = alias or model
    folder = models / name
    (folder / "1").mkdir(parents=True, exist_ok=True)
    fresh = models.parent / "placing" / f"{name}.pbtxt"
    fresh.parent.mkdir(exist_ok=True)
    placed = models / release_names(model, release)[RELEASE]
    fresh.write_text(public_config(name, (placed / "config.pbtxt").read_text()))
    fresh.replace(folder / "config.pbtxt")


def _choose_processes(llm: Path, cores: int) -> None:
    path = llm / "config.pbtxt"
    config = parse_config(path.read_text())
    if is_chosen_by_node(config):
        slots = ServingSettings.read(llm / "1").slots
        config.instance_group[0].count = chosen_processes(slots, cores)
        path.write_text(render(config))


def _reads_in_place(model: Path) -> bool:
    return ENGINE_PATH in parse_config((model / "config.pbtxt").read_text()).parameters


def _make_read_only(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    # The folder itself stays writable for its owner, who has to rename and remove it.
