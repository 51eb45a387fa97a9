"""Which files make a checkpoint of a training framework, and what a source holds that has no weights to be served.

    megatron   Megatron-Bridge: `run_config.yaml`, `common.pt`, `.metadata`, `*.distcp`, in the folder or in `iter_N/`
    nemo2      NeMo 2: the same files in `weights/`, and `context/` with `io.json`, `model.yaml` and the tokenizer
    NeMo 1     one archive `*.nemo`

Reading `common.pt`, `.metadata`, `*.distcp` and `context/io.json` can run code, so such a source is trusted like a
pickle. Sources: `training/utils/checkpoint_utils.py` and `auto_bridge.py` of Megatron-Bridge 0.6.2; `lightning/io` of
NeMo 2.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from infra.errors import SourceError
from tasks.models.source import Source
from tasks.models.source_uri import glob_match

_SHARDS = frozenset({".distcp"})
_CONTEXT = frozenset({".json", ".yaml", ".txt", ".model"})
_MEGATRON = ("run_config.yaml", "common.pt", ".metadata", "metadata.json", "train_state.pt")
_TRACKERS = ("latest_checkpointed_iteration.txt", "latest_train_state.pt")
_ITERATION = re.compile(r"iter_(\d+)")


def is_checkpoint_part(name: str) -> bool:
    """Whether a file is of a kind that only a checkpoint has, and that cannot be checked without running it."""
    path = PurePosixPath(name)
    return path.suffix in _SHARDS or path.name == ".metadata"


def select_checkpoint(source: Source, names: Sequence[str]) -> list[str]:
    """The files of a checkpoint of `source.form`; of several iterations, those of the last one.

    Raises SourceError `source-form` if it is none of that form.
    """
    wanted = [name for name in names if not source.include or any(glob_match(each, name) for each in source.include)]
    if source.form == "nemo2":
        taken = [name for name in wanted if _is_of_nemo2(name)]
        needed = {"weights/*.distcp", "weights/.metadata", "context/io.json", "context/model.yaml"}
    else:
        last = max((int(found[1]) for name in wanted if (found := _ITERATION.match(name))), default=None)
        taken = [name for name in wanted if _is_of_megatron(name, last)]
        folder = "" if last is None else next(name for name in taken if _number(name) == last).partition("/")[0] + "/"
        needed = {f"{folder}*.distcp", f"{folder}.metadata", f"{folder}run_config.yaml"}
    if lacking := sorted(each for each in needed if not any(glob_match(each, name) for name in taken)):
        raise SourceError(
            f"{source.uri} is no checkpoint of form {source.form}: it has no {', '.join(lacking)}",
            code="source-form",
            hint=described(names) or "Look at `form` in the model's file, and at the files of the source.",
        )
    return taken


def described(names: Sequence[str]) -> str:
    """What to do with a source that holds a checkpoint of a training framework; empty if it holds none."""
    suffixes = {PurePosixPath(name).suffix for name in names}
    if ".nemo" in suffixes:
        return (
            "It holds an archive of NeMo 1. Convert it with that version's own script, "
            "`scripts/checkpoint_converters/convert_…_nemo_to_hf.py`, and name what comes out."
        )
    if not suffixes & _SHARDS:
        return ""
    if any(name.startswith("context/") for name in names):
        form, tool, like = "nemo2", "nemo-toolkit==VERSION", ""
    else:
        form, tool, like = "megatron", "megatron-bridge==VERSION", ", `like: hf://org/repo@revision`"
    return (
        f"It holds a checkpoint for training. Write `form: {form}`, `exporter: {tool}`{like} and `trust: [pickle]` "
        "into `source`: it is converted first."
    )


def _number(name: str) -> int | None:
    found = _ITERATION.match(name)
    return None if found is None else int(found[1])


def _is_of_megatron(name: str, last: int | None) -> bool:
    path = PurePosixPath(name)
    if len(path.parts) == 1 and path.name in _TRACKERS:
        return True
    folder = path.parts[:-1]
    here = not folder if last is None else len(folder) == 1 and _number(name) == last
    return here and (path.name in _MEGATRON or path.suffix in _SHARDS)


def _is_of_nemo2(name: str) -> bool:
    path = PurePosixPath(name)
    if path.parts[0] == "weights" and len(path.parts) == 2:
        return path.name in _MEGATRON or path.suffix in _SHARDS
    return path.parts[0] == "context" and len(path.parts) > 1 and path.suffix in _CONTEXT
