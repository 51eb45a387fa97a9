"""What a snapshot may hold, what its files may be called, and which sources an event may name.

Names are checked before anything is downloaded, contents before a snapshot is used. What can run code when a
model is loaded (Python files, `auto_map` in a config, pickles under any name) is refused unless the model's
file trusts it; whatever else is not on the list is refused always.
"""

from __future__ import annotations

import codecs
import json
import pickletools
import struct
import unicodedata
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from infra.errors import SourceError, UntrustedFile
from tasks.models.source_uri import HubUri, S3Uri, glob_match, parse_source
from tasks.models.spec import Model

_WEIGHTS = frozenset({".safetensors", ".gguf"})
_TEXTS = frozenset({".txt", ".md", ".jinja", ".tiktoken"})
_OTHERS = frozenset({".json", ".model"})
_LICENCES = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")
_PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"})
_PYTHON = frozenset({".py", ".pyc", ".pyi", ".ipynb"})
# What repositories carry for their readers. It is left out, where anything else unlisted is refused.
_FURNITURE_NAMES = frozenset({".gitattributes", ".gitignore"})
_FURNITURE = frozenset({".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".pdf"})

_LARGEST_JSON = 64 * 2**20  # bytes; it is parsed in memory. The largest tokenizer.json known has 35 MB.
_LARGEST_SAFETENSORS_HEADER = 100_000_000  # bytes; the limit of the safetensors library itself
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_ZIP = b"PK\x03\x04"
_CHUNK = 2**20


def accepted(model: Model, uri: str) -> bool:
    """Whether an event may name `uri` as the source of `model`: hf:// or s3://, and listed in `accepts`."""
    try:
        parsed = parse_source(uri)
    except SourceError:
        return False
    return isinstance(parsed, HubUri | S3Uri) and any(glob_match(pattern, str(parsed)) for pattern in model.accepts)


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
            raise _bad_name(name, f"is the same file as {folded[key]!r} where case does not count")
        folded[key] = name
        folders.update(_fold(str(parent)) for parent in PurePosixPath(name).parents)
    if both := sorted(folders & folded.keys()):
        raise _bad_name(folded[both[0]], "is a file and a folder at once")


def is_furniture(name: str) -> bool:
    """Whether a file is only there for a repository's readers, and simply left out."""
    path = PurePosixPath(name)
    return path.name in _FURNITURE_NAMES or path.suffix.lower() in _FURNITURE


def check_type(name: str, trust: Collection[str]) -> None:
    """Raise UntrustedFile unless a file of this name may be in a snapshot. `trust` is that of the source."""
    path = PurePosixPath(name)
    suffix = path.suffix.lower()
    if suffix in _PYTHON:
        if "python" not in trust:
            raise _refused(name, "is Python code", "untrusted-python", "python")
    elif suffix in _PICKLES:
        if "pickle" not in trust:
            raise _refused(name, "is a pickle, which can run code when it is read", "untrusted-pickle", "pickle")
    elif any(segment.startswith(".") for segment in path.parts) or not (
        suffix in _WEIGHTS | _TEXTS | _OTHERS or path.stem.upper().startswith(_LICENCES)
    ):
        raise UntrustedFile(
            f"{name} is of no type that a snapshot may hold",
            code="untrusted-type",
            hint="Narrow the source to the files it needs with `include:`.",
        )


def check_content(path: Path, name: str, trust: Collection[str]) -> None:
    """Raise UntrustedFile unless the bytes at `path` are what `name` says. Of weights it reads the header."""
    suffix = PurePosixPath(name).suffix.lower()
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise UntrustedFile(
                f"{name} is a Git LFS pointer, not the file it points to",
                code="lfs-pointer",
                hint="Fetch the contents where the source was made: git lfs pull",
            )
        file.seek(0)
        if suffix in _PICKLES | _PYTHON:
            return  # trusted by name, else check_type had refused it
        if suffix == ".safetensors":
            _check_safetensors(file, name, path.stat().st_size)
        elif suffix == ".gguf":
            _check_gguf(file, name)
        elif suffix == ".json":
            _check_json(file, name, path.stat().st_size, trust)
        else:
            _check_no_pickle(file, name)
            if suffix != ".model":
                _check_text(file, name)


def _check_safetensors(file: BinaryIO, name: str, size: int) -> None:
    # Eight bytes of header length, a JSON object, then the tensors without a gap at the end.
    prefix = file.read(8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    if not 2 <= length <= min(size - 8, _LARGEST_SAFETENSORS_HEADER):
        raise _wrong_content(name, "has no safetensors header")
    try:
        header = json.loads(file.read(length))
        ends = [_end_of_tensor(entry, size - 8 - length) for key, entry in header.items() if key != "__metadata__"]
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise _wrong_content(name, "has a safetensors header that does not hold together") from error
    if max(ends, default=0) != size - 8 - length:
        raise _wrong_content(name, "has bytes after its last tensor")


def _end_of_tensor(entry: dict[str, Any], limit: int) -> int:
    begin, end = entry["data_offsets"]
    if not 0 <= begin <= end <= limit:
        raise ValueError("a tensor lies outside of the file")
    return end


def _check_gguf(file: BinaryIO, name: str) -> None:
    # Magic, version, number of tensors, number of key-value pairs: how a little-endian GGUF 2 or 3 begins.
    header = file.read(24)
    if len(header) < 24 or header[:4] != b"GGUF":
        raise _wrong_content(name, "does not begin as GGUF does")
    version, tensors, pairs = struct.unpack("<IQQ", header[4:])
    if version not in (2, 3) or tensors > 10**6 or pairs > 10**6:
        raise _wrong_content(name, "has a GGUF header that makes no sense")


def _check_json(file: BinaryIO, name: str, size: int, trust: Collection[str]) -> None:
    if size > _LARGEST_JSON:
        raise _wrong_content(name, f"is a JSON file of more than {_LARGEST_JSON // 2**20} MiB")
    keys: set[str] = set()

    def note(pairs: list[tuple[str, Any]]) -> None:
        keys.update(key for key, _ in pairs)

    try:
        json.loads(file.read(), object_pairs_hook=note)
    except (ValueError, RecursionError) as error:
        raise _wrong_content(name, "is not JSON") from error
    if "auto_map" in keys and "python" not in trust:
        raise _refused(name, "has an `auto_map`, which names Python code to run", "untrusted-python", "python")


def _check_text(file: BinaryIO, name: str) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    file.seek(0)
    try:
        while chunk := file.read(_CHUNK):
            if "\0" in decoder.decode(chunk):
                raise _wrong_content(name, "is not text")
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise _wrong_content(name, "is not text in UTF-8") from error


def _check_no_pickle(file: BinaryIO, name: str) -> None:
    head = file.read(4)
    file.seek(0)
    if head == _ZIP or (head[:1] == b"\x80" and head[1:2] <= b"\x05") or _is_text_pickle(file):
        raise UntrustedFile(
            f"{name} is a pickle or a zip file under another name",
            code="untrusted-pickle",
            hint="Do not use this source.",
        )


def _is_text_pickle(file: BinaryIO) -> bool:
    """Whether the file is a pickle without protocol mark that imports something. Nothing of it is run."""
    imports = False
    try:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name in ("GLOBAL", "INST"):
                module, _, attribute = cast(str, argument).partition(" ")
                imports = imports or (module.replace(".", "").isidentifier() and attribute.isidentifier())
    except (ValueError, OverflowError, MemoryError):
        return False  # not a pickle to its end
    return imports


def _fold(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold()


def _bad_name(name: str, what: str) -> UntrustedFile:
    return UntrustedFile(f"the name {name!r} {what}", code="untrusted-name", hint="Do not use this source.")


def _wrong_content(name: str, what: str) -> UntrustedFile:
    return UntrustedFile(f"{name} {what}", code="untrusted-content", hint="Do not use this source.")


def _refused(name: str, what: str, code: str, trust: str) -> UntrustedFile:
    return UntrustedFile(
        f"{name} {what}",
        code=code,
        hint=f"Leave it out with `include:`, or pin the source to a revision that you have read and say "
        f"`trust: [{trust}]`.",
    )
