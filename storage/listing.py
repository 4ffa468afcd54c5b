"""The files of a store, as one listing has them and as this process has changed them since."""

import datetime
import os
from collections.abc import Callable
from typing import Any, NamedTuple

Lists = Callable[[], dict[str, dict[str, Any]]]


class File(NamedTuple):
    """Size and age of a file, as a listing tells them."""

    bytes: int
    written: float
    """Seconds since 1970; 0 where the store does not tell."""


class Listing:
    """Names, sizes and ages of the files of each table.

    A folder is listed table by table, whenever it is asked for. An object store is listed all at
    once, as a page holds a thousand files, and the listing is kept for a command's length: what
    other processes write meanwhile is not in it, and is written again at worst.
    """

    def __init__(self, root: str, find: Lists | None):
        """Lists nothing yet; `find` lists all files of an object store, None means a folder."""
        self._root, self._find = root, find
        self._tables: dict[str, dict[str, File]] | None = None

    def files(self, table: str) -> dict[str, File]:
        """The files of a table by name, without those under a temporary name."""
        if self._find is None:
            return _folder(os.path.join(self._root, table))
        if self._tables is None:
            self._tables = _by_table(self._find(), self._root)
        return self._tables.setdefault(table, {})

    def wrote(self, table: str, name: str, n_bytes: int) -> None:
        """Takes in that this process has written a file."""
        if self._tables is not None:
            now = datetime.datetime.now(datetime.UTC).timestamp()
            self._tables.setdefault(table, {})[name] = File(n_bytes, now)

    def removed(self, table: str, name: str) -> None:
        """Takes in that a file is gone."""
        if self._tables is not None:
            self._tables.get(table, {}).pop(name, None)


def _folder(folder: str) -> dict[str, File]:
    """The files of a folder; none where there is no such folder."""
    files = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name[0] != ".":
                    try:
                        state = entry.stat()
                    except FileNotFoundError:
                        continue
                    files[entry.name] = File(state.st_size, state.st_mtime)
    except (FileNotFoundError, NotADirectoryError):
        pass
    return files


def _by_table(found: dict[str, dict[str, Any]], root: str) -> dict[str, dict[str, File]]:
    """The files that lie in a folder below the root, by folder and name."""
    tables: dict[str, dict[str, File]] = {}
    for path, entry in found.items():
        table, slash, name = path[len(root) :].strip("/").partition("/")
        if slash and "/" not in name and name[0] != ".":
            size = int(entry.get("size") or 0)
            tables.setdefault(table, {})[name] = File(size, written(entry))
    return tables


def written(entry: dict[str, Any]) -> float:
    """When a file was written, in seconds since 1970, by a listing of any of fsspec's file systems.

    0 where it does not tell.
    """
    for name in ("LastModified", "mtime", "updated", "created"):
        value = entry.get(name)
        if isinstance(value, str):
            try:
                value = datetime.datetime.fromisoformat(value)
            except ValueError:
                continue
        if isinstance(value, datetime.datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return 0.0
