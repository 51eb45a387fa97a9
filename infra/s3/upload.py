"""Upload: files to the store in parallel parts, hashed while they are read, and resumed where a killed try stopped.

Nothing on this disk remembers what was sent. The server is asked, and each of its parts is compared with the file.
"""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache, partial
from importlib import import_module
from io import SEEK_CUR, SEEK_END, SEEK_SET, FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from infra.errors import ArtifactDamaged, StoreError
from infra.s3.bucket import Bucket
from infra.s3.lanes import CHUNK_BYTES, in_lanes
from infra.s3.named_errors import named_errors

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

PART_BYTES = 16 << 20
_MOST_PARTS = 10_000
"""Source: Amazon S3's multipart upload limits."""


@dataclass(frozen=True)
class StoredFile:
    """An uploaded file as the server has it. `checksum` is `ALGORITHM:TYPE:base64`, or empty."""

    size: int
    sha256: str
    etag: str
    checksum: str


def upload_files(
    bucket: Bucket,
    prefix: str,
    files: Mapping[str, Path],
    progress: Callable[[int], None],
    *,
    resume: bool = False,
    part_bytes: int = PART_BYTES,
) -> dict[str, StoredFile]:
    """Bring `files` to the store, each under `prefix` and its name; returns what the server has, by name.

    `progress` gets bytes, in this thread. Every byte is read once, the sha256 is that of the bytes sent, and the
    server's checksum of every part and of each whole file is compared with ours. A few parts are in memory at once.
    With `resume`, an earlier call for the same files may have left objects and parts below `prefix`: what is the same
    is not sent again. No other writer may use `prefix` meanwhile. Raises StoreError (retryable if the store cannot be
    reached), and ArtifactDamaged if a file changes while it is read.
    """
    earlier = _Earlier.at(bucket, prefix) if resume else _Earlier()
    spare: list[bytearray] = []
    uploads = [
        _FileUpload(bucket, prefix + name, name, path, path.stat().st_size, part_bytes, earlier, spare)
        for name, path in files.items()
    ]
    stored: dict[str, StoredFile] = {}
    work = (piece for upload in uploads for piece in upload.pieces())
    with closing(in_lanes(work)) as pieces:
        for piece in pieces:
            progress(piece.size)
            if piece.whole is not None:
                stored[piece.name] = piece.whole
    return {name: stored[name] for name in files}


@dataclass(frozen=True)
class _Earlier:
    """What an earlier try left below a prefix: sizes of whole objects and ids of unfinished uploads, by key."""

    objects: Mapping[str, int] = field(default_factory=dict[str, int])
    uploads: Mapping[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def at(cls, bucket: Bucket, prefix: str) -> _Earlier:
        return cls(
            {entry.key: entry.size for entry in bucket.list(prefix)},
            {upload.key: upload.upload for upload in bucket.unfinished_uploads(prefix)},
        )


@dataclass
class _FileUpload:
    """One file that is being sent: the digests of what was read so far, and the parts that the server has."""

    bucket: Bucket
    key: str
    name: str
    path: Path
    size: int
    part_bytes: int
    earlier: _Earlier
    spare: list[bytearray]
    """Free buffers, for the parts of all files."""
    _upload: str = ""
    _parts: list[CompletedPartTypeDef] = field(default_factory=list["CompletedPartTypeDef"])
    _left: int = 0
    """Pieces that have not ended."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _sha256: Any = field(default_factory=hashlib.sha256)
    _crc: int = 0

    def pieces(self) -> Iterator[Callable[[], _Piece]]:
        """Calls that send the file piece by piece; one call that sends nothing if the store already has the file."""
        if self.earlier.objects.get(self.key) == self.size and self._is_stored():
            self._left = 1
            yield partial(self._sent, self.size)
            return
        self._sha256, self._crc = hashlib.sha256(), 0
        part_bytes = max(self.part_bytes, -(-self.size // _MOST_PARTS))
        count = self._left = max(1, -(-self.size // part_bytes))
        earlier = self._begin(count) if count > 1 else {}
        with self.path.open("rb", buffering=0) as file:
            for number in range(1, count + 1):
                data, crc = self._read(file, min(part_bytes, self.size - (number - 1) * part_bytes))
                if number == count and (file.tell() != self.size or file.read(1)):
                    raise ArtifactDamaged(f"'{self.path}' changed while it was read")
                if count == 1:
                    yield partial(self._send_whole, data, _base64(crc))
                else:
                    yield partial(self._send_part, number, data, _base64(crc), earlier.get(number))

    def _sent(self, size: int) -> _Piece:
        """What the lane of a piece returns. The last piece to end finishes the file."""
        with self._lock:
            self._left -= 1
            last = not self._left
        return _Piece(self.name, size, self._finish() if last else None)

    def _finish(self) -> StoredFile:
        """Make the parts one object and compare it with what was read."""
        if self._upload:
            try:
                with named_errors(self.key):
                    self.bucket.client.complete_multipart_upload(
                        **self._where, UploadId=self._upload, MultipartUpload={"Parts": self._parts}
                    )
            except StoreError as error:
                # Missing: a call whose answer was lost has completed it. HEAD shows whether that is so.
                if error.code != "store-missing":
                    raise
        with named_errors(self.key):
            head = self.bucket.client.head_object(**self._where, ChecksumMode="ENABLED")
        checksum = head.get("ChecksumCRC64NVME", "")
        # A composite one says nothing of the file as a whole. Then the server vouched for each part, as it must.
        composite = bool(self._upload) and checksum.endswith(f"-{len(self._parts)}")
        if head["ContentLength"] != self.size or not (composite or checksum in ("", _base64(self._crc))):
            self.bucket.delete(self.key)  # so that the next try sends all of it
            raise ArtifactDamaged(
                f"the store has other bytes at '{self.key}' than were sent: {head['ContentLength']} with the checksum "
                f"'{checksum}', not {self.size} with '{_base64(self._crc)}'",
                hint="if it happens again, the server's disks or its checksums are at fault: look for a later version",
                retryable=True,
            )
        if checksum:
            kind = "COMPOSITE" if composite else head.get("ChecksumType", "FULL_OBJECT")
            checksum = f"CRC64NVME:{kind}:{checksum}"
        return StoredFile(self.size, self._sha256.hexdigest(), head["ETag"].strip('"'), checksum)

    @property
    def _where(self) -> dict[str, Any]:
        return {"Bucket": self.bucket.name, "Key": self.bucket.prefix + self.key}

    def _read(self, file: FileIO, size: int) -> tuple[bytearray, int]:
        """The next `size` bytes, fewer at the end of the file, and their CRC64NVME."""
        data = self.spare.pop() if self.spare else bytearray()
        if len(data) != size:
            data = bytearray(size)
        count = crc = 0
        view = memoryview(data)
        while got := file.readinto(view[count : count + CHUNK_BYTES]):
            chunk = view[count : count + got]
            self._sha256.update(chunk)
            crc = _checksums().crc64nvme(chunk, crc)
            count += got
        self._crc = _checksums().combine_crc64nvme(self._crc, crc, count)
        return data if count == size else data[:count], crc

    def _is_stored(self) -> bool:
        """Whether the object at the key has the bytes of the file, which are read for it."""
        with named_errors(self.key):
            head = self.bucket.client.head_object(**self._where, ChecksumMode="ENABLED")
        if "ChecksumCRC64NVME" not in head:
            return False
        with self.path.open("rb", buffering=0) as file:
            while data := self._read(file, self.part_bytes)[0]:
                self.spare.append(data)
        return head["ChecksumCRC64NVME"] == _base64(self._crc)

    def _begin(self, count: int) -> dict[int, Any]:
        """Begin the upload of `count` parts, or resume the earlier one; returns the parts that it has, by number."""
        client = self.bucket.client
        self._parts = [{} for _ in range(count)]
        with named_errors(self.key):
            if self.key not in self.earlier.uploads:
                begun = client.create_multipart_upload(
                    **self._where, ChecksumAlgorithm="CRC64NVME", ChecksumType="FULL_OBJECT"
                )
                self._upload = begun["UploadId"]
                return {}
            self._upload = self.earlier.uploads[self.key]
            pages = client.get_paginator("list_parts").paginate(**self._where, UploadId=self._upload)
            return {part.get("PartNumber", 0): part for page in pages for part in page.get("Parts", [])}

    def _send_part(self, number: int, data: bytearray, checksum: str, earlier: Any) -> _Piece:
        if earlier is None or earlier.get("Size") != len(data) or not _vouches(earlier, data, checksum):
            with named_errors(self.key):
                earlier = self.bucket.body_client.upload_part(
                    **self._where,
                    UploadId=self._upload,
                    PartNumber=number,
                    Body=cast(Any, _Body(data)),
                    ChecksumCRC64NVME=checksum,
                )
            _require_vouched(self.key, earlier, data, checksum)
        # Amazon's client does the same: it repeats each part's checksum when it completes the upload.
        self._parts[number - 1] = {"PartNumber": number, "ETag": earlier["ETag"], "ChecksumCRC64NVME": checksum}
        self.spare.append(data)
        return self._sent(len(data))

    def _send_whole(self, data: bytearray, checksum: str) -> _Piece:
        with named_errors(self.key):
            answer = self.bucket.body_client.put_object(
                **self._where, Body=cast(Any, _Body(data)), ChecksumCRC64NVME=checksum
            )
        _require_vouched(self.key, answer, data, checksum)
        return self._sent(len(data))


class _Body:
    """Bytes as a file that is always read whole.

    http.client would ask a file for 16 KiB at a time, and botocore copies a body that is not a file.
    """

    def __init__(self, data: bytearray) -> None:
        self._data = memoryview(data)
        self._position = 0

    def read(self, size: int = -1) -> memoryview:
        first, self._position = self._position, len(self._data)
        return self._data[first:]

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        self._position = offset + {SEEK_SET: 0, SEEK_CUR: self._position, SEEK_END: len(self._data)}[whence]
        return self._position

    def tell(self) -> int:
        return self._position


@dataclass(frozen=True)
class _Piece:
    """`size` bytes of a file that were sent. `whole` is set with the last of them."""

    name: str
    size: int
    whole: StoredFile | None


@cache
def _checksums() -> Any:
    return import_module("awscrt.checksums")  # of boto3[crt]; has no types


def _base64(crc: int) -> str:
    return base64.b64encode(crc.to_bytes(8, "big")).decode()


def _vouches(answer: Any, data: bytearray, checksum: str) -> bool:
    """Whether the server's answer on an object or part fits `data`: by its checksum, else by the MD5 in its ETag."""
    if stored := answer.get("ChecksumCRC64NVME"):
        return stored == checksum
    return answer["ETag"].strip('"') == hashlib.md5(data, usedforsecurity=False).hexdigest()


def _require_vouched(key: str, answer: Any, data: bytearray, checksum: str) -> None:
    if not _vouches(answer, data, checksum):
        raise StoreError(
            f"the store's answer for '{key}' has neither the CRC64NVME nor the MD5 of what was sent",
            hint="an S3 server must give one of them, or nothing that it has can be trusted; server-side encryption "
            "with your own keys needs CRC64NVME",
            code="store-unverified",
        )
