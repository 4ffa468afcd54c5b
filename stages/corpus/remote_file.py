"""A file at a URL as one that can be sought in, and what is said where it cannot be had."""

import io
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from stages.stage import DataError
from storage.remote import SOURCE, asked, open_file_system

PROTOCOLS = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "http", "https", "hf")
VERSIONS = ("ETag", "etag", "e_tag", "blob_id", "generation", "md5Hash", "Content-MD5", "Digest",
            "LastModified", "last_modified", "Last-Modified", "mtime", "updated")  # fmt: skip
"""What listings call the version of a file, the most exact first."""
FIRST_BYTES, MOST_BYTES = 256 << 10, 16 << 20
"""Read ahead at a URL: of a file that was just opened, and of one that is read on and on."""
KEPT_BYTES = 64 << 20
"""Of first parts of files that a process keeps, as small files are opened again and again."""


class _FirstParts:
    """The first parts of files by URL and version, the latest in place of the earliest."""

    def __init__(self) -> None:
        self._parts: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._bytes = 0

    def of(self, url: str, version: str) -> bytes:
        """The first part of a file; nothing where it is not kept."""
        return self._parts.get((url, version), b"")

    def keep(self, url: str, version: str, part: bytes) -> None:
        """Keeps the first part of a file, whose version must change with its content."""
        self._bytes += len(part) - len(self._parts.pop((url, version), b""))
        self._parts[url, version] = part
        while self._bytes > KEPT_BYTES:
            self._bytes -= len(self._parts.popitem(last=False)[1])


_KEPT = _FirstParts()


def file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path on it.

    Raises:
        DataError: its protocol is none of those of sources.
        storage.schema.StorageError: it holds credentials, or a package is missing.
    """
    protocol, _, place = url.partition("://")
    if protocol not in PROTOCOLS:
        raise DataError(
            f"{url}: found the protocol {protocol}, expected s3://, gs://, abfs://, https:// or a "
            "path. Copy the files to one of these."
        )
    if protocol in ("abfs", "abfss", "az") and "@" in place.partition("/")[0]:
        raise DataError(
            f"{url}: found an account in the URL, expected abfs://container/path. Set "
            "AZURE_STORAGE_ACCOUNT_NAME in its place."
        )
    return open_file_system(url, SOURCE)


def is_http(url: str) -> bool:
    """Whether a web server has it, which lists nothing."""
    return url.startswith(("http://", "https://"))


def version_of(info: dict[str, Any]) -> str | None:
    """What a listing or an answer has of a file that changes with its content."""
    for name in VERSIONS:
        if info.get(name):
            value = info[name]
            return f"{name.lower()} {getattr(value, 'isoformat', lambda v=value: v)()}"
    return None


def missing(url: str) -> DataError:
    """The error of a URL with nothing there."""
    return DataError(
        f"{url}: found no file there, expected one, a folder with files or, in an object store, a "
        "pattern that matches some. Correct the path."
    )


def changed(path: str) -> DataError:
    """The error of a file that is another one than was listed."""
    return DataError(
        f"{path}: found a file that has changed since it was listed, expected the same one until "
        "it is read. Give the same command again once nobody writes to it."
    )


class RemoteFile(io.RawIOBase):
    """A file at a URL, read in parts, further ahead the longer it is read without a jump."""

    def __init__(self, url: str, size: int | None, version: Any):
        """The file at `url`, with the size and version that it was listed with, if it was.

        Raises:
            DataError: there is no such file, or it is another one than was listed.
            storage.schema.StorageError: the store or server refuses, or cannot be reached.
        """
        super().__init__()
        self._url, self._version = url, version
        self.name, self.mode = url, "rb"
        self._fs, self._root = file_system(url)
        self._at = self._start = 0
        self._read = b""
        self._ahead = FIRST_BYTES
        try:
            self._open(size)
        except FileNotFoundError:
            raise missing(url) from None

    def readable(self) -> bool:
        """That it is."""
        return True

    def seekable(self) -> bool:
        """That it is."""
        return True

    def tell(self) -> int:
        """Where the next byte is read."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves to another place, for which nothing is asked."""
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, begin + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer as far as what was read ahead goes; returns how many bytes that is."""
        if self._at >= self._size:
            return 0
        if not self._start <= self._at < self._start + len(self._read):
            self._fill(len(buffer))
        begin = self._at - self._start
        part = self._read[begin : begin + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)

    def close(self) -> None:
        """Gives back what reading has taken."""
        self._file.close()
        super().close()

    def _open(self, size: int | None) -> None:
        """Asks for the file, unless its parts can be asked for on condition that it is the same."""
        tag = str(self._version).partition("etag ")[2]
        if size and tag.startswith('"') and (is_http(self._url) or _is_s3(self._url)):
            self._size = size
            self._file = self._opened(size, tag)
            return
        if is_http(self._url):
            info = self._ask(lambda: self._fs.info(self._root))
            tag = info.get("ETag", "")
            self._file = self._opened(info["size"], tag) if info["size"] else io.BytesIO()
        else:
            self._file = self._ask(lambda: self._fs.open(self._root, "rb", cache_type="none"))
            info = self._file.details
        if self._version is not None and self._version != version_of(info):
            raise changed(self._url)
        self._version = version_of(info)
        self._size = int(info["size"] or 0)
        if info["size"] is None or info.get("partial") is False:
            self._copy()

    def _opened(self, size: int, tag: str) -> Any:
        """A file of fsspec, which has not yet asked for anything."""
        # Nothing is read ahead by fsspec, which would not ask again where a store is busy.
        options: dict[str, Any] = {"cache_type": "none", "size": size}
        if is_http(self._url) and tag.startswith('"'):
            options["headers"] = {"If-Match": tag}
        file = self._fs.open(self._root, "rb", **options)
        if _is_s3(self._url):
            # s3fs does so by itself, but for a request more, by which it learns the ETag.
            file.details = {"name": self._root, "size": size, "ETag": tag, "type": "file"}
            file.read_kw = {**file.read_kw, "IfMatch": tag}
        return file

    def _ask(self, request: Callable[[], Any]) -> Any:
        return asked(self._url, request, SOURCE)

    def _fill(self, n_bytes: int) -> None:
        """Reads what begins where one is, at least as many bytes if there are so many."""
        version = str(self._version)
        is_exact = version.startswith("etag ")
        kept = _KEPT.of(self._url, version) if is_exact else b""
        if self._at < len(kept):
            self._start, self._read = 0, kept
            return
        goes_on = self._at == self._start + len(self._read)
        self._ahead = min(2 * self._ahead, MOST_BYTES) if goes_on else FIRST_BYTES
        start = self._at if self._at >= FIRST_BYTES else 0
        stop = min(max(self._at + n_bytes, start + self._ahead), self._size)
        self._start, self._read = start, self._part(start, stop)
        if is_exact and start == 0 and len(self._read) <= FIRST_BYTES:
            _KEPT.keep(self._url, version, self._read)

    def _part(self, start: int, stop: int) -> bytes:
        def read() -> bytes | None:
            self._file.seek(start)
            try:
                return bytes(self._file.read(stop - start))
            except ValueError:  # The server gives the whole file whatever it is asked for.
                return None

        try:
            data: bytes | None = self._ask(read)
            if data is None:
                self._copy()
                data = read() or b""
        except FileNotFoundError:
            raise missing(self._url) from None
        if len(data) != stop - start:
            raise changed(self._url)
        return data

    def _copy(self) -> None:
        """Copies the file to disk, of a server that has no parts of it to give."""
        copy = tempfile.TemporaryFile()

        def download() -> None:
            copy.seek(0)
            copy.truncate()
            self._fs.get_file(self._root, copy)

        self._ask(download)
        self._size = copy.seek(0, os.SEEK_END)
        self._file.close()
        self._file = copy


def _is_s3(url: str) -> bool:
    return url.startswith(("s3://", "s3a://"))
