"""A release's folder of Triton models: as an artifact with relative names, and as a node puts it before Triton."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from infra.files import remove_tree as _remove
from tasks.identity import canonical
from tasks.serving.settings import FILE_NAME, ServingSettings
from tasks.triton.config import LLM, RELEASE, instantiate, llm_config, public_config, release_config

REPOSITORY_VERSION = 1
"""Raise when what `write_release` writes beside the serving code changes."""

ENGINE_FOLDER = "engine"
"""Where a node puts the engine's files, inside the version folder of `llm`."""

_SERVING = Path(__file__).resolve().parent.parent / "serving"


def _serving_code() -> list[Path]:
    return sorted(_SERVING.glob("*.py"))


def serving_code_digest() -> str:
    """sha256 over the code that runs inside Triton: part of the identity of every repository."""
    return hashlib.sha256(
        canonical({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in _serving_code()})
    ).hexdigest()


def write_release(output: Path, serving: ServingSettings) -> None:
    """Fill `output` with the models `llm` and `release`, relative names, without the engine's files."""
    version = output / LLM / "1"
    version.mkdir(parents=True)
    (output / LLM / "config.pbtxt").write_text(llm_config())
    (version / FILE_NAME).write_text(serving.to_json())
    for path in _serving_code():
        shutil.copyfile(path, version / path.name)
    (output / RELEASE).mkdir()
    (output / RELEASE / "config.pbtxt").write_text(release_config())


def release_names(model: str, release: int) -> dict[str, str]:
    """Names on the server by relative name, the ensemble that clients of the release call last."""
    return {LLM: f"{model}--r{release}--llm", RELEASE: f"{model}--r{release}"}


def place_release(repository: Path, engine: Path, models: Path, model: str, release: int) -> None:
    """Put a release before Triton: each model's folder appears whole, read-only, under its name on the server.

    The engine's files are copies: a hard link made or removed elsewhere changes an inode's ctime, and Triton would then
    load the running model anew when the public name moves.
    """
    names = release_names(model, release)
    for relative, name in names.items():
        folder = models / name
        if folder.is_dir():
            continue
        partial = models.parent / "placing" / name
        _remove(partial)
        shutil.copytree(repository / relative, partial)
        config = partial / "config.pbtxt"
        config.write_text(instantiate(config.read_text(), names))
        (partial / "1").mkdir(exist_ok=True)
        if relative == LLM:
            shutil.copytree(engine, partial / "1" / ENGINE_FOLDER)
        _make_read_only(partial)
        partial.rename(folder)


def withdraw_release(models: Path, model: str, release: int) -> None:
    """Remove a release's folders; Triton must have unloaded it."""
    for name in release_names(model, release).values():
        _remove(models / name)


def withdraw_everything(models: Path) -> None:
    """Remove all that was ever placed, for a Triton that has just started and was told of nothing yet."""
    for folder in models.iterdir():
        _remove(folder)


def write_public(models: Path, model: str, release: int) -> None:
    """Point the public name at a release: one file, replaced in one step. Triton hears of it by a load."""
    folder = models / model
    (folder / "1").mkdir(parents=True, exist_ok=True)
    fresh = models.parent / "placing" / f"{model}.pbtxt"
    fresh.parent.mkdir(exist_ok=True)
    fresh.write_text(public_config(model, release_names(model, release)[RELEASE]))
    fresh.replace(folder / "config.pbtxt")


def _make_read_only(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)
    # The folder itself stays writable for its owner, who has to rename and remove it.
