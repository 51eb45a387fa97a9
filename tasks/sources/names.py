"""Which files of a source a snapshot takes, decided by their names, before anything is downloaded.

A snapshot has a list of allowed file types. Files that can run code when a model is loaded (Python, pickles) are
refused unless the model's file trusts them. Files for a repository's readers are left out, and every other type is
refused.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Sequence
from pathlib import PurePosixPath

from infra.errors import SourceError, UntrustedFile
from tasks.models.source_uri import glob_match
from tasks.models.spec import Source

PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"})
PYTHON = frozenset({".py", ".pyc", ".pyi", ".ipynb"})

_WEIGHTS = frozenset({".safetensors", ".gguf"})
_TEXTS = frozenset({".txt", ".md", ".jinja", ".tiktoken"})
_OTHERS = frozenset({".json", ".model"})
_LICENCES = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")
# What repositories carry for their readers.
_LEFT_OUT_NAMES = frozenset({".gitattributes", ".gitignore"})
_LEFT_OUT = frozenset({".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".pdf"})


def select(source: Source, names: Sequence[str]) -> list[str]:
    """Return the names to take: those that `include` asks for, without the files that a snapshot leaves out.

    Raises UntrustedFile for a name or a type that no snapshot may hold. Raises SourceError `source-entry` if a pattern
    of `include` matches no name, or if no name is left.
    """
    check_names(names)
    for pattern in source.include:
        if not any(glob_match(pattern, name) for name in names):
            raise SourceError(
                f"{source.uri} has no file {pattern!r}, which `include` asks for",
                code="source-entry",
                hint="`*` stays within one folder, `**` crosses them. Files of the source: " + _few(names),
            )
    wanted = [
        name
        for name in names
        if not is_left_out(name)
        and (not source.include or any(glob_match(pattern, name) for pattern in source.include))
    ]
    if not wanted:
        raise SourceError(f"{source.uri} holds no file to serve", code="source-entry", hint="Look at its files.")
    for name in wanted:
        check_type(name, source.trust)
    return wanted


def check_names(names: Iterable[str]) -> None:
    """Raise UntrustedFile unless all names are plain relative POSIX paths, and no two are the same file."""
    folded: dict[str, str] = {}
    folders: set[str] = set()
    for name in names:
        segments = name.split("/")
        if any(segment in ("", ".", "..") or len(segment.encode()) > 255 for segment in segments):
            raise _bad_name(name, "is not a relative path without `.` and `..`")
        if "\\" in name or not name.isprintable():
            raise _bad_name(name, "holds a backslash or a control character")
        key = _fold(name)
        if key in folded:
            raise _bad_name(name, f"is the same file as {folded[key]!r} on a disk that ignores case")
        folded[key] = name
        folders.update(_fold(str(parent)) for parent in PurePosixPath(name).parents)
    if both := sorted(folders & folded.keys()):
        raise _bad_name(folded[both[0]], "is a file and a folder at once")


def is_left_out(name: str) -> bool:
    """Whether a snapshot leaves the file out without an error, because it serves only a repository's readers."""
    path = PurePosixPath(name)
    return path.name in _LEFT_OUT_NAMES or path.suffix.lower() in _LEFT_OUT


def check_type(name: str, trust: Collection[str]) -> None:
    """Raise UntrustedFile unless a snapshot may hold a file of this name. `trust` is that of the source."""
    path = PurePosixPath(name)
    suffix = path.suffix.lower()
    if suffix in PYTHON:
        if "python" not in trust:
            raise runs_code(name, "is Python code", "untrusted-python", "python")
    elif suffix in PICKLES:
        if "pickle" not in trust:
            raise runs_code(name, "is a pickle, which can run code when it is read", "untrusted-pickle", "pickle")
    elif any(segment.startswith(".") for segment in path.parts) or not (
        suffix in _WEIGHTS | _TEXTS | _OTHERS or path.stem.upper().startswith(_LICENCES)
    ):
        raise UntrustedFile(
            f"a snapshot may not hold {name}: its type is not on the list",
            code="untrusted-type",
            hint="Narrow the source to the files it needs with `include:`.",
        )


def runs_code(name: str, what: str, code: str, trust: str) -> UntrustedFile:
    """The error for a file that can run code, and that the source does not trust with `trust`."""
    return UntrustedFile(
        f"{name} {what}",
        code=code,
        hint="Leave it out with `include:`. Or read one revision, pin the source to it, and write "
        f"`trust: [{trust}]` in the model's file.",
    )


def _fold(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


def _bad_name(name: str, what: str) -> UntrustedFile:
    return UntrustedFile(f"the name {name!r} {what}", code="untrusted-name", hint="Do not use this source.")


def _few(names: Sequence[str]) -> str:
    return ", ".join(sorted(names)[:10]) + (", …" if len(names) > 10 else "")
