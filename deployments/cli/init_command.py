"""The command init: a folder of one's own for the models' files, outside the checkout."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from deployments.cli.command import Add, print_json, say
from infra.errors import UsageError

if TYPE_CHECKING:
    from infra.settings import Settings

_EXAMPLE = "smollm2-135m"
SCHEMA = "model.schema.json"

_SETTINGS = """\
# Settings of Enginehouse, which reads this file in the folder where a command is typed. Each has a variable too, which
# wins over it, such as ENGINEHOUSE_STORE.

# The models' files, and what the embedded stack keeps.
catalogue = "models"
home = ".enginehouse"

# Without these, commands go to the embedded stack of `enginehouse up`.
# store = "s3://bucket/prefix"
# target = "production"
"""


def add_init_command(add: Add) -> None:
    sub = add(
        "init", _init, "begin a folder for models' files: settings, an example, the schema for editors", json=True
    )
    sub.add_argument("folder", type=Path, metavar="DIR")


def _init(options: argparse.Namespace, settings: Settings) -> int:
    """Write what is missing. A file that is there with other words is somebody's, and nothing is written then."""
    folder: Path = options.folder
    texts = {folder / name: text for name, text in _files().items()}
    if theirs := [str(path) for path, text in texts.items() if path.exists() and path.read_text() != text]:
        raise UsageError(
            f"{', '.join(theirs)} would be written over",
            hint="name a folder that is new, or move these files away",
            code="file-exists",
        )
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if options.json:
        print_json({"files": [str(path) for path in texts]})
        return 0
    for path in texts:
        print(path)
    say(f"next: `cd {shlex.quote(str(folder))} && enginehouse up && enginehouse rebuild {_EXAMPLE}`")
    return 0


def _files() -> dict[str, str]:
    """The text of each file, by its path in the folder."""
    from infra.settings import Settings
    from tasks.models.catalogue import json_schema

    example = (Settings.catalogue / f"{_EXAMPLE}.yaml").read_text()
    return {
        "enginehouse.toml": _SETTINGS,
        SCHEMA: json.dumps(json_schema(), indent=2) + "\n",
        f"models/{_EXAMPLE}.yaml": f"# yaml-language-server: $schema=../{SCHEMA}\n{example}",
        ".gitignore": ".enginehouse/\n",
    }
