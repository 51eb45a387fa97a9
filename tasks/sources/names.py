"""Which files of a source a snapshot takes, decided by their names, before anything is downloaded.

A snapshot has a list of allowed file types. Files that can run code (Python, pickles, programs) are refused; Python and
pickles are taken where the model's file trusts them. Every other file is left out: what is not downloaded does no harm.
A file of such a type that `include` asks for is refused too, because its author expects it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import PurePosixPath

from infra.errors import SourceError, UntrustedFile
from tasks.gguf.parts import parts_of
from tasks.models.source import Source
from tasks.models.source_uri import glob_match
from tasks.sources.forms import described, select_checkpoint

PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"})
PYTHON = frozenset({".py", ".pyc", ".pyi", ".ipynb"})

Choose = Callable[[Source, Sequence[str]], list[str]]
"""Which of the names of a source are taken, as `select` says it."""

_WEIGHTS = frozenset({".safetensors", ".gguf"})
_TEXTS = frozenset({".txt", ".md", ".jinja", ".tiktoken"})
_OTHERS = frozenset({".json", ".model"})
# A source that brings these wants more than to be read. No trust takes them: nothing that serves a model needs one.
_PROGRAMS = frozenset(
    {".sh", ".bash", ".bat", ".cmd", ".ps1", ".js", ".exe", ".so", ".dll", ".dylib", ".pyd", ".jar", ".whl", ".egg"}
)
_LICENCES = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")
# What repositories carry for their readers. Left out although a pattern of `include`, such as `*`, matches it.
_LEFT_OUT_NAMES = frozenset({".gitattributes", ".gitignore"})
_LEFT_OUT = frozenset({".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".pdf"})


def select(source: Source, names: Sequence[str]) -> list[str]:
    """Return the names to take: those that `include` asks for, without the files that a snapshot leaves out.

    One part of a split GGUF stands for all; a checkpoint of a training framework has files of its own. Raises
    UntrustedFile for a name or a type that no snapshot may hold. Raises SourceError `source-entry` if a pattern of
    `include` matches no name, if parts of a split GGUF are missing, or if what is left holds no weights, and
    `source-form` if it is no checkpoint of the form that the model's file says.
    """
    check_names(names)
    if source.form is not None:
        return select_checkpoint(source, names)
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
        if not _is_for_readers(name)
        and (not source.include or any(glob_match(pattern, name) for pattern in source.include))
    ]
    taken = wanted if source.include else [name for name in wanted if _is_listed(name) or _can_run_code(name)]
    for name in taken:
        check_type(name, source.trust)
    taken = _with_parts(source, taken, names)
    # Said here, where the files that were left out are known, and not by a converter that finds nothing to convert.
    if not taken or (len(taken) < len(wanted) and not any(_suffix(name) in _WEIGHTS | PICKLES for name in taken)):
        raise SourceError(
            f"{source.uri} holds no weights of a type that a snapshot takes",
            code="source-entry",
            hint=described(names) or "Weights are *.safetensors or *.gguf. Files of the source: " + _few(names),
        )
    return taken


def select_about(source: Source, names: Sequence[str]) -> list[str]:
    """The names of configuration and tokenizer alone, for a source whose weights, and whose code, nobody reads."""
    check_names(names)
    return [
        name
        for name in names
        if _is_listed(name) and _suffix(name) not in _WEIGHTS and not name.endswith(".index.json")
    ]


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


def check_type(name: str, trust: Collection[str]) -> None:
    """Raise UntrustedFile unless a snapshot may hold a file of this name. `trust` is that of the source."""
    if _suffix(name) in PYTHON:
        if "python" not in trust:
            raise runs_code(name, "is Python code", "untrusted-python", "python")
    elif _suffix(name) in PICKLES:
        if "pickle" not in trust:
            raise runs_code(name, "is a pickle, which can run code when it is read", "untrusted-pickle", "pickle")
    elif not _is_listed(name):
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


def _with_parts(source: Source, taken: Sequence[str], names: Sequence[str]) -> list[str]:
    whole = dict.fromkeys(part for name in taken for part in parts_of(name))
    if missing := sorted(whole.keys() - set(names)):
        raise SourceError(
            f"{source.uri} has a model in several parts, and lacks {_few(missing)}",
            code="source-entry",
            hint="Bring all parts to the source, each under its own name. It has: " + _few(names),
        )
    return list(whole)


def _is_for_readers(name: str) -> bool:
    return PurePosixPath(name).name in _LEFT_OUT_NAMES or _suffix(name) in _LEFT_OUT


def _is_listed(name: str) -> bool:
    """Whether the type is on the list of what a snapshot may hold, and no part of the path is hidden."""
    path, suffix = PurePosixPath(name), _suffix(name)
    is_licence = path.stem.upper().startswith(_LICENCES) and suffix not in _PROGRAMS
    listed = suffix in _WEIGHTS | _TEXTS | _OTHERS or is_licence
    return listed and not any(segment.startswith(".") for segment in path.parts)


def _can_run_code(name: str) -> bool:
    return _suffix(name) in PYTHON | PICKLES | _PROGRAMS


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _fold(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


def _bad_name(name: str, what: str) -> UntrustedFile:
    return UntrustedFile(f"the name {name!r} {what}", code="untrusted-name", hint="Do not use this source.")


def _few(names: Sequence[str]) -> str:
    return ", ".join(sorted(names)[:10]) + (", …" if len(names) > 10 else "")
