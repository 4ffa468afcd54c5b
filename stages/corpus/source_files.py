"""The files of a source, on disk or at a URL: listed, told apart by version, and opened.

    path                                   is
    data/*.csv, data/, data/train.csv      files on disk
    s3://bucket/..., gs://, abfs://        files, folders and patterns in an object store
    https://host/train.csv                 one file; a server has no listing
    hf://datasets/owner/name/...           files of the hub

URLs are opened by `storage.remote`, with the credentials of stores. The bytes of a file need not be
read to know whether they are others: on disk its size, times and inode change with them, at a URL
its ETag, or whatever the store has of that kind.
"""

import glob
import io
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from stages.corpus.source import is_url, local, matches
from stages.stage import DataError
from storage.remote import SOURCE, asked, open_file_system

PROTOCOLS = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "http", "https", "hf")
VERSIONS = ("ETag", "etag", "e_tag", "blob_id", "generation", "md5Hash", "Content-MD5", "Digest",
            "LastModified", "last_modified", "Last-Modified", "mtime", "updated")  # fmt: skip
"""What listings call the version of a file, the most exact first."""
FIRST_BYTES, MOST_BYTES = 256 << 10, 16 << 20
"""Read ahead at a URL: of a file that was just opened, and of one that is read on and on."""

Version = tuple[int, int, int] | str | None


class SourceFile(NamedTuple):
    """A file as a listing has it."""

    path: str
    """Absolute path, or URL."""
    bytes: int | None
    """Its size; None where the server does not tell."""
    version: Version
    """Changes with the content: on disk time of change, of the inode's change, and inode; at a URL
    what the store calls a version; None where it has none."""


def list_files(path: str) -> tuple[SourceFile, ...]:
    """The files that a path or URL names, which may be a pattern, or a folder with all below it.

    In the order of their names. A listing costs a request per 1,000 files, and three more.

    Raises:
        DataError: there is no such file.
        storage.schema.StorageError: the store or server refuses, or cannot be reached.
    """
    if is_url(path):
        return _listed(path)
    whole = local(path)
    if os.path.isdir(whole):
        files = sorted(str(file) for file in Path(whole).rglob("*") if file.is_file())
    else:
        files = matches(path)
    return tuple(map(file_on_disk, files))


def open_file(file: str | SourceFile) -> io.BufferedReader:
    """A file that can be read and sought in; of a URL only the parts that are asked for are read.

    What a server gives only as a whole is copied to a temporary file. Reading tries again while a
    store is busy.

    Raises:
        DataError: there is no such file, or it is another one than was listed.
        storage.schema.StorageError: the store or server refuses, or cannot be reached.
    """
    listed = SourceFile(file, None, None) if isinstance(file, str) else file
    path = listed.path
    if not is_url(path):
        stream = open(path, "rb")
        if isinstance(listed.version, tuple) and not _is_same(listed, os.fstat(stream.fileno())):
            stream.close()
            raise _changed(path)
        return stream
    fs, root = _file_system(path)
    try:
        remote = _Remote(path, fs, root, listed)
    except FileNotFoundError:
        raise _missing(path) from None
    return io.BufferedReader(remote, FIRST_BYTES)


def file_on_disk(path: str) -> SourceFile:
    """A local file as it is now."""
    state = os.stat(path)
    version = (state.st_mtime_ns, state.st_ctime_ns, state.st_ino)
    return SourceFile(path, state.st_size, version)


def _is_same(listed: SourceFile, state: os.stat_result) -> bool:
    """Whether an open file is the listed one; other rights or names make it no other."""
    assert isinstance(listed.version, tuple)
    same = (listed.bytes, listed.version[0], listed.version[2])
    return same == (state.st_size, state.st_mtime_ns, state.st_ino)


def names_below(path: str, files: tuple[SourceFile, ...]) -> dict[str, SourceFile] | None:
    """The files of the folder at `path` by their names below it; None for a file or pattern."""
    root = f"{path.rstrip('/')}/"
    if not is_url(path) or any(not file.path.startswith(root) for file in files):
        return None
    return {file.path.removeprefix(root): file for file in files}


def _file_system(url: str) -> tuple[Any, str]:
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


def _listed(url: str) -> tuple[SourceFile, ...]:
    fs, root = _file_system(url)
    ask = partial(asked, url, use=SOURCE, is_first=True)
    if _is_http(url):
        if "*" in url:
            raise DataError(
                f"{url}: found a pattern, expected the URL of one file: a web server does not list "
                "its files. Name one file, or copy the files to a folder or an object store."
            )
        try:
            info = ask(lambda: fs.info(root))
        except FileNotFoundError:
            raise _missing(url) from None
        return (SourceFile(url, info["size"], _version(info)),)
    found: dict[str, Any] = {}
    try:
        info = ask(lambda: fs.info(root))
        is_file = info["type"] == "file"
        found = {root: info} if is_file else ask(lambda: fs.find(root, detail=True))
    except FileNotFoundError:
        if glob.has_magic(root):
            found = ask(lambda: fs.glob(root, detail=True))
    protocol = url.partition("://")[0]
    files = [
        SourceFile(f"{protocol}://{name}", int(info["size"]), _version(info))
        for name, info in found.items()
        if info["type"] == "file" and not name.endswith("/")
    ]
    if not files:
        raise _missing(url)
    return tuple(sorted(files))


def _is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _version(info: dict[str, Any]) -> str | None:
    """What a listing or an answer has of a file that changes with its content."""
    for name in VERSIONS:
        if info.get(name):
            value = info[name]
            return f"{name.lower()} {getattr(value, 'isoformat', lambda v=value: v)()}"
    return None


def _missing(url: str) -> DataError:
    return DataError(
        f"{url}: found no file there, expected one, a folder with files or, in an object store, a "
        "pattern that matches some. Correct the path."
    )


def _changed(path: str) -> DataError:
    return DataError(
        f"{path}: found a file that has changed since it was listed, expected the same one until "
        "it is read. Give the same command again once nobody writes to it."
    )


class _Remote(io.RawIOBase):
    """A file at a URL, read in parts, further ahead the longer it is read without a jump."""

    def __init__(self, url: str, fs: Any, root: str, listed: SourceFile):
        super().__init__()
        self._url, self._fs, self._root = url, fs, root
        self._at = self._start = 0
        self._read = b""
        self._ahead = FIRST_BYTES
        self._file, info = self._opened()
        if listed.version is not None and listed.version != _version(info):
            raise _changed(url)
        self._size = int(info["size"]) if info["size"] is not None else -1
        if self._size < 0 or info.get("partial") is False:
            self._copy()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, begin + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer as far as what was read ahead goes; returns how many bytes that is."""
        if self._at >= self._size:
            return 0
        if not self._start <= self._at < self._start + len(self._read):
            goes_on = self._at == self._start + len(self._read)
            self._ahead = min(2 * self._ahead, MOST_BYTES) if goes_on else FIRST_BYTES
            stop = min(self._at + max(len(buffer), self._ahead), self._size)
            self._start, self._read = self._at, self._part(self._at, stop)
        begin = self._at - self._start
        part = self._read[begin : begin + len(buffer)]
        buffer[: len(part)] = part
        self._at += len(part)
        return len(part)

    def close(self) -> None:
        self._file.close()
        super().close()

    def _ask(self, request: Any) -> Any:
        return asked(self._url, request, SOURCE)

    def _opened(self) -> tuple[Any, dict[str, Any]]:
        """The file as the file system opens it, and what it says of the file."""
        # Read ahead is done here: what fsspec reads ahead, it does not ask for again.
        if not _is_http(self._url):
            file = self._ask(lambda: self._fs.open(self._root, "rb", cache_type="none"))
            return file, file.details
        info = self._ask(lambda: self._fs.info(self._root))
        if not info["size"]:
            return io.BytesIO(), info
        tag = info.get("ETag", "W/")
        headers = {} if tag.startswith("W/") else {"headers": {"If-Match": tag}}
        options = {"cache_type": "none", "size": info["size"], **headers}
        return self._ask(lambda: self._fs.open(self._root, "rb", **options)), info

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
            raise _missing(self._url) from None
        if len(data) != stop - start:
            raise _changed(self._url)
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
