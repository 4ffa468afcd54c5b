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

import fnmatch
import glob
import io
import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from stages.corpus.remote_file import (
    RemoteFile,
    changed,
    file_system,
    is_http,
    missing,
    version_of,
)
from stages.corpus.source import is_url, local, matches
from stages.stage import DataError
from storage.remote import SOURCE, asked

BUFFER_BYTES = 64 << 10
"""Of a file at a URL, what reading line by line takes at once of what was read ahead."""

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

    In the order of their names. A listing costs a request per 1,000 files, and two more; so does a
    pattern with signs in its last part alone, while others list all folders that they may mean.

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
    store is busy. A listed file is opened as it was listed, or not at all; in S3, and where a
    server tells an ETag, its first part is one request.

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
            raise changed(path)
        return stream
    return io.BufferedReader(RemoteFile(path, listed.bytes, listed.version), BUFFER_BYTES)


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


def _listed(url: str) -> tuple[SourceFile, ...]:
    fs, root = file_system(url)
    ask = partial(asked, url, use=SOURCE, is_first=True)
    if is_http(url):
        if "*" in url:
            raise DataError(
                f"{url}: found a pattern, expected the URL of one file: a web server does not list "
                "its files. Name one file, or copy the files to a folder or an object store."
            )
        try:
            info = ask(lambda: fs.info(root))
        except FileNotFoundError:
            raise missing(url) from None
        return (SourceFile(url, info["size"], version_of(info)),)
    found: dict[str, Any] = {}
    try:
        info = ask(lambda: fs.info(root))
        is_file = info["type"] == "file"
        found = {root: info} if is_file else ask(lambda: fs.find(root, detail=True))
    except FileNotFoundError:
        if glob.has_magic(root):
            with suppress(FileNotFoundError):
                found = ask(partial(_matching, fs, root))
    protocol = url.partition("://")[0]
    files = [
        SourceFile(f"{protocol}://{name}", int(info["size"]), version_of(info))
        for name, info in found.items()
        if info["type"] == "file" and not name.endswith("/")
    ]
    if not files:
        raise missing(url)
    return tuple(sorted(files))


def _matching(fs: Any, pattern: str) -> dict[str, Any]:
    """What an object store has that matches a pattern, by name; hidden files only where meant."""
    folder, _, last = pattern.rpartition("/")
    if glob.has_magic(folder) or "**" in last:
        found: dict[str, Any] = fs.glob(pattern, detail=True)
    else:
        # `glob` would list the folder twice.
        listed = {info["name"]: info for info in fs.ls(folder, detail=True)}
        found = {n: i for n, i in listed.items() if fnmatch.fnmatchcase(_last(n), last)}
    return {n: info for n, info in found.items() if last[0] == "." or _last(n)[:1] != "."}


def _last(name: str) -> str:
    return name.rpartition("/")[2]
