"""A model's file under another name: its text with that name in it, and every comment where it was."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from infra.errors import SpecError, UsageError
from infra.files import replace_file
from tasks.models.catalogue import catalogue_file, load_model
from tasks.models.spec import Model

_NAME = re.compile(
    r"""^(?P<key>name:[ \t]+)(?P<quote>["']?)(?P<name>[^"'#\s]+)(?P=quote)(?P<rest>[ \t]*(#.*)?)$""", re.M
)


@dataclass(frozen=True)
class RenamedFile:
    """The file of the new name, and what it says. `old` is the file of the old one; None if there is none any more."""

    path: Path
    text: str
    model: Model
    old: Path | None

    def write(self) -> None:
        """Write the file of the new name."""
        replace_file(self.path, self.text.encode())

    def remove_old(self) -> None:
        """Remove the file of the old name."""
        if self.old is not None:
            self.old.unlink(missing_ok=True)


def renamed_file(folder: Path, former: str, name: str) -> RenamedFile:
    """The file of `former` with the name `name`, or the file of `name` where somebody has renamed it already.

    Nothing is written. Raises UsageError `model-missing` if there is neither, `model-exists` if there is another model
    of the new name, and SpecError.
    """
    old, new = catalogue_file(folder, former), catalogue_file(folder, name)
    if old is None and new is None:
        raise UsageError(
            f"there is neither a model '{former}' nor a model '{name}' in {folder}",
            hint="what has no file cannot be rebuilt; `enginehouse retire` takes it away",
            code="model-missing",
        )
    if old is None and new is not None:
        return RenamedFile(new, new.read_text(), load_model(new), None)
    assert old is not None
    path = old.with_name(f"{name}{old.suffix}")
    text, count = _NAME.subn(rf"\g<key>{name}\g<rest>", old.read_text())
    if count != 1:
        raise UsageError(
            f"{old} has no line that says `name: {former}` and nothing else",
            hint=f"rename the file yourself: {path.name}, with `name: {name}` in it, and run this again",
            code="name-unreadable",
        )
    if new is not None and (new != path or new.read_text() != text):
        raise UsageError(
            f"{new} is another model",
            hint="take another name, or remove that file",
            code="model-exists",
        )
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / path.name
        made.write_text(text)
        try:
            return RenamedFile(path, text, load_model(made), old)
        except SpecError as error:  # of a name that no model can have, and of mistakes that the file had before
            raise SpecError(error.message.replace(str(made), str(path)), hint=error.hint) from error
