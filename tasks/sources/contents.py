"""Whether the bytes of a fetched file are what its name says, checked before the snapshot is used.

Weights are checked by their headers, texts and JSON as a whole. A pickle under another name, and a JSON file whose
`auto_map` names Python code to run, are refused.
"""

from __future__ import annotations

import codecs
import json
import pickletools
import struct
from collections.abc import Callable, Collection
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from pydantic import JsonValue

from infra.errors import SourceError, UntrustedFile
from tasks.gguf.header import FIXED, MAGIC, unreadable
from tasks.sources.forms import is_checkpoint_part
from tasks.sources.names import PICKLES, PYTHON, runs_code

LARGEST_JSON_BYTES = 64 * 2**20
"""A JSON file is parsed in memory. The largest `tokenizer.json` known has 35 MB."""

_MOST_JSON_VALUES = 4_000_000
"""What is parsed takes up to 40 bytes of memory for each byte of it. The largest `tokenizer.json` known has half."""

_LARGEST_SAFETENSORS_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_ZIP = b"PK\x03\x04"
_CHUNK_BYTES = 2**20


def check_content(
    path: Path, name: str, trust: Collection[str], *, largest_json_bytes: int = LARGEST_JSON_BYTES
) -> None:
    """Raise UntrustedFile unless the bytes at `path` are what `name` says. Of weights it reads the header alone.

    Raises SourceError `gguf-unsupported` for a GGUF that is what it says, and that nothing here can read.
    """
    suffix = PurePosixPath(name).suffix.lower()
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise UntrustedFile(
                f"{name} is a Git LFS pointer, not the file it points to",
                code="lfs-pointer",
                hint="Fetch the contents where the source was made: git lfs pull",
            )
        file.seek(0)
        if suffix in PICKLES | PYTHON or is_checkpoint_part(name):
            return  # the source trusts it, or its name would have been refused
        if suffix == ".safetensors":
            _check_safetensors(file, name, path.stat().st_size)
        elif suffix == ".gguf":
            _check_gguf(file, name)
        elif suffix == ".json":
            if path.stat().st_size > largest_json_bytes:
                raise _wrong_content(name, f"is a JSON file of more than {largest_json_bytes} bytes")
            _check_json(file, name, trust)
        else:
            _check_no_pickle(file, name)
            if suffix != ".model":
                _check_text(file, name)


def _check_safetensors(file: BinaryIO, name: str, size: int) -> None:
    # Eight bytes of header length, a JSON object, then the tensors without a gap at the end.
    prefix = file.read(8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    if not 2 <= length <= min(size - 8, _LARGEST_SAFETENSORS_HEADER_BYTES):
        raise _wrong_content(name, "has no safetensors header")
    try:
        header = _parse(file.read(length), name)
        ends = [_end_of_tensor(entry, size - 8 - length) for key, entry in header.items() if key != "__metadata__"]
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise _wrong_content(name, "has a safetensors header that contradicts itself or the file's size") from error
    if max(ends, default=0) != size - 8 - length:
        raise _wrong_content(name, "has bytes after its last tensor")


def _end_of_tensor(entry: dict[str, list[int]], limit: int) -> int:
    begin, end = entry["data_offsets"]
    if not 0 <= begin <= end <= limit:
        raise ValueError("a tensor lies outside of the file")
    return end


def _check_gguf(file: BinaryIO, name: str) -> None:
    header = file.read(FIXED.size)
    if len(header) < FIXED.size:
        raise _wrong_content(name, "is shorter than the header of a GGUF")
    magic, version, tensors, pairs = FIXED.unpack(header)
    if magic != MAGIC or version == 0:
        raise _wrong_content(name, "does not begin as GGUF does")
    if form := unreadable(version):
        what, hint = form
        raise SourceError(f"{name} is {what}", code="gguf-unsupported", hint=hint)
    if tensors > 10**6 or pairs > 10**6:
        raise _wrong_content(name, "has a GGUF header that makes no sense")


def _check_json(file: BinaryIO, name: str, trust: Collection[str]) -> None:
    keys: set[str] = set()

    def note(pairs: list[tuple[str, JsonValue]]) -> None:
        keys.update(key for key, _ in pairs)

    try:
        _parse(file.read(), name, note)
    except (ValueError, RecursionError) as error:
        raise _wrong_content(name, "is not JSON") from error
    if "auto_map" in keys and "python" not in trust:
        raise runs_code(name, "has an `auto_map`, which names Python code to run", "untrusted-python", "python")


def _parse(text: bytes, name: str, hook: Callable[[list[tuple[str, JsonValue]]], None] | None = None) -> Any:
    """The value of a JSON text. Each begins at the start or after one of these bytes, which texts hold as well."""
    if sum(map(text.count, (b",", b"[", b"{"))) > _MOST_JSON_VALUES:
        raise _wrong_content(name, f"holds more than {_MOST_JSON_VALUES} values in JSON")
    return json.loads(text, object_pairs_hook=hook)


def _check_text(file: BinaryIO, name: str) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    file.seek(0)
    try:
        while chunk := file.read(_CHUNK_BYTES):
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
        return False  # the file stops being a pickle before its end
    return imports


def _wrong_content(name: str, what: str) -> UntrustedFile:
    return UntrustedFile(f"{name} {what}", code="untrusted-content", hint="Do not use this source.")
